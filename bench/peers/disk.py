"""A new ext4 in a file, for what the pulls write: what was removed from the host's before costs nobody anything.

It is mounted in this process's mount namespace (`alone`) and goes with it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("mkfs.ext4", "losetup", "mount", "umount")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@contextmanager
def of_its_own(size: int) -> Iterator[None]:
    """Have temporary directories made on a new file system; where there can be none, as ever.

    Args:
        size: bytes of it; what is not written takes no space.
    """
    if not all(shutil.which(name, path=_PATH) for name in PROGRAMS):
        print(
            "bench-peers: no mkfs.ext4 or losetup: pulls into the host's file system",
            file=sys.stderr,
        )
        yield
        return
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="bench-disk-") as place:
        try:
            mounted = _mount(Path(place), size)
        except subprocess.CalledProcessError as error:
            print(f"bench-peers: {error}: pulls into the host's file system", file=sys.stderr)
            yield
            return
        tempfile.tempdir = str(mounted)
        try:
            yield
        finally:
            tempfile.tempdir = before
            _run("umount", "--lazy", str(mounted))


def _mount(place: Path, size: int) -> Path:
    image, mounted = place / "image", place / "fs"
    mounted.mkdir()
    with image.open("xb") as file:
        file.truncate(size)
    _run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image))
    # Direct, so that memory holds what is written once and not twice.
    device = _run("losetup", "--find", "--show", "--direct-io=on", str(image))
    try:
        _run("mount", device, str(mounted))
    finally:
        _run("losetup", "--detach", device)  # when it is not mounted any more
    return mounted


def _run(*words: str) -> str:
    found = shutil.which(words[0], path=_PATH) or words[0]
    done = subprocess.run([found, *words[1:]], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()
