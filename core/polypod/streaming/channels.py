"""Streams of one connection for those who use them, whatever carries them: SPDY streams, WebSocket channels."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from polypod.streaming import spdy, websocket
from polypod.streaming.errors import Gone
from polypod.streaming.inbox import Budget, Inbox
from polypod.streaming.protocols import Dialect
from polypod.streaming.spdy_frames import Status
from polypod.streaming.transports import Transport

MESSAGE_BYTES = 32 * 1024
"""The longest WebSocket message that we send."""
PATIENCE_S = 10
"""For the last bytes of a peer that has closed to be used."""


class Channel(Protocol):
    """One stream."""

    inbox: Inbox
    """What the peer sends; ends with its end of the stream."""

    async def write(self, data: bytes, /) -> None:
        """Send bytes; returns when more may be sent.

        Raises:
            Gone: the peer wants no more of this stream, or has left.
        """
        ...

    def end(self) -> None:
        """Send nothing more. Idempotent."""
        ...


async def deliver(transport: Transport, budget: Budget, inbox: Inbox, data: bytes) -> None:
    """Put bytes into an inbox; returns when there is room for more.

    Meanwhile nothing is read, so the end of the connection would go unseen: it is asked for. A peer that
    has closed may still want its last bytes used; after a while it is taken for gone.

    Raises:
        Gone: the peer has left, and what it sent is not used up.
    """
    inbox.put(data)
    patience = PATIENCE_S
    while inbox.is_full and patience > 0:
        before = budget.held
        try:
            async with asyncio.timeout(1):
                await budget.change()
        except TimeoutError:
            patience -= 1 if transport.peer_sends_no_more() else 0
        if budget.held < before:
            patience = PATIENCE_S
    if patience <= 0:
        raise Gone("the peer has left, and what it sent is not used up")


class SpdyChannel:
    """A SPDY stream."""

    def __init__(self, link: SpdyLink, number: int, headers: Mapping[str, str]) -> None:
        self.number = number
        self.headers = headers
        self.inbox = Inbox(link.budget, partial(link.consumed, number))
        self.accepted = asyncio.Event()
        self.is_reset = False
        self._link = link

    async def write(self, data: bytes, /) -> None:
        """See `Channel.write`."""
        while data:
            if self.is_reset:
                raise Gone(f"stream {self.number} was reset")
            data = data[await self._link.send(self.number, data) :]

    def end(self) -> None:
        """See `Channel.end`."""
        self._link.end(self.number)

    def reset(self) -> None:
        """End both directions at once, and drop what has come. Idempotent."""
        self.closed()
        self.inbox.discard()
        self._link.reset(self.number)

    def closed(self) -> None:
        """Nothing comes and nothing goes any more."""
        self.is_reset = True
        self.inbox.end()
        self.accepted.set()


class SpdyLink:
    """A SPDY connection: `run` it, and it tells of streams."""

    def __init__(
        self,
        transport: Transport,
        opened: Callable[[SpdyChannel], bool] = lambda _channel: False,
        *,
        client: bool = False,
    ) -> None:
        """Use a transport; ``opened`` says whether a stream of the peer's is wanted."""
        self._transport = transport
        self._spdy = spdy.Connection(client=client)
        self._opened = opened
        self._channels: dict[int, SpdyChannel] = {}
        self.budget = Budget()
        self._window = asyncio.Event()
        self.over = asyncio.Event()
        """The peer has left."""

    async def run(self) -> None:
        """Read until the peer leaves.

        Raises:
            ProtocolError: the peer broke the rules; it has been told.
        """
        try:
            while data := await self._transport.receive():
                try:
                    for event in self._spdy.receive(data):
                        await self._handle(event)
                finally:
                    self._flush()
        finally:
            self.over.set()
            for channel in self._channels.values():
                channel.closed()
            self._wake_senders()

    async def _handle(self, event: spdy.Event) -> None:
        match event:
            case spdy.StreamOpened(number, headers, ended):
                self._stream_opened(number, headers, ended=ended)
            case spdy.StreamAccepted(number):
                self._with(number, lambda channel: channel.accepted.set())
            case spdy.DataReceived(number, data):
                channel = self._channels.get(number)
                if channel is None:
                    self._spdy.consumed(number, len(data))
                else:
                    self._flush()
                    await deliver(self._transport, self.budget, channel.inbox, data)
            case spdy.StreamEnded(number):
                self._with(number, lambda channel: channel.inbox.end())
                self._forget_closed(number)
            case spdy.StreamReset(number):
                self._with(number, SpdyChannel.closed)
                self._channels.pop(number, None)
                self._wake_senders()
            case spdy.WindowOpened():
                self._wake_senders()
            case spdy.PeerLeaves():
                pass  # its streams go on

    def _stream_opened(self, number: int, headers: Mapping[str, str], *, ended: bool) -> None:
        channel = SpdyChannel(self, number, headers)
        if ended:
            channel.inbox.end()
        self._channels[number] = channel
        if self._opened(channel):
            self._spdy.accept(number)
        else:
            del self._channels[number]
            self._spdy.reset(number, Status.REFUSED_STREAM)

    def _with(self, number: int, do: Callable[[SpdyChannel], None]) -> None:
        channel = self._channels.get(number)
        if channel is not None:
            do(channel)

    async def open(self, headers: Mapping[str, str]) -> SpdyChannel:
        """Open a stream of ours; returns when the peer has accepted it.

        Raises:
            Gone: it refused, or has left.
        """
        if self.over.is_set():
            raise Gone("the connection has ended")
        number = self._spdy.open(headers)
        channel = self._channels[number] = SpdyChannel(self, number, headers)
        self._flush()
        await channel.accepted.wait()
        if channel.is_reset:
            raise Gone(f"the peer refused stream {number}")
        return channel

    async def send(self, number: int, data: bytes) -> int:
        """Send what may be sent of these bytes, return how many; waits where nothing may."""
        if self.over.is_set():
            raise Gone("the connection has ended")
        window = self._window
        count = self._spdy.send(number, data)
        self._flush()
        await self._transport.drain()
        if not count:
            await window.wait()
        return count

    def _wake_senders(self) -> None:
        self._window.set()
        self._window = asyncio.Event()

    def end(self, number: int) -> None:
        """See `SpdyChannel.end`."""
        self._spdy.end(number)
        self._flush()
        self._forget_closed(number)

    def _forget_closed(self, number: int) -> None:
        if not self._spdy.is_open(number):
            self._channels.pop(number, None)

    def reset(self, number: int) -> None:
        """See `SpdyChannel.reset`."""
        self._spdy.reset(number)
        self._channels.pop(number, None)
        self._flush()

    def consumed(self, number: int, count: int) -> None:
        """Bytes of a stream were used: the peer may send more."""
        self._spdy.consumed(number, count)
        self._flush()

    def finish(self) -> None:
        """End every stream and take no more. Idempotent."""
        for number, channel in list(self._channels.items()):
            channel.inbox.discard()
            self._spdy.end(number)
        self._spdy.leave()
        self._flush()

    def _flush(self) -> None:
        if not self.over.is_set():
            self._transport.write(self._spdy.bytes_to_send())


