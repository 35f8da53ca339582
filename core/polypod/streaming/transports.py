"""Bytes to and from the peer: a socket, or the messages of a WebSocket that a connection is tunnelled in."""

from __future__ import annotations

import asyncio
import contextlib
import select
from typing import Protocol

from polypod.streaming.errors import Gone, ProtocolError
from polypod.streaming.protocols import Dialect
from polypod.streaming.websocket import ChannelData, Closed, WebSocket

READ_BYTES = 64 * 1024
_FLOOD_BYTES = 1024 * 1024
"""Of answers (to pings, to streams) that the peer does not take: more than any honest one lets stand."""


class Transport(Protocol):
    """A stream of bytes in both directions. Writing is immediate and ordered; `drain` holds back."""

    async def receive(self) -> bytes:
        """Return some bytes; ``b""`` at the end."""
        ...

    def write(self, data: bytes, /) -> None:
        """Send bytes. Never waits: callers with more to say call `drain` in between."""
        ...

    async def drain(self) -> None:
        """Return when the peer has taken most of what was written.

        Raises:
            Gone: it never will.
        """
        ...

    def peer_sends_no_more(self) -> bool:
        """Tell whether the peer has closed, without reading what it has sent before."""
        ...


class SocketTransport:
    """A TCP or TLS connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes = b""
    ) -> None:
        """Take a connection; ``first`` was read of it already."""
        self._reader = reader
        self._writer = writer
        self._first = first
        self.active = 0
        """Grows with every byte that comes in or goes out: an idle connection is one where it stands."""

    async def receive(self) -> bytes:
        """See `Transport.receive`. A peer that vanishes is one that has ended."""
        data, self._first = self._first, b""
        if not data:
            try:
                data = await self._reader.read(READ_BYTES)
            except OSError:
                return b""
        self.active += len(data)
        return data

    def write(self, data: bytes, /) -> None:
        """See `Transport.write`."""
        if not data:
            return
        self._writer.write(data)
        self.active += len(data)
        if self._writer.transport.get_write_buffer_size() > _FLOOD_BYTES + len(data):
            self._writer.transport.abort()

    async def drain(self) -> None:
        """See `Transport.drain`."""
        try:
            await self._writer.drain()
        except OSError as error:
            raise Gone(str(error)) from error

    def peer_sends_no_more(self) -> bool:
        """See `Transport.peer_sends_no_more`."""
        poll = select.poll()
        poll.register(
            self._writer.get_extra_info("socket").fileno(),
            select.POLLRDHUP | select.POLLHUP | select.POLLERR,
        )
        return bool(poll.poll(0))

    async def close(self, linger_s: float) -> None:
        """Send what is left, tell the end, wait for the peer's, then close.

        A socket that is closed with unread bytes in it resets the connection, and the peer would lose
        what it has not read yet; so read on for a while.
        """
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(linger_s):
                await self._writer.drain()
                if self._writer.can_write_eof():
                    self._writer.write_eof()
                while await self._reader.read(READ_BYTES):
                    pass
        await self.abort()

    async def abort(self) -> None:
        """Close at once. Idempotent."""
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class TunnelTransport:
    """A WebSocket's binary messages as one stream of bytes."""

    def __init__(self, inner: Transport, dialect: Dialect, *, client: bool = False) -> None:
        """Tunnel through a transport whose handshake is over."""
        self._inner = inner
        self._ws = WebSocket(dialect, client=client)
        self._ended = False

    async def receive(self) -> bytes:
        """See `Transport.receive`."""
        while not self._ended:
            found = bytearray()
            data = await self._inner.receive()
            if not data:
                break
            try:
                for event in self._ws.receive(data):
                    if isinstance(event, ChannelData):
                        found += event.data
                    elif isinstance(event, Closed):
                        self._ended = True
            except ProtocolError:
                self._ended = True
                raise
            finally:
                self._inner.write(self._ws.bytes_to_send())
            if found:
                return bytes(found)
        return b""

    def write(self, data: bytes, /) -> None:
        """See `Transport.write`."""
        if data:
            self._ws.send(0, data)
            self._inner.write(self._ws.bytes_to_send())

    async def drain(self) -> None:
        """See `Transport.drain`."""
        await self._inner.drain()

    def peer_sends_no_more(self) -> bool:
        """See `Transport.peer_sends_no_more`."""
        return self._inner.peer_sends_no_more()

    def end(self) -> None:
        """Tell the peer the end."""
        self._ws.close()
        self._inner.write(self._ws.bytes_to_send())
