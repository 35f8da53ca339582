"""Undo what a failed operation has made: newest first, whatever happens on the way.

::

    async with Rollback("run sandbox 12ab", clock, deadline_s=30) as undo:
        names.reserve(name)
        undo.push("release the name", lambda: names.release(name))
        …
        undo.commit()          # nothing is undone after this

The steps run when the block is left without `commit`, by an error or by cancellation. They are
shielded from further cancellation, have a deadline of their own, and go on after a failed step. What
failed stands in `failures`: the caller keeps the record then, so that the object stays listed and
removable.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from polypod.lifecycle.clock import Clock, within

log = logging.getLogger(__name__)

Undo = Callable[[], Awaitable[None] | None]


class Rollback:
    """A stack of named undo steps."""

    def __init__(self, what: str, clock: Clock, *, deadline_s: float) -> None:
        """Make an empty stack.

        Args:
            what: the operation and its id, for the log.
            clock: measures the deadline.
            deadline_s: seconds that each single step may take.
        """
        self.failures: list[tuple[str, BaseException]] = []
        self._what = what
        self._clock = clock
        self._deadline_s = deadline_s
        self._steps: list[tuple[str, Undo]] = []
        self._committed = False

    def push(self, name: str, undo: Undo) -> None:
        """Add a step. Push it *before* what it undoes may have happened; undo must be idempotent."""
        self._steps.append((name, undo))

    def commit(self) -> None:
        """Keep everything: no step will run."""
        self._committed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._committed:
            return
        if await shielded(self._unwind()) and error is None:
            raise asyncio.CancelledError

    async def _unwind(self) -> None:
        while self._steps:
            name, undo = self._steps.pop()
            try:
                await within(self._clock, self._deadline_s, _run(undo))
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the older steps must run too
                log.warning("undo failed operation=%r step=%r error=%r", self._what, name, error)
                self.failures.append((name, error))


async def shielded(work: Awaitable[None]) -> bool:
    """Run to the end whatever the caller's task is told; return whether it was cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise
            cancelled = True
    task.result()
    return cancelled


async def _run(undo: Undo) -> None:
    outcome = undo()
    if outcome is not None:
        await outcome