class SocketChannel:
    """A channel of a WebSocket."""

    def __init__(self, link: ChannelLink, number: int) -> None:
        self.inbox = Inbox(link.budget)
        self._link = link
        self._number = number
        self._ended = False

    async def write(self, data: bytes, /) -> None:
        """See `Channel.write`."""
        for at in range(0, len(data), MESSAGE_BYTES):
            await self._link.send(self._number, data[at : at + MESSAGE_BYTES])

    def end(self) -> None:
        """See `Channel.end`."""
        if not self._ended:
            self._ended = True
            self._link.end(self._number)


class ChannelLink:
    """A WebSocket whose messages are channels: `run` it."""

    def __init__(
        self, transport: Transport, dialect: Dialect, channels: int, *, client: bool = False
    ) -> None:
        """Use a transport; there are so many channels, and what comes for others is dropped."""
        self._transport = transport
        self._ws = websocket.WebSocket(dialect, client=client)
        self.budget = Budget()
        self.channels = [SocketChannel(self, number) for number in range(channels)]
        self._over = False

    async def run(self) -> None:
        """Read until the peer leaves.

        Raises:
            ProtocolError: the peer broke the rules; it has been told.
        """
        try:
            while data := await self._transport.receive():
                try:
                    for event in self._ws.receive(data):
                        if isinstance(event, websocket.Closed):
                            return
                        await self._handle(event)
                finally:
                    self._flush()
        finally:
            self._over = True
            for channel in self.channels:
                channel.inbox.end()

    async def _handle(self, event: websocket.ChannelData | websocket.ChannelClosed) -> None:
        if event.channel >= len(self.channels):
            return
        inbox = self.channels[event.channel].inbox
        if isinstance(event, websocket.ChannelData):
            self._flush()
            await deliver(self._transport, self.budget, inbox, event.data)
        else:
            inbox.end()

    async def send(self, number: int, data: bytes) -> None:
        """Send one message; an empty one, too."""
        if self._over:
            raise Gone("the connection has ended")
        self._ws.send(number, data)
        self._flush()
        await self._transport.drain()

    def end(self, number: int) -> None:
        """See `SocketChannel.end`."""
        self._ws.end(number)
        self._flush()

    def finish(self) -> None:
        """Take no more, and tell the end. Idempotent."""
        for channel in self.channels:
            channel.inbox.discard()
        self._ws.close()
        self._flush()

    def _flush(self) -> None:
        if not self._over:
            self._transport.write(self._ws.bytes_to_send())


Link = SpdyLink | ChannelLink
