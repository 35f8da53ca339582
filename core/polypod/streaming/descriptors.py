"""Pipes and terminals without blocking the event loop."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import termios

READ_BYTES = 64 * 1024


class Source:
    """The end of a pipe or terminal that is read from; the descriptor stays its owner's."""

    def __init__(self, fd: int) -> None:
        """Use a descriptor; it becomes non-blocking."""
        os.set_blocking(fd, False)
        self._fd = fd
        self._left: int | None = None
        """Once `finish` was called: how much may still be read."""
        self._waiting: asyncio.Future[None] | None = None

    async def read(self) -> bytes:
        """Return some bytes, waiting for the first; ``b""`` at the end."""
        while self._left != 0:
            try:
                data = os.read(self._fd, min(READ_BYTES, self._left or READ_BYTES))
            except BlockingIOError:
                if self._left is not None:
                    return b""
                await self._readable()
                continue
            except OSError:  # EIO: nobody has the terminal open any more
                return b""
            if self._left is not None:
                self._left -= len(data)
            return data
        return b""

    def finish(self) -> None:
        """End with what is there now: a background child may hold the other end for ever. Idempotent."""
        if self._left is None:
            self._left = _pending(self._fd)
            if self._waiting is not None and not self._waiting.done():
                self._waiting.set_result(None)

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        loop.add_reader(self._fd, _wake, self._waiting)
        try:
            await self._waiting
        finally:
            loop.remove_reader(self._fd)
            self._waiting = None


async def write_all(fd: int, data: bytes) -> None:
    """Write everything to a non-blocking descriptor, waiting where it is full.

    Raises:
        OSError: nobody reads.
    """
    view = memoryview(data)
    loop = asyncio.get_running_loop()
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            waiting: asyncio.Future[None] = loop.create_future()
            loop.add_writer(fd, _wake, waiting)
            try:
                await waiting
            finally:
                loop.remove_writer(fd)


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def _pending(fd: int) -> int:
    try:
        answer = fcntl.ioctl(fd, termios.FIONREAD, struct.pack("i", 0))
    except OSError:
        # It will not say: whatever a read gives then is the rest.
        return READ_BYTES
    count: int = struct.unpack("i", answer)[0]
    return count
