"""What a stack of unpacked layers shows, as overlayfs would show it, without mounting anything.

Layer trees never change once they are there and only root can reach them; so a look-up may use paths,
provided that it has made sure, one component after the other, that each is a directory and no link.

Spec:
    kernel Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories".
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

OPAQUE: Final = b"trusted.overlay.opaque"
MAX_LINKS: Final = 40
"""Symbolic links that one resolution follows: the kernel's own number."""


@dataclass(frozen=True, slots=True)
class Node:
    """One name in the merged tree."""

    status: os.stat_result
    places: tuple[bytes, ...]
    """Where it lies: for a directory each layer's that is merged, topmost first; else one path."""

    @property
    def is_directory(self) -> bool:
        """Return whether it is a directory."""
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_symlink(self) -> bool:
        """Return whether it is a symbolic link."""
        return stat.S_ISLNK(self.status.st_mode)


def is_whiteout(status: os.stat_result) -> bool:
    """Return whether a name is a whiteout: character device 0:0."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(place: bytes) -> bool:
    """Return whether a directory hides what lies below it."""
    try:
        return os.getxattr(place, OPAQUE, follow_symlinks=False) == b"y"
    except OSError:
        return False


def split(path: bytes) -> list[bytes]:
    """Return the components that mean something; ``..`` stays."""
    return [part for part in path.split(b"/") if part not in (b"", b".")]


class MergedView:
    """Layers as one tree."""

    def __init__(self, layers: Sequence[bytes]) -> None:
        """Look at layers, topmost first."""
        visible: list[bytes] = []
        for layer in layers:
            visible.append(layer)
            if is_opaque(layer):  # the kernel does not look for this mark on a root
                break
        self.layers = tuple(visible)

    @property
    def root(self) -> Node:
        """Return the root directory, with the attributes of the topmost layer."""
        return Node(os.lstat(self.layers[0]), self.layers)

    def child(self, directory: Node, name: bytes) -> Node | None:
        """Return what a directory shows under a name; never follows a link."""
        status: os.stat_result | None = None
        places: list[bytes] = []
        for place in directory.places:
            path = place + b"/" + name
            try:
                found = os.lstat(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if is_whiteout(found):
                break
            if not stat.S_ISDIR(found.st_mode):
                return Node(found, (path,)) if status is None else Node(status, tuple(places))
            status = status or found
            places.append(path)
            if is_opaque(path):
                break
        return None if status is None else Node(status, tuple(places))

    def names(self, directory: Node) -> Iterator[bytes]:
        """Yield the names that a directory shows, sorted."""
        seen: set[bytes] = set()
        for place in directory.places:
            seen.update(os.listdir(place))  # noqa: PTH208 - bytes
        for name in sorted(seen):
            if self.child(directory, name) is not None:
                yield name

    def at(self, canonical: bytes) -> Node | None:
        """Return what lies at a path whose directories are no links."""
        node: Node | None = self.root
        for part in split(canonical):
            if node is None or not node.is_directory:
                return None
            node = self.child(node, part)
        return node

    def resolve(self, path: bytes) -> Node | None:
        """Return what a path leads to, following links; ``..`` and absolute links stay within the root.

        None as well for a link that leads nowhere and for more than `MAX_LINKS` of them.
        """
        stack: list[Node] = [self.root]
        todo = split(path)[::-1]
        links = 0
        while todo:
            part = todo.pop()
            if part == b"..":
                del stack[max(1, len(stack) - 1) :]
                continue
            node = self.child(stack[-1], part) if stack[-1].is_directory else None
            if node is None:
                return None
            if not node.is_symlink:
                stack.append(node)
                continue
            links += 1
            if links > MAX_LINKS:
                return None
            target = os.readlink(node.places[0])  # noqa: PTH115 - bytes
            if target.startswith(b"/"):
                del stack[1:]
            todo += split(target)[::-1]
            if len(todo) > 4096:
                return None
        return stack[-1]


def read_file(node: Node, limit: int) -> bytes | None:
    """Return a regular file's content; None if it is no regular file.

    Raises:
        ValueError: it is larger than ``limit`` bytes.
    """
    if not stat.S_ISREG(node.status.st_mode):
        return None
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    descriptor = os.open(node.places[0], flags)
    try:
        if os.fstat(descriptor).st_size > limit:
            raise ValueError("too large")
        data = bytearray()
        while len(data) <= limit and (piece := os.read(descriptor, limit + 1 - len(data))):
            data += piece
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise ValueError("too large")
    return bytes(data)


def kept_xattrs(place: bytes) -> dict[bytes, bytes]:
    """Return the extended attributes of a name that a copy of it keeps."""
    found: dict[bytes, bytes] = {}
    with suppress(OSError):
        for name in os.listxattr(place, follow_symlinks=False):
            key = os.fsencode(name)
            if keeps_xattr(key):
                found[key] = os.getxattr(place, key, follow_symlinks=False)
    return found


def keeps_xattr(name: bytes) -> bool:
    """Return whether a layer may set an extended attribute.

    ``trusted.overlay.*`` would speak to the kernel in our name; labels and ACLs are the host's matter.
    """
    return name == b"security.capability" or (
        name.startswith(b"user.") and not name.startswith(b"user.overlay.")
    )
