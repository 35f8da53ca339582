"""From an upgraded connection to its work: streams put together, the work run, the end told."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable
from dataclasses import dataclass

from polypod.lifecycle.clock import settle
from polypod.lifecycle.ports import Forward, RemoteCommand
from polypod.lifecycle.views import StreamChoice
from polypod.streaming.channels import Channel, ChannelLink, Link, SpdyChannel, SpdyLink
from polypod.streaming.commands import ERROR, RESIZE, STDERR, STDIN, STDOUT, CommandRun
from polypod.streaming.errors import Gone, ProtocolError
from polypod.streaming.forwards import SpdyForwards, forward_channels
from polypod.streaming.handshake import Upgrade
from polypod.streaming.protocols import Dialect
from polypod.streaming.transports import SocketTransport, TunnelTransport

log = logging.getLogger("polypod.streaming")

STREAMS_S = 30.0
"""From the upgrade until a client has opened all its streams; Kubernetes' own limit."""
CHANNEL_NUMBERS = {STDIN: 0, STDOUT: 1, STDERR: 2, ERROR: 3, RESIZE: 4}
"""WebSocket channels (k8s.io/apimachinery, remotecommand)."""


@dataclass(frozen=True, slots=True)
class Session:
    """One upgraded connection."""

    transport: SocketTransport
    upgrade: Upgrade

    async def command(self, command: RemoteCommand) -> None:
        """Serve exec or attach to its end."""
        if self.upgrade.websocket:
            await self._websocket_command(command)
        else:
            await self._spdy_command(command)

    async def _websocket_command(self, command: RemoteCommand) -> None:
        dialect = self.upgrade.dialect
        link = ChannelLink(self.transport, dialect, len(CHANNEL_NUMBERS))
        wanted = expected_streams(command.choice, dialect)
        channels: dict[str, Channel] = {}
        for name, number in CHANNEL_NUMBERS.items():
            if name in wanted:
                channels[name] = link.channels[number]
            else:
                link.channels[number].inbox.discard()
        await run_while_there(link, self._greeted(link, command, channels))

    async def _greeted(
        self, link: ChannelLink, command: RemoteCommand, channels: dict[str, Channel]
    ) -> None:
        # An empty message tells the client that somebody is there, as Kubernetes' servers do it.
        first = next(name for name in (STDOUT, STDERR, ERROR) if name in channels)
        await link.send(CHANNEL_NUMBERS[first], b"")
        await CommandRun(command, channels, self.upgrade.dialect.json_status).run()

    async def _spdy_command(self, command: RemoteCommand) -> None:
        dialect = self.upgrade.dialect
        wanted = expected_streams(command.choice, dialect)
        streams = _Streams(wanted)
        link = SpdyLink(self.transport, streams.opened)
        await run_while_there(link, self._assembled(command, streams))

    async def _assembled(self, command: RemoteCommand, streams: _Streams) -> None:
        try:
            async with asyncio.timeout(STREAMS_S):
                await streams.complete.wait()
        except TimeoutError:
            missing = ", ".join(sorted(streams.missing))
            log.info("stream: given up after %g s: no stream %s", STREAMS_S, missing)
            return
        await CommandRun(command, streams.found, self.upgrade.dialect.json_status).run()

    async def forward(self, target: Forward) -> None:
        """Serve a port-forward until the client leaves."""
        dialect = self.upgrade.dialect
        if not self.upgrade.websocket:
            await _forward_spdy(SpdyForwards(target), self.transport)
        elif dialect.tunnel:
            tunnel = TunnelTransport(self.transport, dialect)
            try:
                await _forward_spdy(SpdyForwards(target), tunnel)
            finally:
                tunnel.end()
        else:
            link = ChannelLink(self.transport, dialect, 2 * len(target.ports))
            await run_while_there(link, forward_channels(target, link))


async def _forward_spdy(
    forwards: SpdyForwards, transport: SocketTransport | TunnelTransport
) -> None:
    link = SpdyLink(transport, forwards.opened)
    try:
        await _read_to_end(link)
    finally:
        await forwards.close()
        link.finish()


async def run_while_there(link: Link, work: Awaitable[None]) -> None:
    """Run the work, but only as long as the peer is there; then tell it the end."""
    reading = asyncio.ensure_future(_read_to_end(link))
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait({reading, working}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            with contextlib.suppress(Gone):
                working.result()
    finally:
        await settle(working)
        link.finish()
        await settle(reading)


async def _read_to_end(link: Link) -> None:
    try:
        await link.run()
    except (Gone, ProtocolError) as error:
        log.info("stream: closed: %s", error)


def expected_streams(choice: StreamChoice, dialect: Dialect) -> frozenset[str]:
    """Return the names of the streams that a client of such a request opens."""
    names = {ERROR}
    for name, is_wanted in (
        (STDIN, choice.stdin),
        (STDOUT, choice.stdout),
        (STDERR, choice.stderr),
        (RESIZE, choice.tty and dialect.resizes),
    ):
        if is_wanted:
            names.add(name)
    return frozenset(names)


class _Streams:
    """SPDY streams until they are complete."""

    def __init__(self, wanted: frozenset[str]) -> None:
        self._wanted = wanted
        self.found: dict[str, Channel] = {}
        self.complete = asyncio.Event()

    @property
    def missing(self) -> frozenset[str]:
        return self._wanted - self.found.keys()

    def opened(self, channel: SpdyChannel) -> bool:
        """Take a new stream; False refuses it."""
        name = channel.headers.get("streamtype", "").lower()
        if name not in self._wanted or name in self.found:
            return False
        self.found[name] = channel
        if not self.missing:
            self.complete.set()
        return True
