"""The root file system and everything mounted beneath it."""

from __future__ import annotations

import os

from polypod.plan import operations
from polypod.supervisor.kernel import mounts
from polypod.supervisor.steps.context import Context, is_directory


def attach_root(op: operations.AttachRoot, context: Context) -> None:
    """Put the root mount over our own root, so that pivot_root can exchange the two."""
    source = context.source(op.source)
    here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    mounts.move_mount(source, here)
    os.close(here)
    if op.propagation:
        mounts.mount_setattr(source, propagation=op.propagation)
    context.root = source


def mount_new(op: operations.MountNew, context: Context) -> None:
    """Mount a new instance. /proc and /sys must be real directories of the image (E3)."""
    options = [(str(key), value) for key, value in op.options]
    made = mounts.new_mount(op.fstype, options, op.attributes)
    try:
        target = _target_of(op, context)
        try:
            mounts.move_mount(made, target)
        finally:
            os.close(target)
    finally:
        os.close(made)


_KERNEL_FILESYSTEMS = ("proc", "sysfs")


def _target_of(op: operations.MountNew, context: Context) -> int:
    if op.fstype not in _KERNEL_FILESYSTEMS:
        return context.make_directory(op.target)
    # runc's rule since CVE-2019-19921: what is mounted here is trusted later, so no link may choose it.
    resolve = mounts.RESOLVE_IN_ROOT | mounts.RESOLVE_NO_SYMLINKS
    flags = os.O_PATH | os.O_DIRECTORY
    try:
        return mounts.openat2(context.root, op.target, flags, 0, resolve)
    except FileNotFoundError:
        os.close(context.make_directory(op.target))
        return mounts.openat2(context.root, op.target, flags, 0, resolve)


def attach_mount(op: operations.AttachMount, context: Context) -> None:
    """Attach what the daemon opened."""
    make = context.make_directory if op.is_directory else context.make_file
    target = make(op.target)
    try:
        mounts.move_mount(context.source(op.source), target)
    finally:
        os.close(target)


def change_root(_op: operations.ChangeRoot, context: Context) -> None:
    """Pivot: the old root, with all that was below it, is gone afterwards."""
    os.fchdir(context.root)
    mounts.pivot_root(".", ".")
    mounts.umount2(".", mounts.MNT_DETACH)
    os.chdir("/")
    context.root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def read_only_root(_op: operations.ReadOnlyRoot, context: Context) -> None:
    """Make the root mount read-only; mounts beneath it keep their own flags."""
    mounts.mount_setattr(context.root, mounts.MOUNT_ATTR_RDONLY)


def read_only_paths(op: operations.ReadOnlyPaths, context: Context) -> None:
    """Bind each path on itself, read-only, recursively; missing ones are left out."""
    for path in op.paths:
        target = _open_existing(path, context)
        if target is None:
            continue
        copy = mounts.open_tree(
            target, "", mounts.OPEN_TREE_CLONE | mounts.AT_EMPTY_PATH | mounts.AT_RECURSIVE
        )
        mounts.mount_setattr(copy, mounts.MOUNT_ATTR_RDONLY, flags=mounts.AT_RECURSIVE)
        mounts.move_mount(copy, target)
        os.close(copy)
        os.close(target)


def mask_paths(op: operations.MaskPaths, context: Context) -> None:
    """Hide each path: by descriptor, so that nothing can be swapped under us (E4)."""
    empty = -1
    for path in op.paths:
        target = _open_existing(path, context)
        if target is None:
            continue
        if is_directory(target):
            if empty < 0:
                empty = mounts.new_mount(
                    "tmpfs", [("size", "0"), ("nr_inodes", "1")], mounts.MOUNT_ATTR_RDONLY
                )
                copy = empty
            else:
                copy = mounts.open_tree(empty, "", mounts.OPEN_TREE_CLONE | mounts.AT_EMPTY_PATH)
            mounts.move_mount(copy, target)
        else:
            copy = mounts.open_tree(context.null, "", mounts.OPEN_TREE_CLONE | mounts.AT_EMPTY_PATH)
            mounts.move_mount(copy, target)
        if copy != empty:
            os.close(copy)
        os.close(target)
    if empty >= 0:
        os.close(empty)


def _open_existing(path: str, context: Context) -> int | None:
    try:
        return context.open_beneath(path, os.O_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return None
