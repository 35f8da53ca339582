"""The guest: kernel, initramfs and command line, built once and kept by the digest of what they are made of."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from polypod.plugin import BackendError
from polypod_vm import cpio, guestpython, kernelimage

WANTED_MODULES: Final = (
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "virtio_net",
    "crc32c_generic",
    "erofs",
    "overlay",
)
"""What a guest needs beside what is built in; their dependencies come by themselves."""
COMMAND_LINE: Final = (
    "console=ttyS0 quiet loglevel=3 panic=-1 rdinit=/init tsc=reliable no_timer_check "
    "mitigations=off 8250.nr_uarts=1 noreplace-smp nokaslr random.trust_cpu=on cryptomgr.notests"
)
"""Quiet, because a serial port is slow; panic=-1, because a guest that panics shall end, not hang.

The mitigations are those of the guest's kernel against its own processes: see docs/vm.md.
"""
_DIRECTORIES: Final = ("proc", "sys", "dev", "run", "tmp", "newroot", "etc")


@dataclass(frozen=True, slots=True)
class GuestImage:
    """A guest that can be booted."""

    kernel: Path
    initramfs: Path
    digest: str
    release: str
    command_line: str = COMMAND_LINE


def build(target: Path, kernel: kernelimage.Kernel) -> GuestImage:
    """Build a guest below a directory, unless the same one is there.

    Args:
        target: the directory of all guests; it is made.
        kernel: whose image and modules are taken.

    Raises:
        BackendError: something that the guest needs is missing here.
    """
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as name:
        work = Path(name)
        initramfs = cpio.archive(
            [
                *(cpio.directory(each) for each in _DIRECTORIES),
                cpio.character_device("dev/console", 5, 1),
                cpio.character_device("dev/null", 1, 3, 0o666),
                *guestpython.entries(work),
                *_modules(kernel, WANTED_MODULES),
            ]
        )
        packed = kernel.image.read_bytes()
        digest = hashlib.sha256(hashlib.sha256(packed).digest() + initramfs).hexdigest()
        place = target / digest[:16]
        if not place.is_dir():
            _write(work / "made", place, packed, initramfs, kernel.release)
    return _load(place)


def newest(target: Path) -> GuestImage | None:
    """Return the guest that was built last below a directory; None if there is none."""
    found = sorted(target.glob("*/guest.json"), key=lambda path: path.stat().st_mtime)
    return _load(found[-1].parent) if found else None


def _write(made: Path, place: Path, packed: bytes, initramfs: bytes, release: str) -> None:
    made.mkdir()
    (made / "initramfs").write_bytes(initramfs)
    try:
        (made / "kernel").write_bytes(kernelimage.uncompressed(packed))
    except BackendError:
        (made / "kernel").write_bytes(packed)
    facts = {"digest": hashlib.sha256(initramfs).hexdigest(), "release": release}
    (made / "guest.json").write_text(json.dumps(facts))
    made.rename(place)


def _load(place: Path) -> GuestImage:
    facts = json.loads((place / "guest.json").read_text())
    return GuestImage(place / "kernel", place / "initramfs", place.name, str(facts["release"]))


def _modules(kernel: kernelimage.Kernel, wanted: Sequence[str]) -> list[cpio.Entry]:
    order = kernelimage.load_order(_dependencies(kernel), wanted)
    entries = []
    listed = []
    for path in order:
        inside = f"lib/modules/{Path(path).name.removesuffix('.xz')}"
        listed.append(f"/{inside}")
        content = kernelimage.module_content(kernel.modules / path)
        entries.append(cpio.file(f"usr/{inside}", content))
    return [*entries, cpio.file("usr/lib/modules/list", "\n".join(listed).encode())]


def _dependencies(kernel: kernelimage.Kernel) -> str:
    """Return ``modules.dep``; an unpacked package has none yet, its installation makes it."""
    path = kernel.modules / "modules.dep"
    if not path.is_file():
        depmod = shutil.which("depmod") or "/sbin/depmod"
        if not os.access(depmod, os.X_OK):
            raise BackendError(
                f"{path} is missing and there is no depmod (package kmod) to make it"
            )
        base = kernel.modules.parents[2]
        subprocess.run([depmod, "-b", str(base), kernel.release], check=True, capture_output=True)
    return path.read_text()
