"""Clocks: a virtual one that a test moves, and the host's. Both fit `polypod.lifecycle.clock.Clock`."""

from __future__ import annotations

import asyncio
import heapq
import itertools

from polypod.lifecycle.clock import Clock, SystemClock

__all__ = ["Clock", "SystemClock", "VirtualClock", "settle"]

_TURNS = 50


async def settle(turns: int = _TURNS) -> None:
    """Let every task run that can run without time passing."""
    for _ in range(turns):
        await asyncio.sleep(0)


class VirtualClock:
    """Time that stands still until `advance` moves it."""

    def __init__(self, start_s: float = 1_000_000.0) -> None:
        self._start_s = start_s
        self._now_s = start_s
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now_ns(self) -> int:
        """Return nanoseconds since the epoch; the epoch is virtual as well."""
        return int(self._now_s * 1_000_000_000)

    def monotonic(self) -> float:
        """Return seconds since the clock was made."""
        return self._now_s - self._start_s

    async def sleep(self, seconds: float, /) -> None:
        """Return when the clock was moved so far."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now_s + seconds, next(self._order), woken))
        await woken

    async def advance(self, seconds: float) -> None:
        """Move the time; sleepers wake in order, each at its own moment."""
        end_s = self._now_s + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end_s:
            self._now_s, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                woken.set_result(None)
                await settle()
        self._now_s = end_s
        await settle()
