"""Remove a directory of ours without ever following a link or crossing into another file system."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: Path) -> None:
    """Delete a directory and all below it; a missing one is no error.

    What a container made in it may be as deep as its file system allows: there is one open directory, which
    moves down and up; neither recursion, nor a path, nor a descriptor for each level would do.

    Raises:
        OSError: EXDEV where something is still mounted below it: nothing beyond that is touched.
    """
    try:
        place = _Place(path)
    except FileNotFoundError:
        return
    try:
        _empty(place)
    finally:
        place.close()
    path.rmdir()


@dataclass(slots=True)
class _Level:
    """A directory between the top and where we are."""

    inode: int
    waiting: list[str]
    """Directories in it that are still to be removed."""
    current: str = ""
    """The one in which we are."""


class _Place:
    """An open directory that moves through one file system."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, _DIRECTORY)
        self._device = os.fstat(self._fd).st_dev

    def close(self) -> None:
        os.close(self._fd)

    def clear(self) -> _Level:
        """Unlink all but directories."""
        waiting: list[str] = []
        with os.scandir(self._fd) as entries:
            found = list(entries)
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=self._fd)
        return _Level(os.fstat(self._fd).st_ino, waiting)

    def enter(self, name: str) -> None:
        """Move to a directory in this one."""
        self._move(name)
        if os.fstat(self._fd).st_dev != self._device:
            text = f"something is mounted below it, on a {name!r}; it was left alone"
            raise OSError(errno.EXDEV, text, str(self._path))

    def leave(self, level: _Level) -> None:
        """Move back to the directory above, and remove where we were."""
        self._move("..")
        if os.fstat(self._fd).st_ino != level.inode:
            raise OSError(errno.ESTALE, "it was moved while it was removed", str(self._path))
        os.rmdir(level.current, dir_fd=self._fd)

    def _move(self, name: str) -> None:
        fd = os.open(name, _DIRECTORY, dir_fd=self._fd)
        os.close(self._fd)
        self._fd = fd


def _empty(place: _Place) -> None:
    levels = [place.clear()]
    while levels:
        level = levels[-1]
        if level.waiting:
            level.current = level.waiting.pop()
            place.enter(level.current)
            levels.append(place.clear())
        else:
            levels.pop()
            if levels:
                place.leave(levels[-1])
