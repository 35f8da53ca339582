"""A running exec in a machine: its end, its signals, its terminal's size."""

from __future__ import annotations

import asyncio
import logging
import signal as signals

from polypod.plugin import ExecId, ExitStatus, PolypodError
from polypod_vm.machine import Machine

_log = logging.getLogger(__name__)


class ExecSession:
    """Implements `Session`."""

    def __init__(self, machine: Machine, exec_id: ExecId) -> None:
        self.machine = machine
        self._id = exec_id
        self._end: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self._forgetting: asyncio.Task[None] | None = None

    async def wait(self) -> ExitStatus:
        """See `Session.wait`."""
        return await asyncio.shield(self._end)

    async def kill(self, signal: int, /) -> None:
        """See `Session.kill`: also what the exec left in the background."""
        if self.machine.dead:
            return
        request = {"op": "kill", "process": self._id, "signal": signal, "whole": True}
        await self.machine.call(request)
        if signal == signals.SIGKILL:
            await self.wait()

    async def resize(self, *, width: int, height: int) -> None:
        """See `Session.resize`."""
        request = {"op": "resize", "process": self._id, "width": width, "height": height}
        await self.machine.call(request)

    def ended(self, status: ExitStatus) -> None:
        """Its first process is gone."""
        if not self._end.done():
            self._end.set_result(status)
            self._forgetting = asyncio.get_running_loop().create_task(self._forget())

    async def _forget(self) -> None:
        try:
            await self.machine.call({"op": "delete", "process": self._id})
        except PolypodError as error:
            _log.debug("exec %s: %s", self._id, error)
