"""The client's side: connect to a URL of Exec, Attach or PortForward and talk. For the CLI, tests, tools."""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import h11

from polypod.lifecycle.clock import settle
from polypod.lifecycle.views import StreamChoice
from polypod.streaming import status
from polypod.streaming.channels import Channel, ChannelLink, Link, SpdyChannel, SpdyLink
from polypod.streaming.commands import ERROR, STDERR, STDIN, STDOUT
from polypod.streaming.errors import Gone, ProtocolError
from polypod.streaming.protocols import (
    PORT_FORWARD,
    SPDY,
    SPDY_COMMAND,
    STREAM_PROTOCOL_HEADER,
    TUNNEL_PREFIX,
    WEBSOCKET_COMMAND,
    WEBSOCKET_PORT_FORWARD,
    Dialect,
)
from polypod.streaming.sessions import CHANNEL_NUMBERS, expected_streams
from polypod.streaming.transports import SocketTransport, TunnelTransport

ANSWER_S = 30.0
"""For connecting and for the answer to the request."""
LEAVE_S = 1.0
_MAX_ANSWER_BYTES = 64 * 1024


class Refusal(Exception):
    """The server answered with an HTTP status instead of a stream."""

    def __init__(self, status_code: int, text: str) -> None:
        super().__init__(f"{status_code}: {text}")
        self.status = status_code


