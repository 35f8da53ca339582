"""The form BLOCK: what an image shows, as one read-only erofs image that a virtual machine can have as a disk.

It lies beside the image's topmost layer, so it lives and goes with it, and images with the same layers share
it. It is made when the first container asks for it.

Spec:
    kernel Documentation/filesystems/erofs.rst; man mkfs.erofs(1).
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from polypod.plugin.errors import BackendError, Unsupported
from polypod_image.pins import Lease
from polypod_image.trash import Trash

FSTYPE: Final = "erofs"
_MAKER: Final = "mkfs.erofs"
NAME: Final = "block.erofs"
_MAGIC_AT: Final = 1024
_MAGIC: Final = b"\xe2\xe1\xf5\xe0"
_UNIQUE: Final = "00000000-0000-0000-0000-000000000000"
"""Equal trees give equal images: nobody mounts one of these by its UUID."""


def ensure_block(
    top: Path, work: Path, lease: Lease, trash: Trash, merge: Callable[[], Path]
) -> Path:
    """Return the block image of a stack of layers, making it if it is missing. Blocks.

    Args:
        top: directory of the topmost layer (``fs`` lies in it); the caller holds it.
        work: where unfinished files lie.
        lease: whose lock of the image's path is taken: it is made once.
        trash: takes the merged tree.
        merge: returns a new place whose ``fs`` is what the image shows.

    Raises:
        Unsupported: the host has no mkfs.erofs.
        BackendError: it failed; the text has its words.
    """
    place = top / NAME
    with lease.maker(place):
        if not place.exists():
            if shutil.which(_MAKER) is None:
                raise Unsupported(f"form block: {_MAKER} is not installed (erofs-utils)")
            tree = merge()
            try:
                _make(tree / "fs", work / f"block-{secrets.token_hex(12)}", place)
            finally:
                trash.throw(tree)
    return place


def is_whole(image: Path) -> bool:
    """Return whether a file has the superblock of erofs and the blocks that this tells of."""
    with image.open("rb") as file:
        file.seek(_MAGIC_AT)
        block = file.read(128)
        size = file.seek(0, os.SEEK_END)
    if len(block) < 128 or not block.startswith(_MAGIC):
        return False
    blocks = int.from_bytes(block[36:40], "little")
    return size >= blocks << block[12]


def _make(tree: Path, fresh: Path, place: Path) -> None:
    arguments = [_MAKER, "--quiet", "-U", _UNIQUE, str(fresh), str(tree)]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()[-500:]
            raise BackendError(f"{_MAKER} ended with {done.returncode}: {said}")
        descriptor = os.open(fresh, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # Its name says that it is whole: it must not come before its bytes.
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        fresh.rename(place)
    finally:
        fresh.unlink(missing_ok=True)
