"""Cgroups: joining them, and the view that a container gets of the v1 hierarchies."""

from __future__ import annotations

import os

from polypod.plan import operations
from polypod.supervisor.kernel import mounts
from polypod.supervisor.steps.context import Context

_TMPFS_OPTIONS: list[tuple[str, str | None]] = [("mode", "755"), ("size", "64k")]


def join_cgroups(op: operations.JoinCgroups, context: Context) -> None:
    """Write ourselves into each hierarchy; "0" is the writer."""
    for source in op.sources:
        os.write(context.source(source), b"0")


def mount_cgroups(op: operations.MountCgroups, context: Context) -> None:
    """Mount a tmpfs with one directory per hierarchy, and the hierarchies on them."""
    tree = mounts.new_mount("tmpfs", _TMPFS_OPTIONS, op.attributes & ~mounts.MOUNT_ATTR_RDONLY)
    try:
        target = context.make_directory(op.target)
        try:
            mounts.move_mount(tree, target)
        finally:
            os.close(target)
        for directory, options, links in op.hierarchies:
            _mount_hierarchy(tree, str(directory), options, op.attributes)
            for link in links:  # type: ignore[attr-defined]
                os.symlink(str(directory), str(link), dir_fd=tree)
        if op.attributes & mounts.MOUNT_ATTR_RDONLY:
            mounts.mount_setattr(tree, mounts.MOUNT_ATTR_RDONLY)
    finally:
        os.close(tree)


def _mount_hierarchy(tree: int, directory: str, options: object, attributes: int) -> None:
    """Mount an existing hierarchy once more: in a cgroup namespace it shows our own part (E6)."""
    pairs: list[tuple[str, str | None]] = []
    for option in options:  # type: ignore[attr-defined]
        key, equals, value = str(option).partition("=")
        pairs.append((key, value if equals else None))
    made = mounts.new_mount("cgroup", pairs, attributes)
    try:
        os.mkdir(directory, 0o755, dir_fd=tree)
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(directory, flags, dir_fd=tree)
        try:
            mounts.move_mount(made, target)
        finally:
            os.close(target)
    finally:
        os.close(made)