@asynccontextmanager
async def command(
    url: str,
    choice: StreamChoice,
    *,
    spdy: bool = False,
    protocol: str | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[RemoteCommandClient]:
    """Talk to an exec or attach.

    Args:
        url: as the server answered; it works once.
        choice: what was asked for.
        spdy: speak SPDY/3.1 instead of WebSocket.
        protocol: its version, by name; None = the newest.
        tls: for https.

    Raises:
        Refusal: the server does not want to.
        Gone: it is not there.
    """
    known = SPDY_COMMAND if spdy else WEBSOCKET_COMMAND
    dialect = next(each for each in known if protocol is None or each.name == protocol)
    transport = await _dial(url, _headers(spdy=spdy, protocol=dialect.name), tls)
    names = expected_streams(choice, dialect)
    link: Link = (
        SpdyLink(transport, client=True)
        if spdy
        else ChannelLink(transport, dialect, len(CHANNEL_NUMBERS), client=True)
    )
    async with _running(link, transport):
        channels = await _open(link, names)
        yield RemoteCommandClient(channels)


class RemoteCommandClient:
    """The streams of an exec or attach: `channels` by name (``stdin``, ``stdout``, ``resize`` …)."""

    def __init__(self, channels: Mapping[str, Channel]) -> None:
        self.channels = channels

    async def read(self, name: str) -> bytes:
        """Return all that still comes on a stream."""
        return await _rest_of(self.channels[name])

    async def write(self, data: bytes) -> None:
        """Write to stdin. Gone: nobody wants it."""
        await self.channels[STDIN].write(data)

    def end_stdin(self) -> None:
        """Write no more."""
        self.channels[STDIN].end()

    async def result(self) -> tuple[int, str]:
        """Wait for the end; return the exit code, and the message of one that is not 0."""
        return status.read(await self.read(ERROR))

    async def output(self) -> tuple[bytes, bytes, int]:
        """Return all of stdout and stderr, and the exit code."""

        async def nothing() -> bytes:
            return b""

        stdout, stderr, result = await asyncio.gather(
            self.read(STDOUT) if STDOUT in self.channels else nothing(),
            self.read(STDERR) if STDERR in self.channels else nothing(),
            self.result(),
        )
        return stdout, stderr, result[0]


@asynccontextmanager
async def forward(
    url: str, *, tunnel: bool = False, tls: ssl.SSLContext | None = None
) -> AsyncIterator[ForwardClient]:
    """Talk to a port-forward; raises like `command`.

    Args:
        url: as the server answered; it works once, for any number of connections.
        tunnel: SPDY through the messages of a WebSocket.
        tls: for https.
    """
    protocol = TUNNEL_PREFIX + PORT_FORWARD if tunnel else PORT_FORWARD
    transport = await _dial(url, _headers(spdy=not tunnel, protocol=protocol), tls)
    if not tunnel:
        link = SpdyLink(transport, client=True)
        async with _running(link, transport):
            yield ForwardClient(link)
        return
    wrapped = TunnelTransport(transport, Dialect(protocol, tunnel=True), client=True)
    link = SpdyLink(wrapped, client=True)
    async with _running(link, transport):
        yield ForwardClient(link)
        wrapped.end()


@asynccontextmanager
async def forward_channels(
    url: str, ports: int, *, protocol: str = "v4.channel.k8s.io", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Sequence[Channel]]:
    """Talk to a port-forward in the older WebSocket form; raises like `command`.

    Args:
        url: of a request that named its ports.
        ports: how many there are; the nth has channel 2n for data and 2n + 1 for errors.
        protocol: its version.
        tls: for https.
    """
    dialect = next(each for each in WEBSOCKET_PORT_FORWARD if each.name == protocol)
    transport = await _dial(url, _headers(spdy=False, protocol=protocol), tls)
    link = ChannelLink(transport, dialect, 2 * ports, client=True)
    async with _running(link, transport):
        yield link.channels


class ForwardClient:
    """A port-forward that stands."""

    def __init__(self, link: SpdyLink) -> None:
        self._link = link
        self._requests = 0

    async def ended(self) -> None:
        """Return when the server has left."""
        await self._link.over.wait()

    async def connect(self, port: int) -> tuple[SpdyChannel, SpdyChannel]:
        """Return the streams (data, error) of one connection; what comes on error is a failure."""
        headers = {"port": str(port), "requestid": str(self._requests)}
        self._requests += 1
        error = await self._link.open({"streamtype": "error", **headers})
        error.end()
        return await self._link.open({"streamtype": "data", **headers}), error


async def _rest_of(channel: Channel) -> bytes:
    found = bytearray()
    while data := await channel.inbox.get():
        found += data
    return bytes(found)


async def _open(link: Link, names: frozenset[str]) -> dict[str, Channel]:
    if isinstance(link, ChannelLink):
        return {name: link.channels[CHANNEL_NUMBERS[name]] for name in names}
    found: dict[str, Channel] = {}
    # Kubernetes' clients begin with the error stream.
    for name in sorted(names, key=lambda name: (name != ERROR, name)):
        found[name] = await link.open({"streamtype": name})
    return found


@asynccontextmanager
async def _running(link: Link, transport: SocketTransport) -> AsyncIterator[None]:
    reading = asyncio.ensure_future(link.run())
    try:
        yield
    finally:
        link.finish()
        await settle(reading)
        await transport.close(LEAVE_S)


def _headers(*, spdy: bool, protocol: str) -> list[tuple[str, str]]:
    if spdy:
        named = [(STREAM_PROTOCOL_HEADER, protocol)] if protocol else []
        return [("Connection", "Upgrade"), ("Upgrade", SPDY), *named]
    key = base64.b64encode(os.urandom(16)).decode()
    named = [("Sec-WebSocket-Protocol", protocol)] if protocol else []
    return [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", key),
        *named,
    ]


async def _dial(
    url: str, headers: Sequence[tuple[str, str]], tls: ssl.SSLContext | None
) -> SocketTransport:
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_connection(
                parts.hostname, port, ssl=(tls or ssl.create_default_context()) if secure else None
            )
            transport = SocketTransport(reader, writer)
            try:
                rest = await _ask(transport, parts.path, parts.netloc, headers)
            except BaseException:
                await transport.abort()
                raise
    except (OSError, ProtocolError) as error:  # TimeoutError is an OSError
        raise Gone(f"{parts.netloc}: {str(error) or 'no answer'}") from error
    return SocketTransport(reader, writer, rest)


async def _ask(
    transport: SocketTransport, path: str, host: str, headers: Sequence[tuple[str, str]]
) -> bytes:
    """Send the request; return what has come after the answer."""
    http = h11.Connection(h11.CLIENT)
    request = h11.Request(method="GET", target=path, headers=[("Host", host), *headers])
    transport.write((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
    refused = 0
    body = bytearray()
    while True:
        try:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await transport.receive())
                continue
        except h11.RemoteProtocolError as error:
            raise ProtocolError(str(error)) from error
        if isinstance(event, h11.InformationalResponse) and event.status_code == 101:
            return http.trailing_data[0]
        if isinstance(event, h11.Response):
            refused = event.status_code
        elif isinstance(event, h11.Data) and len(body) < _MAX_ANSWER_BYTES:
            body += event.data
        elif isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)):
            raise Refusal(refused, body.decode(errors="replace").strip())
