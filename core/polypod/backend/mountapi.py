"""The new mount API, as far as the daemon needs it: it makes detached mounts and hands them on.

A detached mount belongs to no mount namespace; the container's launch attaches it. Nothing here
changes the mount table of the host. One function per system call, the kernel's names.

Spec:
    linux/mount.h; man open_tree(2), fsopen(2), move_mount(2), mount_setattr(2).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

# asm-generic/unistd.h: the same numbers on every architecture that polypod runs on.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 4
MNT_DETACH = 2
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x00100000

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


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def open_in_root(root: int, path: str) -> int:
    """Return an ``O_PATH`` descriptor of a path below a directory; links cannot lead out of it (openat2(2))."""
    how = _OpenHow(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    result = _syscall(
        _SYS_OPENAT2,
        ctypes.c_int(root),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    return _checked(result, f"open {path}")


def open_tree(directory: int, path: str, flags: int) -> int:
    """Return a descriptor of a mount; with ``OPEN_TREE_CLONE`` of a detached copy."""
    result = _syscall(
        _SYS_OPEN_TREE,
        ctypes.c_int(directory),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.c_uint(flags),
    )
    return _checked(result, f"open_tree {path}")


def mount_setattr(
    mount: int, *, set_: int = 0, clear: int = 0, propagation: int = 0, recursive: bool = False
) -> None:
    """Change the attributes of a (detached) mount, and with ``recursive`` of all below it."""
    _setattr(mount, _MountAttr(set_, clear, propagation, 0), recursive=recursive)


def idmap(mount: int, users: int, *, recursive: bool = False) -> None:
    """Let a detached mount show ids as a user namespace maps them."""
    _setattr(mount, _MountAttr(MOUNT_ATTR_IDMAP, 0, 0, users), recursive=recursive)


def _setattr(mount: int, attributes: _MountAttr, *, recursive: bool) -> None:
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    result = _syscall(
        _SYS_MOUNT_SETATTR,
        ctypes.c_int(mount),
        ctypes.c_char_p(b""),
        ctypes.c_uint(flags),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    _checked(result, "mount_setattr")


def move_mount(mount: int, target: str) -> None:
    """Attach a detached mount on a path of our own mount namespace."""
    result = _syscall(
        _SYS_MOVE_MOUNT,
        ctypes.c_int(mount),
        ctypes.c_char_p(b""),
        ctypes.c_int(AT_FDCWD),
        ctypes.c_char_p(os.fsencode(target)),
        ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH),
    )
    _checked(result, f"move_mount {target}")


def unmount(target: str) -> None:
    """Detach a mount; what still uses it keeps it until it is done."""
    result = _libc.umount2(ctypes.c_char_p(os.fsencode(target)), ctypes.c_int(MNT_DETACH))
    _checked(result, f"umount {target}")


def mount_detached(
    fstype: str, options: Sequence[tuple[str, str | None]], *, attributes: int = 0
) -> int:
    """Make a mount that is attached nowhere and return its descriptor.

    Args:
        fstype: as in ``/proc/filesystems``.
        options: (key, value); a value of None is a flag.
        attributes: ``MOUNT_ATTR_…``.

    Raises:
        OSError: with the kernel's own message where it left one.
    """
    context = _checked(
        _syscall(
            _SYS_FSOPEN,
            ctypes.c_char_p(fstype.encode()),
            ctypes.c_uint(FSOPEN_CLOEXEC),
        ),
        f"fsopen {fstype}",
    )
    try:
        for key, value in options:
            kind = FSCONFIG_SET_FLAG if value is None else FSCONFIG_SET_STRING
            _fsconfig(context, kind, key, value)
        _fsconfig(context, FSCONFIG_CMD_CREATE, None, None)
        result = _syscall(
            _SYS_FSMOUNT,
            ctypes.c_int(context),
            ctypes.c_uint(FSMOUNT_CLOEXEC),
            ctypes.c_uint(attributes),
        )
        return _checked(result, f"fsmount {fstype}")
    except OSError as error:
        said = _kernel_message(context)
        if said:
            raise OSError(error.errno, f"{error.strerror} ({said})") from error
        raise
    finally:
        os.close(context)


def _fsconfig(context: int, kind: int, key: str | None, value: str | None) -> None:
    result = _syscall(
        _SYS_FSCONFIG,
        ctypes.c_int(context),
        ctypes.c_uint(kind),
        ctypes.c_char_p(None if key is None else key.encode()),
        ctypes.c_char_p(None if value is None else os.fsencode(value)),
        ctypes.c_int(0),
    )
    _checked(result, f"fsconfig {key or 'create'}={value or ''}")


def _kernel_message(context: int) -> str:
    """The kernel leaves lines such as "e overlay: …" on the context's descriptor."""
    try:
        return os.read(context, 1024).decode(errors="replace").strip()
    except OSError:
        return ""
