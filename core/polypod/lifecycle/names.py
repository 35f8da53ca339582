"""Names and joins: a create call that is repeated gets the first call's result.

The kubelet gives a call a deadline and repeats it with the same metadata. So the work runs in a task
that the server owns; every caller waits for it behind a shield. After the work has ended the name
leads to the finished object until that is removed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from polypod.plugin.errors import Unavailable

log = logging.getLogger(__name__)
T = TypeVar("T")


class Joins:
    """Operations in flight by key."""

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[Any]] = {}
        self._sharers: Counter[Hashable] = Counter()
        self._closed = False

    def running(self, key: Hashable) -> bool:
        """Return whether an operation of this key is in flight."""
        return key in self._running

    async def run(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Start ``work``, or join the one in flight under the same key, and return its result.

        A caller that is cancelled leaves; the work goes on.

        Raises:
            Unavailable: the server is stopping.
        """
        task: asyncio.Task[T] | None = self._running.get(key)
        if task is None:
            if self._closed:
                raise Unavailable("the server is stopping; try again")
            task = asyncio.get_running_loop().create_task(work())
            self._running[key] = task
            task.add_done_callback(lambda done: self._ended(key, done))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise Unavailable("the server was stopped during the call; try again") from None
            raise

    async def share(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Like `run`, but the work ends with the last caller who waits for it.

        For calls without a deadline of their own, which a client ends by hanging up: PullImage.
        """
        self._sharers[key] += 1
        try:
            return await self.run(key, work)
        finally:
            self._sharers[key] -= 1
            if not self._sharers[key]:
                del self._sharers[key]
                abandoned = self._running.pop(key, None)
                if abandoned is not None:
                    abandoned.cancel()

    async def close(self, grace_s: float) -> None:
        """Let what is in flight end within the grace, then cancel it: it is rolled back."""
        self._closed = True
        if self._running:
            await asyncio.wait(self._running.values(), timeout=grace_s)
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    def _ended(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        if self._running.get(key) is task:
            del self._running[key]
        if not task.cancelled() and task.exception() is not None:
            # Retrieved here too: every caller may have left. Those who stayed report it.
            log.debug("operation failed key=%r error=%r", key, task.exception())


class Names(Generic[T]):
    """Which object holds a name."""

    def __init__(self) -> None:
        self._held: dict[Hashable, T] = {}

    def holder(self, name: Hashable) -> T | None:
        """Return who holds a name, or None."""
        return self._held.get(name)

    def take(self, name: Hashable, holder: T) -> None:
        """Give a name; the caller has seen that it is free."""
        self._held[name] = holder

    def release(self, name: Hashable, holder: T) -> None:
        """Take a name back, if this holder still has it."""
        if self._held.get(name) == holder:
            del self._held[name]
