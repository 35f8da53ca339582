"""Mounts in the host's mount namespace: a container's root on its bundle, a pod's shared memory.

Spec:
    man mount(2), umount2(2); Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from polypod.plugin import BackendError, OverlayRootfs

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


def mount_shared_memory(target: Path) -> None:
    """Mount a pod's ``/dev/shm``, once."""
    target.mkdir(mode=0o700, exist_ok=True)
    if not target.is_mount():
        _mount("tmpfs", target, _NOSUID | _NODEV | _NOEXEC, ["mode=1777", "size=65536k"])


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
