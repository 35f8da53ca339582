"""Which processes are known and how they ended: the daemon's memory of what the keeper tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from polypod.plugin.ids import ProcessId
from polypod.plugin.services import ExitStatus, ProcessExit


class Exits:
    """One entry per process until it is forgotten; news of processes that are not known are dropped."""

    def __init__(self) -> None:
        self._known: set[ProcessId] = set()
        self._launching: set[ProcessId] = set()
        self._ended: dict[ProcessId, ExitStatus] = {}
        self._waiters: dict[ProcessId, list[asyncio.Future[ExitStatus]]] = {}
        self._listeners: list[asyncio.Queue[ProcessExit | None]] = []

    def know(self, process_id: ProcessId) -> None:
        """Take note of a process that runs or ran."""
        self._known.add(process_id)

    def is_known(self, process_id: ProcessId) -> bool:
        """Tell whether an id is taken."""
        return process_id in self._known

    def begin(self, process_id: ProcessId) -> None:
        """A launch begins: an end is remembered, and told once it has succeeded."""
        self._known.add(process_id)
        self._launching.add(process_id)

    def succeed(self, process_id: ProcessId) -> None:
        """A launch has succeeded."""
        self._launching.discard(process_id)
        ended = self._ended.get(process_id)
        if ended is not None:
            self._tell(process_id, ended)

    def note(self, process_id: ProcessId, status: ExitStatus) -> None:
        """A process is gone; told once."""
        if process_id not in self._known or process_id in self._ended:
            return
        self._ended[process_id] = status
        if process_id not in self._launching:
            self._tell(process_id, status)

    def _tell(self, process_id: ProcessId, status: ExitStatus) -> None:
        for queue in self._listeners:
            queue.put_nowait(ProcessExit(process_id, status))
        for future in self._waiters.pop(process_id, []):
            if not future.done():
                future.set_result(status)

    def status(self, process_id: ProcessId) -> ExitStatus | None:
        """Return how a process ended, if it did."""
        return self._ended.get(process_id)

    def waiter(self, process_id: ProcessId) -> asyncio.Future[ExitStatus] | None:
        """Return what is set when a process ends; None for an unknown one."""
        if process_id not in self._known:
            return None
        future: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(process_id, []).append(future)
        return future

    def forget(self, process_id: ProcessId) -> None:
        """Drop everything; who still waits is told that the end is unknown."""
        self._known.discard(process_id)
        self._launching.discard(process_id)
        ended = self._ended.pop(process_id, ExitStatus(None))
        for future in self._waiters.pop(process_id, []):
            if not future.done():
                future.set_result(ended)

    async def listen(self) -> AsyncIterator[ProcessExit]:
        """Yield each exit, first those that are not forgotten yet, until `close`."""
        queue: asyncio.Queue[ProcessExit | None] = asyncio.Queue()
        for process_id, status in self._ended.items():
            if process_id not in self._launching:
                queue.put_nowait(ProcessExit(process_id, status))
        self._listeners.append(queue)
        try:
            while True:
                item = await queue.get()
                if item is None:
                    return
                yield item
        finally:
            self._listeners.remove(queue)

    def close(self) -> None:
        """End every `listen`."""
        for queue in self._listeners:
            queue.put_nowait(None)
