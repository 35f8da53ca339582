"""The root file system: attaching it, pivoting into it, closing it."""

from __future__ import annotations

import os

from polypod.plan import operations
from polypod.supervisor.kernel import mounts
from polypod.supervisor.steps.context import Context


def attach_root(op: operations.AttachRoot, context: Context) -> None:
    """Put the root mount over our own root, so that pivot_root can exchange the two."""
    source = context.source(op.source)
    here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mounts.move_mount(source, here)
    finally:
        os.close(here)
    context.root = source


def change_root(_op: operations.ChangeRoot, context: Context) -> None:
    """Pivot: the old root, with all that was below it, is gone afterwards."""
    os.fchdir(context.root)
    mounts.pivot_root(".", ".")
    mounts.umount2(".", mounts.MNT_DETACH)
    os.chdir("/")


def set_propagation(op: operations.SetPropagation, context: Context) -> None:
    """Set the root's alone: the volumes came with their own."""
    mounts.mount_setattr(context.root, propagation=op.propagation)


def read_only_mounts(op: operations.ReadOnlyMounts, context: Context) -> None:
    """Close mounts; those beneath keep their own flags."""
    for path in op.paths:
        if path == "/":
            mounts.mount_setattr(context.root, mounts.MOUNT_ATTR_RDONLY)
            continue
        mount = context.open_beneath(path)
        try:
            mounts.mount_setattr(mount, mounts.MOUNT_ATTR_RDONLY)
        finally:
            os.close(mount)
