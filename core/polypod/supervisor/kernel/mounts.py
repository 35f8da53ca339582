"""Mounts: the new mount API, and the old calls that have no new form.

Spec:
    linux/mount.h; man mount(2), fsopen(2), move_mount(2), open_tree(2), mount_setattr(2),
    pivot_root(2), umount2(2).
"""

from __future__ import annotations

import ctypes
import os

from polypod.supervisor.kernel.call import INT, LONG, POINTER, SIZE, TEXT, UINT, checked, function

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# asm-generic/unistd.h: the same numbers on every architecture that polypod runs on.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_MOUNT_SETATTR = 442
# asm/unistd_64.h: the one that differs.
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}[os.uname().machine]

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_SET_FD = 5
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

_mount = function("mount", TEXT, TEXT, TEXT, ctypes.c_ulong, TEXT)
_umount2 = function("umount2", TEXT, INT)
_pivot_root = function("syscall", LONG, TEXT, TEXT)
_open_tree = function("syscall", LONG, INT, TEXT, UINT)
_move_mount = function("syscall", LONG, INT, TEXT, INT, TEXT, UINT)
_mount_setattr = function("syscall", LONG, INT, TEXT, UINT, POINTER, SIZE)
_fsopen = function("syscall", LONG, TEXT, UINT)
_fsconfig = function("syscall", LONG, INT, UINT, TEXT, TEXT, INT)
_fsmount = function("syscall", LONG, INT, UINT, UINT)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount(source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
    """The old call: bind and propagation changes by path."""
    result = _mount(
        os.fsencode(source), os.fsencode(target), fstype.encode(), flags, os.fsencode(data)
    )
    checked(result, f"mount {target}")


def umount2(target: str, flags: int) -> None:
    """Unmount."""
    checked(_umount2(os.fsencode(target), flags), f"umount2 {target}")


def pivot_root(new_root: str, put_old: str) -> None:
    """Exchange the root."""
    result = _pivot_root(_SYS_PIVOT_ROOT, os.fsencode(new_root), os.fsencode(put_old))
    checked(result, "pivot_root")


def open_tree(directory: int, path: str, flags: int) -> int:
    """Return a descriptor of a mount; with ``OPEN_TREE_CLONE`` of a detached copy."""
    result = _open_tree(_SYS_OPEN_TREE, directory, os.fsencode(path), flags | os.O_CLOEXEC)
    return checked(result, f"open_tree {path}")


def move_mount(mount_fd: int, target_fd: int, target: str = "") -> None:
    """Attach a detached mount on a directory or file given by descriptor (and path beneath)."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if target else MOVE_MOUNT_T_EMPTY_PATH)
    raw = os.fsencode(target)
    checked(_move_mount(_SYS_MOVE_MOUNT, mount_fd, b"", target_fd, raw, flags), "move_mount")


def mount_setattr(
    mount_fd: int, set_: int = 0, clear: int = 0, propagation: int = 0, flags: int = 0
) -> None:
    """Change attributes of a mount; ``flags`` takes ``AT_RECURSIVE``."""
    attributes = _MountAttr(set_, clear, propagation, 0)
    size = ctypes.sizeof(attributes)
    where = ctypes.addressof(attributes)
    result = _mount_setattr(_SYS_MOUNT_SETATTR, mount_fd, b"", flags | AT_EMPTY_PATH, where, size)
    checked(result, "mount_setattr")


def new_mount(
    fstype: str, options: Sequence[tuple[str, str | int | None]], attributes: int = 0
) -> int:
    """Make a detached mount of a new file system instance and return its descriptor.

    Args:
        fstype: as in ``/proc/filesystems``.
        options: (key, value); None as value makes a flag, a number is a descriptor.
        attributes: ``MOUNT_ATTR_…``.

    Raises:
        OSError: with the file system's own words where it left some.
    """
    context = checked(_fsopen(_SYS_FSOPEN, fstype.encode(), FSOPEN_CLOEXEC), f"fsopen {fstype}")
    try:
        for key, value in options:
            _configure(context, key, value)
        create = _fsconfig(_SYS_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
        checked(create, "fsconfig create")
        return checked(_fsmount(_SYS_FSMOUNT, context, FSMOUNT_CLOEXEC, attributes), "fsmount")
    except OSError as error:
        said = _words_of(context)
        if said:
            raise OSError(error.errno, f"{error.strerror} ({said})") from error
        raise
    finally:
        os.close(context)


def can_show_others(pids: int) -> bool:
    """Tell whether a procfs can show a pid namespace that is named to it (Linux 6.17)."""
    try:
        os.close(new_mount("proc", [("pidns", pids)]))
    except OSError:
        return False
    return True


def _configure(context: int, key: str, value: str | int | None) -> None:
    if isinstance(value, int):
        result = _fsconfig(_SYS_FSCONFIG, context, FSCONFIG_SET_FD, key.encode(), None, value)
    else:
        kind = FSCONFIG_SET_FLAG if value is None else FSCONFIG_SET_STRING
        raw = None if value is None else os.fsencode(value)
        result = _fsconfig(_SYS_FSCONFIG, context, kind, key.encode(), raw, 0)
    checked(result, f"fsconfig {key}" + ("" if value is None else f"={value}"))


def _words_of(context: int) -> str:
    """A file system leaves lines such as "e tmpfs: Bad value" on the context's descriptor."""
    try:
        return os.read(context, 512).decode(errors="replace").strip()
    except OSError:
        return ""
