"""What has come and is not used yet: bounded, so that a slow reader slows its peer down.

Reading stops for a whole connection when one of its streams is full: its bytes come in one order. That
is how Kubernetes' own servers do it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

STREAM_BYTES = 128 * 1024
CONNECTION_BYTES = 1024 * 1024
"""All streams of one connection together, in case that there are thousands."""


class Budget:
    """What the inboxes of one connection hold together."""

    def __init__(self, limit: int = CONNECTION_BYTES) -> None:
        self.held = 0
        self._limit = limit
        self._changed = asyncio.Event()

    @property
    def is_spent(self) -> bool:
        """Whether nothing more should be read."""
        return self.held >= self._limit

    def add(self, count: int) -> None:
        """Hold more, or (a negative count) less."""
        self.held += count
        if count < 0:
            self.changed()

    def changed(self) -> None:
        """Wake who waits for room."""
        self._changed.set()

    async def change(self) -> None:
        """Return when less is held than now, or an inbox wants nothing any more."""
        self._changed.clear()
        await self._changed.wait()


class Inbox:
    """One writer (the connection's reader), one reader (whoever uses the bytes)."""

    def __init__(
        self, budget: Budget | None = None, used: Callable[[int], None] = lambda _count: None
    ) -> None:
        """Make an empty one; ``used`` is told how many bytes were taken out, or dropped."""
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._budget = budget or Budget()
        self._used = used
        self._changed = asyncio.Event()
        self._unwanted = False
        self.ended = False

    @property
    def is_full(self) -> bool:
        """Whether nothing more should be read from the connection for now."""
        if self._unwanted or self.ended:
            return False
        return self._size >= STREAM_BYTES or self._budget.is_spent

    def put(self, data: bytes) -> None:
        """Add bytes. Those that nobody wants are dropped."""
        if self._unwanted or self.ended:
            self._used(len(data))
            return
        self._pieces.append(data)
        self._size += len(data)
        self._budget.add(len(data))
        self._changed.set()

    def end(self) -> None:
        """Nothing comes any more. Idempotent."""
        self.ended = True
        self._changed.set()
        self._budget.changed()

    def discard(self) -> None:
        """Nobody reads any more: drop what is there and what will come. Idempotent."""
        self._unwanted = True
        dropped, self._size = self._size, 0
        self._pieces.clear()
        self._budget.add(-dropped)
        if dropped:
            self._used(dropped)
        self._changed.set()
        self._budget.changed()

    async def get(self) -> bytes:
        """Return some bytes, waiting for them; ``b""`` at the end."""
        while not self._pieces:
            if self.ended or self._unwanted:
                return b""
            self._changed.clear()
            await self._changed.wait()
        data = self._pieces.popleft()
        self._size -= len(data)
        self._budget.add(-len(data))
        self._used(len(data))
        return data
