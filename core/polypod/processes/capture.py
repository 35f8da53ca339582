"""The output of one exec, read by the daemon itself: a log disk that hangs never stops a probe."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import termios

from polypod.plugin.services import Stdio

_READ_BYTES = 64 * 1024
_MARK = b"\n[polypod: output cut off here]\n"
_DISCARD_S = 0.01
"""How often the pipe of a process that wrote too much is emptied: it neither blocks nor burns our CPU."""


class Capture:
    """See `polypod.lifecycle.ports.Captured`."""

    def __init__(self, *, limit_bytes: int) -> None:
        """Make the pipes; a running event loop reads them at once."""
        out_read, out_write = os.pipe2(os.O_CLOEXEC)
        try:
            err_read, err_write = os.pipe2(os.O_CLOEXEC)
        except OSError:
            os.close(out_read)
            os.close(out_write)
            raise
        self._process_ends: list[int] = [out_write, err_write]
        self.stdio = Stdio(stdout=out_write, stderr=err_write)
        self._outputs = (_Output(out_read, limit_bytes), _Output(err_read, limit_bytes))

    def started(self) -> None:
        """See `polypod.lifecycle.ports.Captured.started`."""
        ends, self._process_ends = self._process_ends, []
        for fd in ends:
            os.close(fd)

    async def collect(self) -> tuple[bytes, bytes]:
        """See `polypod.lifecycle.ports.Captured.collect`."""
        self.started()
        stdout, stderr = (output.collect() for output in self._outputs)
        return stdout, stderr

    def close(self) -> None:
        """See `polypod.lifecycle.ports.Captured.close`."""
        self.started()
        for output in self._outputs:
            output.close()


class _Output:
    """One pipe and what came out of it."""

    def __init__(self, fd: int, limit: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._limit = limit
        self._kept = bytearray()
        self._cut = False
        self._later: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._read)

    def _read(self) -> None:
        if self._take() == 0:
            self.close()
        elif self._cut:
            self._loop.remove_reader(self._fd)
            self._later = self._loop.call_later(_DISCARD_S, self._resume)

    def _resume(self) -> None:
        self._later = None
        self._loop.add_reader(self._fd, self._read)

    def _take(self) -> int:
        """Read once; return the number of bytes, 0 at the end, -1 if there is nothing now."""
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return -1
        room = self._limit - len(self._kept)
        if len(data) > room:
            self._cut = True
        self._kept += data[: max(room, 0)]
        return len(data)

    def collect(self) -> bytes:
        """Take what stands in the pipe now, and no more: a background child may write for ever."""
        pending = self._pending()
        while self._fd >= 0 and pending > 0:
            taken = self._take()
            if taken <= 0:
                break
            pending -= taken
        if self._cut:
            room = max(self._limit - len(_MARK), 0)
            return bytes(self._kept[:room]) + _MARK[: self._limit]
        return bytes(self._kept)

    def _pending(self) -> int:
        if self._fd < 0:
            return 0
        answer = fcntl.ioctl(self._fd, termios.FIONREAD, struct.pack("i", 0))
        count: int = struct.unpack("i", answer)[0]
        return count

    def close(self) -> None:
        """Close the pipe; what was read stays."""
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
