"""The system calls of confinement: one function each, the kernel's names and numbers.

Spec:
    linux/mount.h, linux/sched.h, linux/capability.h, linux/prctl.h, linux/seccomp.h; the man pages of each.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from typing import Final

# linux/sched.h
CLONE_NEWNS: Final = 0x0002_0000
CLONE_NEWUTS: Final = 0x0400_0000
CLONE_NEWIPC: Final = 0x0800_0000
CLONE_NEWNET: Final = 0x4000_0000
# sys/mount.h, linux/mount.h
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2
MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
# linux/prctl.h
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
# linux/seccomp.h
_SECCOMP_SET_MODE_FILTER: Final = 1
_SECCOMP_FILTER_FLAG_TSYNC: Final = 1
# malloc.h
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
# linux/capability.h
CAP_CHOWN: Final = 0
CAP_DAC_OVERRIDE: Final = 1
CAP_FOWNER: Final = 3
CAP_FSETID: Final = 4
CAP_SYS_ADMIN: Final = 21
CAP_MKNOD: Final = 27
CAP_SETFCAP: Final = 31
_CAPABILITY_VERSION_3: Final = 0x2008_0522
# asm-generic/unistd.h, the same on every architecture; pivot_root is older than that.
_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_MOUNT_SETATTR: Final = 442
_SYS_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41}
_SYS_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _Program(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def detached(path: str, attributes: int) -> int:
    """Return a mount of a directory that is attached nowhere: its ``..`` leads nowhere.

    Args:
        path: of the directory; mounts below it are left out.
        attributes: ``MOUNT_ATTR_…`` that it gets.
    """
    result = _syscall(
        _SYS_OPEN_TREE,
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC),
    )
    mount = _checked(result, f"open_tree {path}")
    wanted = _MountAttr(attributes, 0, MS_PRIVATE, 0)
    try:
        result = _syscall(
            _SYS_MOUNT_SETATTR,
            ctypes.c_int(mount),
            ctypes.c_char_p(b""),
            ctypes.c_uint(_AT_EMPTY_PATH),
            ctypes.byref(wanted),
            ctypes.c_size_t(ctypes.sizeof(wanted)),
        )
        _checked(result, f"mount_setattr {path}")
    except OSError:
        os.close(mount)
        raise
    return mount


def move_mount(mount: int, target: str) -> None:
    """Attach a detached mount."""
    result = _syscall(
        _SYS_MOVE_MOUNT,
        ctypes.c_int(mount),
        ctypes.c_char_p(b""),
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(target)),
        ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
    )
    _checked(result, f"move_mount {target}")


def mount(source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
    """Mount a file system, bind a directory, or change what is mounted."""
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        fstype.encode(),
        ctypes.c_ulong(flags),
        data.encode() or None,
    )
    _checked(result, f"mount {target}")


def pivot_root(place: str) -> None:
    """Make a mount the root, and let go of everything that was mounted before."""
    number = _SYS_PIVOT_ROOT[os.uname().machine]
    os.chdir(place)
    # Old root on top of the new one, then away with it: no directory for it is needed.
    _checked(_syscall(number, ctypes.c_char_p(b"."), ctypes.c_char_p(b".")), f"pivot_root {place}")
    _checked(_libc.umount2(b".", MNT_DETACH), "umount of the old root")
    os.chdir("/")


def unshare(flags: int) -> None:
    """Step into new namespaces: ``CLONE_NEW…``."""
    _checked(_libc.unshare(flags), "unshare")


def die_with_parent(signal: int) -> None:
    """Have a signal sent to this process when its parent ends."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal, 0, 0, 0), "PR_SET_PDEATHSIG")


def keep_capabilities(kept: Iterable[int]) -> None:
    """Give up every capability but these."""
    bits = sum(1 << each for each in kept)
    low, high = bits & 0xFFFF_FFFF, bits >> 32
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    _checked(_libc.capset(header, data), "capset")


def no_new_privileges() -> None:
    """No execve of this process gives anything, ever."""
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")


def filter_calls(program: bytes) -> None:
    """Have each further system call of all threads judged by a program: an array of ``struct sock_filter``."""
    wanted = _Program(len(program) // 8, program)
    result = _syscall(
        _SYS_SECCOMP[os.uname().machine],
        ctypes.c_uint(_SECCOMP_SET_MODE_FILTER),
        ctypes.c_uint(_SECCOMP_FILTER_FLAG_TSYNC),
        ctypes.byref(wanted),
    )
    if _checked(result, "seccomp") > 0:
        raise OSError(None, f"seccomp: thread {result} cannot take the filter")


def keep_memory() -> None:
    """Have freed memory used again instead of given back: a page that comes back must be cleared first.

    For a process that ends soon; a C library that does not know the settings does as it likes.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 128 << 20)
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_ARENA_MAX, 1)
