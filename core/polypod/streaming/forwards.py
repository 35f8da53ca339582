"""Port-forward: each connection is a pair of streams (data, error) that leads to one socket in the pod."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from dataclasses import dataclass

from polypod.lifecycle.clock import settle
from polypod.lifecycle.ports import Forward
from polypod.plugin.errors import PolypodError
from polypod.streaming.channels import Channel, ChannelLink, SpdyChannel
from polypod.streaming.errors import Gone
from polypod.streaming.transports import READ_BYTES

log = logging.getLogger("polypod.streaming")

PAIR_S = 30.0
"""From the first stream of a pair to the second; Kubernetes' own limit."""
DATA, ERROR = "data", "error"


async def forward(target: Forward, port: int, data: Channel, error: Channel) -> None:
    """Connect to a port and copy both ways until both have ended; then end both streams."""
    error.inbox.discard()
    try:
        try:
            sock = await _connect(target, port)
        except (PolypodError, OSError) as failed:
            text = f"error forwarding port {port}: {failed}"
            with contextlib.suppress(Gone):
                await error.write(text.encode())
            return
        with sock:
            await _copy(sock, data)
    finally:
        data.end()
        error.end()
        data.inbox.discard()


async def _connect(target: Forward, port: int) -> socket.socket:
    if target.ports and port not in target.ports:
        raise PermissionError(f"port {port} was not asked for; {target.ports} were")
    return await target.connect(port)


async def _copy(sock: socket.socket, data: Channel) -> None:
    inward = asyncio.ensure_future(_to_pod(sock, data))
    outward = asyncio.ensure_future(_from_pod(sock, data))
    try:
        await asyncio.wait({inward, outward}, return_when=asyncio.FIRST_EXCEPTION)
        with contextlib.suppress(Gone, OSError):
            for done in (inward, outward):
                if done.done():
                    done.result()
    finally:
        await settle(inward, outward)


async def _to_pod(sock: socket.socket, data: Channel) -> None:
    loop = asyncio.get_running_loop()
    while piece := await data.inbox.get():
        await loop.sock_sendall(sock, piece)
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)


async def _from_pod(sock: socket.socket, data: Channel) -> None:
    loop = asyncio.get_running_loop()
    while piece := await loop.sock_recv(sock, READ_BYTES):
        await data.write(piece)
    data.end()


@dataclass(slots=True)
class _Pair:
    port: int
    streams: dict[str, SpdyChannel]
    alarm: asyncio.TimerHandle | None = None


class SpdyForwards:
    """The pairs of one SPDY connection, put together by their request id."""

    def __init__(self, target: Forward) -> None:
        self._target = target
        self._pairs: dict[str, _Pair] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def opened(self, channel: SpdyChannel) -> bool:
        """Take a new stream; False refuses it."""
        kind = channel.headers.get("streamtype", "")
        port = _port(channel.headers.get("port", ""))
        if kind not in (DATA, ERROR) or port is None:
            return False
        request = channel.headers.get("requestid") or _request_of(kind, channel.number)
        pair = self._pairs.get(request)
        if pair is None:
            alarm = asyncio.get_running_loop().call_later(PAIR_S, self._too_late, request)
            self._pairs[request] = _Pair(port, {kind: channel}, alarm)
            return True
        if kind in pair.streams or pair.port != port:
            return False
        pair.streams[kind] = channel
        self._start(request, pair)
        return True

    def _start(self, request: str, pair: _Pair) -> None:
        del self._pairs[request]
        if pair.alarm is not None:
            pair.alarm.cancel()
        work = forward(self._target, pair.port, pair.streams[DATA], pair.streams[ERROR])
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failed := task.exception()) is not None:
            log.error("stream: a forwarded connection failed", exc_info=failed)

    def _too_late(self, request: str) -> None:
        pair = self._pairs.pop(request, None)
        if pair is not None:
            for channel in pair.streams.values():
                channel.reset()

    async def close(self) -> None:
        """End every connection."""
        for pair in self._pairs.values():
            if pair.alarm is not None:
                pair.alarm.cancel()
        self._pairs.clear()
        await settle(*self._tasks)


async def forward_channels(target: Forward, link: ChannelLink) -> None:
    """Serve the older WebSocket form: for the nth port, channel 2n has its data and 2n + 1 its errors.

    Both begin with the number of the port, 16 bits, the lowest first.
    """
    works: list[asyncio.Future[None]] = []
    try:
        for number, port in enumerate(target.ports):
            data, error = link.channels[2 * number], link.channels[2 * number + 1]
            for channel in (data, error):
                await channel.write(port.to_bytes(2, "little"))
            works.append(asyncio.ensure_future(forward(target, port, data, error)))
        await asyncio.gather(*works)
    finally:
        await settle(*works)


def _port(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and 0 < int(text[:6]) < 65536 else None


def _request_of(kind: str, number: int) -> str:
    """Pair the streams of old clients, which give no id: the data stream follows its error stream."""
    return str(number if kind == ERROR else number - 2)
