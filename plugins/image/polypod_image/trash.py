"""Deleting behind the answer: what goes away is renamed into one directory, which a thread empties."""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Trash:
    """A directory that is emptied in the background. Moving into it costs one rename."""

    def __init__(self, place: Path) -> None:
        """Use a directory on the file system of all that will be thrown into it."""
        self._place = place
        self._wake = threading.Event()
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="image-trash", daemon=True)

    def start(self) -> None:
        """Begin; what an earlier process left is deleted as well."""
        self._thread.start()
        self._wake.set()

    def wake(self) -> None:
        """Say that something was moved in by another way."""
        self._wake.set()

    def throw(self, path: Path) -> bool:
        """Take a file or directory away; False if it is not there."""
        try:
            path.rename(self._place / secrets.token_hex(12))
        except FileNotFoundError:
            return False
        self._wake.set()
        return True

    def close(self) -> None:
        """Stop the thread; what is left is deleted by the next process."""
        self._stop = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop:
            self._wake.wait()
            self._wake.clear()
            try:
                self.empty()
            except OSError as error:
                log.warning("%s cannot be emptied: %s", self._place, error)

    def empty(self) -> None:
        """Delete all that was thrown in, until told to stop."""
        directory = os.open(self._place, _OPEN_DIRECTORY)
        try:
            for name in os.listdir(directory):  # noqa: PTH208 - a descriptor
                if self._stop:
                    return
                remove(directory, os.fsencode(name), lambda: self._stop)
        finally:
            os.close(directory)


def remove(directory: int, name: bytes, stop: Callable[[], bool] = lambda: False) -> None:
    """Remove a name and all below it; no link is followed, no depth is too great.

    Subdirectories that are not empty are first moved up into ``directory``, so that neither
    descriptors nor the stack are used up by a tree that was made to be deep.

    Args:
        directory: descriptor of a directory where nobody else makes names.
        name: in it.
        stop: asked before each directory; what is left then is found by the next one who looks.
    """
    pending = [name]
    while pending and not stop():
        try:
            descriptor = os.open(pending[-1], _OPEN_DIRECTORY, dir_fd=directory)
        except FileNotFoundError:
            pending.pop()
            continue
        except NotADirectoryError:
            os.unlink(pending.pop(), dir_fd=directory)
            continue
        try:
            inner = empty_directory(descriptor, directory)
        finally:
            os.close(descriptor)
        if not inner:
            os.rmdir(pending.pop(), dir_fd=directory)
        pending += inner


def empty_directory(descriptor: int, aside: int) -> list[bytes]:
    """Empty a directory; what cannot go at once is moved into ``aside``, under the names returned."""
    moved: list[bytes] = []
    for entry in os.listdir(descriptor):
        name = os.fsencode(entry)
        try:
            os.unlink(name, dir_fd=descriptor)
            continue
        except FileNotFoundError:
            continue
        except IsADirectoryError:
            pass
        with suppress(OSError):
            os.rmdir(name, dir_fd=descriptor)
            continue
        fresh = secrets.token_hex(12).encode()
        with suppress(FileNotFoundError):
            os.rename(name, fresh, src_dir_fd=descriptor, dst_dir_fd=aside)
            moved.append(fresh)
    return moved
