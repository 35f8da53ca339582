"""A running exec: its end, its signals, its terminal's size."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal as signals
import struct
import termios

from polypod.plugin import ExitStatus, FailedPrecondition, Launched, NotFound, Supervisor
from polypod_oci.cgroups import Cgroups


class ExecSession:
    """Implements `Session`. A child cgroup holds it and what it leaves behind, where the runtime can that."""

    def __init__(
        self, supervisor: Supervisor, cgroups: Cgroups, launched: Launched, group: str
    ) -> None:
        self._supervisor = supervisor
        self._cgroups = cgroups
        self._process_id = launched.process_id
        self._pid = launched.pid
        self._group = group
        if launched.pidfd >= 0:
            os.close(launched.pidfd)
        self._end: asyncio.Task[ExitStatus] = asyncio.ensure_future(self._ended())

    async def wait(self) -> ExitStatus:
        """See `Session.wait`."""
        return await asyncio.shield(self._end)

    async def kill(self, signal: int, /) -> None:
        """See `Session.kill`: also what the exec left in the background."""
        if self._group:
            await asyncio.to_thread(self._cgroups.kill, self._group, signal)
        elif not self._end.done():
            try:
                await self._supervisor.kill(self._process_id, signal)
            except NotFound:
                return
        if signal == signals.SIGKILL:
            await self.wait()
            self._forget_group()

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
        try:
            await self._supervisor.forget(self._process_id)
        except NotFound:
            return status
        # A background child keeps the cgroup; it goes with the container then.
        self._forget_group()
        return status

    def _forget_group(self) -> None:
        if self._group:
            self._cgroups.remove_if_empty(self._group)
