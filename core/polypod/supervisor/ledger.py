"""What outlives the keeper itself: a note per process and its exit, as small files of the state directory.

They are for the worst case alone: when keeper and supervisor die together, the next keeper finds from
them whom it has to watch, and what was recorded already. Both die with a reboot, as processes do.
"""

from __future__ import annotations

import json
import os

from polypod.supervisor.server import is_identifier, note

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Message = dict[str, Any]

_NEW = ".new"


class Ledger:
    """Two directories: ``processes/ID`` and ``exits/ID``."""

    def __init__(self, state: str) -> None:
        self._processes = _directory(state, "processes")
        self._exits = _directory(state, "exits")

    def note(self, process_id: str, meta: Message) -> None:
        """Remember a process."""
        _write(self._processes, process_id, meta)

    def record(self, process_id: str, record: Message) -> None:
        """Remember an exit; it is there as a whole or not at all."""
        _write(self._exits, process_id, record)

    def forget(self, process_id: str) -> None:
        """Remove both; unknown ones are fine."""
        for directory in (self._processes, self._exits):
            try:
                os.unlink(process_id, dir_fd=directory)
            except FileNotFoundError:
                continue

    def processes(self) -> dict[str, Message]:
        """Return all notes; what is broken is left out."""
        return _read_all(self._processes)

    def exits(self) -> dict[str, Message]:
        """Return all exits; what is broken is left out: its code is unknown then."""
        return _read_all(self._exits)


def _directory(state: str, name: str) -> int:
    path = os.path.join(state, name)
    os.makedirs(path, mode=0o700, exist_ok=True)
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _write(directory: int, name: str, value: Message) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(_NEW, flags, 0o600, dir_fd=directory)
        try:
            os.write(fd, json.dumps(value).encode())
        finally:
            os.close(fd)
        os.rename(_NEW, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError as error:
        # A full disk: memory has it, so it is lost only if we die, too.
        note(f"{name}: could not be written down: {error}")


def _read_all(directory: int) -> dict[str, Message]:
    found: dict[str, Message] = {}
    listing = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        names = os.listdir(listing)
    finally:
        os.close(listing)
    for name in names:
        if not is_identifier(name):
            continue
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        except OSError:
            continue
        try:
            value = json.loads(os.read(fd, 1 << 20))
        except (OSError, ValueError):
            continue
        finally:
            os.close(fd)
        if isinstance(value, dict):
            found[name] = value
    return found
