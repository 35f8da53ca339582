"""A running exec: its end, its signals, its terminal's size."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal as signals
import stat
import struct
import termios

from polypod.backend.cgroups import Cgroups
from polypod.plugin.errors import FailedPrecondition, NotFound, Unavailable
from polypod.plugin.services import ExitStatus, Launched, Supervisor

# linux/major.h: the peers of pseudo-terminals.
_TERMINALS = range(136, 144)


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
        if self._end.done():
            raise NotFound(f"exec {self._process_id}: it is gone")
        try:
            terminal = _terminal_of(self._pid)
        except OSError as error:
            raise NotFound(f"exec {self._process_id}: it is gone") from error
        if terminal < 0:
            raise FailedPrecondition(f"exec {self._process_id}: its stdin is no terminal")
        try:
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


def _terminal_of(pid: int) -> int:
    """Open the terminal that a process has as stdin, whoever holds its master; -1 if it has none.

    What a container has put there may be anything, and opening it might hang us or do something: so
    it is looked at before it is opened, and opened by what was looked at (E4).
    """
    place = os.open(f"/proc/{pid}/fd/0", os.O_PATH | os.O_CLOEXEC)
    try:
        found = os.fstat(place)
        if not stat.S_ISCHR(found.st_mode) or os.major(found.st_rdev) not in _TERMINALS:
            return -1
        return os.open(f"/proc/self/fd/{place}", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    finally:
        os.close(place)
