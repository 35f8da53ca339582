"""Open directories of one tree, by canonical path: found again without walking from the root each time."""

from __future__ import annotations

import os
import resource
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from polypod.plugin.errors import InvalidArgument

_HARD: Final = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
_MAX_OPEN: Final = 1024 if _HARD == resource.RLIM_INFINITY else max(16, min(1024, _HARD // 2))
"""Archives that are sorted by name need few, others go from one directory to the next."""
OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Directory:
    """An open directory. Valid until a dozen others were asked for."""

    descriptor: int
    path: bytes
    """Canonical: below the root, ``b""`` for the root itself."""


class OpenDirectories:
    """Keeps some directories open. Each is reached through its parent, one component, no link followed."""

    def __init__(self, root: int) -> None:
        """Begin at a root, whose descriptor stays the caller's."""
        self.root = Directory(root, b"")
        self._open: OrderedDict[bytes, Directory] = OrderedDict()

    def close(self) -> None:
        """Close what is open."""
        for each in self._open.values():
            os.close(each.descriptor)
        self._open.clear()

    def known(self, path: bytes) -> Directory | None:
        """Return a directory that is open anyhow."""
        return self._open.get(path)

    def get(self, path: bytes) -> Directory:
        """Open a canonical path.

        Raises:
            InvalidArgument: it is not there, or not a directory (any more).
        """
        if not path:
            return self.root
        known = self._open.get(path)
        if known is not None:
            self._open.move_to_end(path)
            return known
        missing: list[bytes] = []
        above = path
        while above and above not in self._open:
            above, _, name = above.rpartition(b"/")
            missing.append(name)
        here = self._open[above] if above else self.root
        try:
            for name in reversed(missing):
                here = self.enter(here, name)
        except (FileNotFoundError, NotADirectoryError) as error:
            shown = ascii(path[:200].decode(errors="backslashreplace"))
            raise InvalidArgument(f"{shown} is no directory any more") from error
        return here

    def find(self, path: bytes) -> Directory | None:
        """Open a canonical path; None if it is not there."""
        try:
            return self.get(path)
        except InvalidArgument:
            return None

    def enter(self, parent: Directory, name: bytes) -> Directory:
        """Open a directory of a directory."""
        path = join(parent.path, name)
        descriptor = os.open(name, OPEN_DIRECTORY, dir_fd=parent.descriptor)
        old = self._open.pop(path, None)
        if old is not None:
            os.close(old.descriptor)
        directory = self._open[path] = Directory(descriptor, path)
        if len(self._open) > _MAX_OPEN:
            os.close(self._open.popitem(last=False)[1].descriptor)
        return directory

    def forget(self, path: bytes) -> None:
        """Close a directory that goes away, and all below it."""
        below = path + b"/"
        for known in [key for key in self._open if key == path or key.startswith(below)]:
            os.close(self._open.pop(known).descriptor)


def join(path: bytes, name: bytes) -> bytes:
    """Return the path of a name in a directory."""
    return path + b"/" + name if path else name


def duplicate(directory: Directory) -> Directory:
    """Return the directory with a descriptor that is the caller's to close."""
    return Directory(os.dup(directory.descriptor), directory.path)
