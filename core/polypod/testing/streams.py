"""Descriptors without blocking the event loop, and the standard streams of a simulated process."""

from __future__ import annotations

import asyncio
import os
import pty
import socket
import tty
from collections.abc import Callable
from dataclasses import dataclass

from polypod.plugin.services import Stdio

READ_BYTES = 64 * 1024


async def write_all(fd: int, data: bytes) -> None:
    """Write everything, waiting where the pipe is full. BrokenPipeError where nobody reads."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            loop = asyncio.get_running_loop()
            await _ready(fd, loop.add_writer, loop.remove_writer)


async def read_some(fd: int, limit: int = READ_BYTES) -> bytes:
    """Return what can be read, waiting for the first byte; ``b""`` at the end."""
    while True:
        try:
            return os.read(fd, limit)
        except BlockingIOError:
            loop = asyncio.get_running_loop()
            await _ready(fd, loop.add_reader, loop.remove_reader)
        except OSError:  # EIO: the other side of a pty is gone
            return b""


async def _ready(fd: int, add: Callable[..., object], remove: Callable[[int], object]) -> None:
    """Wait for a descriptor. A duplicate is watched: two may wait for one, and the loop knows one."""
    loop = asyncio.get_running_loop()
    watched = os.dup(fd)
    ready: asyncio.Future[None] = loop.create_future()
    try:
        add(watched, _wake, ready)
        await ready
    finally:
        remove(watched)
        os.close(watched)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


@dataclass(slots=True)
class Streams:
    """Our own duplicates of a process' standard streams; None is the null device."""

    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    terminal: bool = False

    @classmethod
    def adopt(cls, stdio: Stdio) -> Streams:
        """Duplicate streams; with a console socket, make a pty and send its master there."""
        if stdio.console is not None:
            return cls._terminal(stdio.console)
        return cls(_own(stdio.stdin), _own(stdio.stdout), _own(stdio.stderr))

    @classmethod
    def _terminal(cls, console: int) -> Streams:
        master, slave = pty.openpty()
        try:
            tty.setraw(slave)
            with socket.socket(fileno=os.dup(console)) as sock:
                socket.send_fds(sock, [b"console"], [master])
            return cls(_own(slave), _own(slave), _own(slave), terminal=True)
        finally:
            os.close(master)
            os.close(slave)

    def close(self) -> None:
        """Close them. Idempotent."""
        for fd in (self.stdin, self.stdout, self.stderr):
            if fd is not None:
                os.close(fd)
        self.stdin = self.stdout = self.stderr = None


def _own(fd: int | None) -> int | None:
    if fd is None:
        return None
    own = os.dup(fd)
    os.set_blocking(own, False)
    return own
