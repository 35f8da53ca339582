"""Device nodes, links and directories beneath the root."""

from __future__ import annotations

import os
import stat

from polypod.plan import operations
from polypod.supervisor.steps.context import Context

_KINDS = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}


def make_device(op: operations.MakeDevice, context: Context) -> None:
    """Make a node, replacing one of the image's."""
    parent, name = context.parent_of(op.path)
    # The umask is 0 until the user is set: the mode is exact, and nothing is changed by name later.
    mode, device = _KINDS[op.kind] | op.mode, os.makedev(op.major, op.minor)
    try:
        try:
            os.mknod(name, mode, device, dir_fd=parent)
        except FileExistsError:
            os.unlink(name, dir_fd=parent)
            os.mknod(name, mode, device, dir_fd=parent)
        if op.uid or op.gid:
            os.chown(name, op.uid, op.gid, dir_fd=parent, follow_symlinks=False)
    finally:
        os.close(parent)


def make_link(op: operations.MakeLink, context: Context) -> None:
    """Make a link; what the image has there stays."""
    parent, name = context.parent_of(op.path)
    try:
        os.symlink(op.target, name, dir_fd=parent)
    except FileExistsError:
        return
    finally:
        os.close(parent)


def make_directory(op: operations.MakeDirectory, context: Context) -> None:
    """Make a directory and its parents."""
    os.close(context.make_directory(op.path, op.mode))
