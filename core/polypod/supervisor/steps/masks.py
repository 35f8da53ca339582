"""Paths that a container may not write, or not see. All by descriptor: nothing can be swapped (E4)."""

from __future__ import annotations

import os
import stat

from polypod.plan import operations
from polypod.supervisor.kernel import mounts
from polypod.supervisor.steps.context import Context, is_directory

_CLONE = mounts.OPEN_TREE_CLONE | mounts.AT_EMPTY_PATH
# Not NODEV: the null device must go on to work.
_NULL_ATTRIBUTES = mounts.MOUNT_ATTR_RDONLY | mounts.MOUNT_ATTR_NOSUID | mounts.MOUNT_ATTR_NOEXEC
_EMPTY_ATTRIBUTES = _NULL_ATTRIBUTES | mounts.MOUNT_ATTR_NODEV
_NULL_DEVICE = os.makedev(1, 3)


def read_only_paths(op: operations.ReadOnlyPaths, context: Context) -> None:
    """Bind each path on itself, read-only, recursively; missing ones are left out."""
    for path in op.paths:
        target = _open_existing(path, context)
        if target is None:
            continue
        try:
            copy = mounts.open_tree(target, "", _CLONE | mounts.AT_RECURSIVE)
            try:
                mounts.mount_setattr(copy, mounts.MOUNT_ATTR_RDONLY, flags=mounts.AT_RECURSIVE)
                mounts.move_mount(copy, target)
            finally:
                os.close(copy)
        finally:
            os.close(target)


def mask_paths(op: operations.MaskPaths, context: Context) -> None:
    """Hide each path: a file behind the null device, a directory behind an empty file system."""
    _check_null(context.null)
    empty = -1
    try:
        for path in op.paths:
            target = _open_existing(path, context)
            if target is None:
                continue
            try:
                if not is_directory(target):
                    _cover(context.null, target, _NULL_ATTRIBUTES)
                elif empty < 0:
                    empty = _empty_tree()
                    mounts.move_mount(empty, target)
                else:
                    _cover(empty, target, _EMPTY_ATTRIBUTES)
            finally:
                os.close(target)
    finally:
        if empty >= 0:
            os.close(empty)


def _cover(source: int, target: int, attributes: int) -> None:
    """Read-only also for the null device: it is one inode for all containers, nobody may change it."""
    copy = mounts.open_tree(source, "", _CLONE)
    try:
        mounts.mount_setattr(copy, attributes)
        mounts.move_mount(copy, target)
    finally:
        os.close(copy)


def _empty_tree() -> int:
    """One inode, the root; 0 would mean without limit."""
    return mounts.new_mount("tmpfs", [("ro", None), ("nr_inodes", "1")], _EMPTY_ATTRIBUTES)


def _check_null(fd: int) -> None:
    found = os.fstat(fd)
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != _NULL_DEVICE:
        raise OSError(0, "the launcher's /dev/null is not the null device")


def _open_existing(path: str, context: Context) -> int | None:
    try:
        return context.open_beneath(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
