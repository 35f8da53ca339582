"""A running exec: its end, its signals, its terminal's size."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal as signals
import struct
import termios

from polypod.plugin.errors import FailedPrecondition, NotFound, Unavailable
from polypod.plugin.services import ExitStatus, Launched, Supervisor
from polypod_namespaces.cgroups import Cgroups


class ExecSession:
    """Implements `Session`. Its own child cgroup holds it and everything that it leaves behind."""

    def __init__(
        self, supervisor: Supervisor, cgroups: Cgroups, launched: Launched, group: str
    ) -> None:
        self._supervisor = supervisor
        self._cgroups = cgroups
        self._process_id = launched.process_id
        self._pid = launched.pid
        self._group = group
        os.close(launched.pidfd)
        self._clearing: asyncio.Task[None] | None = None
        self._end: asyncio.Task[ExitStatus] = asyncio.ensure_future(self._ended())

    async def wait(self) -> ExitStatus:
        """See `Session.wait`."""
        return await asyncio.shield(self._end)

    async def kill(self, signal: int, /) -> None:
        """See `Session.kill`: also what the exec left in the background."""
        await asyncio.to_thread(self._cgroups.kill, self._group, signal)
        if signal == signals.SIGKILL:
            await self.wait()
            await asyncio.to_thread(self._cgroups.remove_quietly, self._group)

    async def resize(self, *, width: int, height: int) -> None:
        """See `Session.resize`."""
        try:
            # The terminal itself, whoever holds its master.
            terminal = os.open(f"/proc/{self._pid}/fd/0", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            raise NotFound(f"exec {self._process_id}: it is gone") from error
        try:
            if not os.isatty(terminal):
                raise FailedPrecondition(f"exec {self._process_id}: it has no terminal")
            size = struct.pack("HHHH", height, width, 0, 0)
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)
        finally:
            os.close(terminal)

    async def _ended(self) -> ExitStatus:
        status = await self._supervisor.wait(self._process_id)
        # Nobody waits for that: a probe's answer is due now.
        self._clearing = asyncio.ensure_future(self._clear())
        return status

    async def _clear(self) -> None:
        with contextlib.suppress(NotFound, Unavailable):
            await self._supervisor.forget(self._process_id)
        # A background child keeps the cgroup; it goes with the container then.
        self._cgroups.remove_quietly(self._group)
