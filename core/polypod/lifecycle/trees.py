"""Remove a directory of ours without ever following a link or crossing into another file system."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def remove_tree(path: Path) -> None:
    """Delete a directory and all below it; a missing one is no error.

    Raises:
        OSError: EXDEV where something is still mounted below it: nothing beyond that is touched.
    """
    try:
        device = path.lstat().st_dev
    except FileNotFoundError:
        return
    for _root, directories, files, fd in os.fwalk(path, topdown=False, follow_symlinks=False):
        _same_device(fd, device, path)
        for name in files:
            os.unlink(name, dir_fd=fd)
        for name in directories:
            _remove_directory(name, fd, device, path)
    path.rmdir()


def _remove_directory(name: str, fd: int, device: int, path: Path) -> None:
    facts = os.stat(name, dir_fd=fd, follow_symlinks=False)
    if stat.S_ISLNK(facts.st_mode):
        os.unlink(name, dir_fd=fd)
        return
    if facts.st_dev != device:
        raise OSError(errno.EXDEV, "something is mounted here; it was left alone", str(path / name))
    os.rmdir(name, dir_fd=fd)


def _same_device(fd: int, device: int, path: Path) -> None:
    if os.fstat(fd).st_dev != device:
        raise OSError(errno.EXDEV, "something is mounted below it; it was left alone", str(path))
