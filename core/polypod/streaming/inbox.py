"""What has come for one stream and is not used yet: bounded, so that a slow reader slows its peer down."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

LIMIT_BYTES = 128 * 1024


class Inbox:
    """One writer (the connection's reader), one reader (whoever uses the bytes)."""

    def __init__(self, used: Callable[[int], None] = lambda _count: None) -> None:
        """Make an empty one; ``used`` is told how many bytes were taken out."""
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._used = used
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._unwanted = False
        self.ended = False

    async def put(self, data: bytes) -> None:
        """Add bytes; returns when there is room for more. Those that nobody wants are dropped."""
        if self._unwanted or self.ended:
            self._used(len(data))
            return
        self._pieces.append(data)
        self._size += len(data)
        self._changed.set()
        if self._size >= LIMIT_BYTES:
            self._room.clear()
            await self._room.wait()

    def end(self) -> None:
        """Nothing comes any more. Idempotent."""
        self.ended = True
        self._changed.set()
        self._room.set()

    def discard(self) -> None:
        """Nobody reads any more: drop what is there and what will come. Idempotent."""
        self._unwanted = True
        dropped, self._size = self._size, 0
        self._pieces.clear()
        if dropped:
            self._used(dropped)
        self._changed.set()
        self._room.set()

    async def get(self) -> bytes:
        """Return some bytes, waiting for them; ``b""`` at the end."""
        while not self._pieces:
            if self.ended or self._unwanted:
                return b""
            self._changed.clear()
            await self._changed.wait()
        data = self._pieces.popleft()
        self._size -= len(data)
        if self._size < LIMIT_BYTES:
            self._room.set()
        self._used(len(data))
        return data
