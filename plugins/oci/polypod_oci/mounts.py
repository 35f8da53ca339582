"""Mounts in the host's mount namespace: a container's root on its bundle, a pod's shared memory.

Spec:
    man mount(2), umount2(2); Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from polypod.plugin import BackendError, InvalidArgument, OverlayRootfs
from polypod.plugin.oci import OciMount

# linux/mount.h
_NOSUID: Final = 0x2
_NODEV: Final = 0x4
_NOEXEC: Final = 0x8
_PRIVATE: Final = 1 << 18
_DETACH: Final = 2
_libc = ctypes.CDLL(None, use_errno=True)


def mount_overlay(rootfs: OverlayRootfs, target: Path) -> None:
    """Mount a container's layers.

    Raises:
        BackendError: the kernel refused.
    """
    # mount(2) takes one page of options, and ':' and ',' have a meaning in it: descriptors have neither.
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    fds: list[int] = []
    try:
        # Not a list of its own: what was opened before one failed is closed, too.
        fds.extend(os.open(path, flags) for path in (*rootfs.lowers, rootfs.upper, rootfs.work))
        *lowers, upper, work = (f"/proc/self/fd/{fd}" for fd in fds)
        options = [f"lowerdir={':'.join(lowers)}", f"upperdir={upper}", f"workdir={work}"]
        _mount("overlay", target, 0, [*options, *rootfs.options])
        # Unmounting it must not depend on what else shares the mounts of the host.
        _mount("none", target, _PRIVATE, [])
    except OSError as error:
        raise BackendError(f"root file system {target}: {error.strerror}") from error
    finally:
        for fd in fds:
            os.close(fd)


_SHARED_MEMORY: Final = threading.Lock()


def mount_shared_memory(target: Path) -> None:
    """Mount a pod's ``/dev/shm``, once."""
    target.mkdir(mode=0o700, exist_ok=True)
    # Two containers of a pod may be created at once, in two threads: a second tmpfs would hide the first.
    with _SHARED_MEMORY:
        if target.is_mount():
            return
        _mount("tmpfs", target, _NOSUID | _NODEV | _NOEXEC, ["mode=1777", "size=65536k"])


_NEEDS: Final = {
    "shared": ("shared:",),
    "rshared": ("shared:",),
    "slave": ("shared:", "master:"),
    "rslave": ("shared:", "master:"),
}
"""Propagation of a mount → what its source must be a part of, as mountinfo tells it."""


def check_propagation(wanted: Sequence[OciMount], mountinfo: str | None = None) -> None:
    """Refuse what a runtime would do in silence: on a private mount nothing can propagate.

    Raises:
        InvalidArgument: a source lies on such a mount.
    """
    table: dict[int, str] = {}
    for mount in wanted:
        for option in mount.options:
            if option not in _NEEDS:
                continue
            table = table or _propagation(mountinfo)
            have = table.get(_mount_id(mount.source), "")
            if not any(word in have for word in _NEEDS[option]):
                raise InvalidArgument(
                    f"mount {mount.destination}: {mount.source} lies on a private mount, and {option} "
                    "needs one that propagates: `mount --make-rshared` it first"
                )


def _propagation(mountinfo: str | None) -> dict[int, str]:
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    rows = (line.split(" - ")[0].split() for line in text.splitlines())
    return {int(row[0]): " ".join(row[6:]) for row in rows}


def _mount_id(path: str) -> int:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise BackendError(f"{path}: {error.strerror}") from error
    try:
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    finally:
        os.close(fd)
    return next((int(line.split()[1]) for line in lines if line.startswith("mnt_id:")), -1)


def unmount(target: Path) -> None:
    """Unmount; what is not mounted, or not there, is fine."""
    if _libc.umount2(os.fsencode(target), _DETACH):
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOENT):
            raise BackendError(f"unmount {target}: {os.strerror(number)}")


def _mount(kind: str, target: Path, flags: int, options: Sequence[str]) -> None:
    data = ",".join(options).encode()
    failed = _libc.mount(
        b"polypod", os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), ctypes.c_char_p(data)
    )
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
