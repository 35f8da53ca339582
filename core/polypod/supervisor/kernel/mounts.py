"""Mounts: the new mount API, and the old calls that have no new form.

Spec:
    linux/mount.h, linux/openat2.h; man mount(2), fsopen(2), move_mount(2), open_tree(2),
    mount_setattr(2), pivot_root(2), umount2(2), openat2(2).
"""

from __future__ import annotations

import ctypes
import os

# asm-generic/unistd.h
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442
# asm/unistd_64.h and asm-generic/unistd.h: the one number here that differs.
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}[os.uname().machine]

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8

MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_RDONLY = 1
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MNT_DETACH = 2

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _int(value: int) -> ctypes.c_int:
    return ctypes.c_int(value)


def mount(source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
    """The old call: bind and propagation changes by path."""
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), fstype.encode(), flags, os.fsencode(data)
    )
    _check(result, f"mount {target}")


def umount2(target: str, flags: int) -> None:
    """Unmount."""
    _check(_libc.umount2(os.fsencode(target), flags), f"umount2 {target}")


def pivot_root(new_root: str, put_old: str) -> None:
    """Exchange the root."""
    result = _syscall(
        ctypes.c_long(_SYS_PIVOT_ROOT),
        ctypes.c_char_p(os.fsencode(new_root)),
        ctypes.c_char_p(os.fsencode(put_old)),
    )
    _check(result, "pivot_root")


def open_tree(directory: int, path: str, flags: int) -> int:
    """Return a descriptor of a mount; with ``OPEN_TREE_CLONE`` of a detached copy."""
    result = _syscall(
        ctypes.c_long(_SYS_OPEN_TREE),
        _int(directory),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.c_uint(flags | os.O_CLOEXEC),
    )
    return _check(result, f"open_tree {path}")


def move_mount(mount_fd: int, target_fd: int, target: str = "") -> None:
    """Attach a detached mount on a directory or file given by descriptor (and path beneath)."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if target else MOVE_MOUNT_T_EMPTY_PATH)
    result = _syscall(
        ctypes.c_long(_SYS_MOVE_MOUNT),
        _int(mount_fd),
        ctypes.c_char_p(b""),
        _int(target_fd),
        ctypes.c_char_p(os.fsencode(target)),
        ctypes.c_uint(flags),
    )
    _check(result, f"move_mount {target}")


def mount_setattr(
    mount_fd: int, set_: int = 0, clear: int = 0, propagation: int = 0, flags: int = 0
) -> None:
    """Change attributes of a mount; ``flags`` takes ``AT_RECURSIVE``."""
    attributes = _MountAttr(set_, clear, propagation, 0)
    result = _syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        _int(mount_fd),
        ctypes.c_char_p(b""),
        ctypes.c_uint(flags | AT_EMPTY_PATH),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    _check(result, "mount_setattr")


def openat2(directory: int, path: str, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open a path under rules for its resolution."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    result = _syscall(
        ctypes.c_long(_SYS_OPENAT2),
        _int(directory),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    return _check(result, f"open {path}")


def new_mount(fstype: str, options: list[tuple[str, str | None]], attributes: int = 0) -> int:
    """Make a detached mount of a new file system instance and return its descriptor."""
    context = _check(
        _syscall(ctypes.c_long(_SYS_FSOPEN), ctypes.c_char_p(fstype.encode()), ctypes.c_uint(1)),
        f"fsopen {fstype}",
    )
    try:
        for key, value in options:
            kind = FSCONFIG_SET_FLAG if value is None else FSCONFIG_SET_STRING
            _fsconfig(context, kind, key, value)
        _fsconfig(context, FSCONFIG_CMD_CREATE, None, None)
        result = _syscall(
            ctypes.c_long(_SYS_FSMOUNT), _int(context), ctypes.c_uint(1), ctypes.c_uint(attributes)
        )
        return _check(result, f"fsmount {fstype}")
    finally:
        os.close(context)


def _fsconfig(context: int, kind: int, key: str | None, value: str | None) -> None:
    result = _syscall(
        ctypes.c_long(_SYS_FSCONFIG),
        _int(context),
        ctypes.c_uint(kind),
        ctypes.c_char_p(None if key is None else key.encode()),
        ctypes.c_char_p(None if value is None else os.fsencode(value)),
        _int(0),
    )
    _check(result, f"fsconfig {key or 'create'}")
