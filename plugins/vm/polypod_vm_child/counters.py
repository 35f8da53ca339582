"""What a relay has to know of its predecessor, in a small file that is mapped into memory.

A store into the mapping is there for whoever maps it next, however we end: it costs nothing, and no system
call stands between what was done and the note of it. The file dies with the machine's directory.
"""

from __future__ import annotations

import mmap
import os

_SLOTS = 4096
_SLOT_BYTES = 8
_EPOCH, _STREAM, _FIRST = range(3)


class Counters:
    """Numbers of 64 bits: the epoch, the last stream's number, and one for each stream that there is."""

    def __init__(self, path: str) -> None:
        """Map the file, which is made if it is not there."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(fd, _SLOTS * _SLOT_BYTES)
            self._map = mmap.mmap(fd, _SLOTS * _SLOT_BYTES)
        finally:
            os.close(fd)
        # One aligned store each: never half a number.
        self._numbers = memoryview(self._map).cast("Q")
        self._free = list(range(_SLOTS - 1, _FIRST - 1, -1))

    def next_epoch(self) -> int:
        """Return the number of a new connection: one more than the last one's."""
        self._numbers[_EPOCH] += 1
        return self._numbers[_EPOCH]

    def next_stream(self) -> int:
        """Return an even number that no stream has had."""
        self._numbers[_STREAM] += 2
        return self._numbers[_STREAM]

    def take(self) -> int:
        """Return a slot that counts from 0.

        Raises:
            IndexError: there are no more.
        """
        slot = self._free.pop()
        self._numbers[slot] = 0
        return slot

    def keep(self, slot: int) -> None:
        """Go on with a predecessor's slot."""
        self._free.remove(slot)

    def give_back(self, slot: int) -> None:
        """Use a slot for others."""
        self._free.append(slot)

    def get(self, slot: int) -> int:
        """Return a count."""
        return self._numbers[slot]

    def set(self, slot: int, value: int) -> None:
        """Note a count."""
        self._numbers[slot] = value
