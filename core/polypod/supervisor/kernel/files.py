"""Descriptors and paths: openat2, close_range.

Spec:
    linux/openat2.h, linux/close_range.h; man openat2(2), close_range(2).
"""

from __future__ import annotations

import ctypes
import os

from polypod.supervisor.kernel.call import INT, LONG, POINTER, SIZE, TEXT, UINT, checked, function

# asm-generic/unistd.h
_SYS_CLOSE_RANGE = 436
_SYS_OPENAT2 = 437

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

_LAST = 0xFFFFFFFF

_openat2 = function("syscall", LONG, INT, TEXT, POINTER, SIZE)
_close_range = function("syscall", LONG, UINT, UINT, UINT)


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def openat2(directory: int, path: str, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open a path under rules for its resolution."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    where, size = ctypes.addressof(how), ctypes.sizeof(how)
    return checked(
        _openat2(_SYS_OPENAT2, directory, os.fsencode(path), where, size), f"open {path}"
    )


def close_range(first: int, last: int = _LAST) -> None:
    """Close all descriptors from ``first`` to ``last``, both included."""
    checked(_close_range(_SYS_CLOSE_RANGE, first, last, 0), "close_range")


def close_all_but(kept: list[int]) -> None:
    """Close every descriptor that is not in the list."""
    first = 0
    for fd in sorted({fd for fd in kept if fd >= 0}):
        if fd > first:
            close_range(first, fd - 1)
        first = fd + 1
    close_range(first)
