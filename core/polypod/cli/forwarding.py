"""port-forward: local ports that lead to ports of a pod."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING

from polypod.cli.command import Command, Usage, emit, find_any, with_client
from polypod.client import CriClient

if TYPE_CHECKING:
    from polypod.streaming.dialing import ForwardClient

_READ_BYTES = 32 * 1024


def port_forward(args: argparse.Namespace) -> int:
    """Listen until interrupted, or until the pod is gone."""
    pairs = [_pair(text) for text in args.ports]
    return with_client(args, lambda cri: _forward(cri, args, pairs))


async def _forward(cri: CriClient, args: argparse.Namespace, pairs: list[tuple[int, int]]) -> int:
    from polypod.plugin.errors import Unavailable
    from polypod.streaming import dialing
    from polypod.streaming.errors import Gone

    kind, pod_id = await find_any(cri, args.id)
    if kind != "pod":
        raise Usage(f"{args.id!r} is a container: name its pod")
    url = await cri.forward_url(pod_id, sorted({remote for _local, remote in pairs}))
    try:
        async with dialing.forward(url) as client, contextlib.AsyncExitStack() as listening:
            for local, remote in pairs:
                server = await _listen(client, args.address, local, remote)
                await listening.enter_async_context(server)
                shown = server.sockets[0].getsockname()
                emit(f"{shown[0]}:{shown[1]} -> {remote}")
            await client.ended()
    except (dialing.Refusal, Gone) as error:
        raise Unavailable(f"the stream: {error}") from error
    sys.stderr.write("polypod: the connection to the pod has ended\n")
    return 1


async def _listen(client: ForwardClient, address: str, local: int, remote: int) -> asyncio.Server:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _copy(client, remote, reader, writer)
        finally:
            writer.close()

    try:
        return await asyncio.start_server(connected, address, local)
    except OSError as error:
        raise Usage(f"cannot listen on {address}:{local}: {error.strerror}") from error


async def _copy(
    client: ForwardClient, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    from polypod.streaming.errors import Gone

    async def inward() -> None:
        while piece := await reader.read(_READ_BYTES):
            await data.write(piece)
        data.end()

    try:
        data, error = await client.connect(port)
        sending = asyncio.ensure_future(inward())
        try:
            while piece := await data.inbox.get():
                writer.write(piece)
                await writer.drain()
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            data.reset()
        failed = await error.inbox.get()
    except (Gone, OSError):
        return
    if failed:
        sys.stderr.write(f"polypod: {failed.decode(errors='replace')}\n")


def _pair(text: str) -> tuple[int, int]:
    """Return (local, remote) of ``LOCAL:REMOTE`` or ``PORT``; local 0 = any that is free."""
    local, colon, remote = text.rpartition(":")
    for number in (local, remote) if colon else (remote,):
        if number and not (number.isascii() and number.isdigit() and int(number) < 65536):
            raise Usage(f"{text!r} is no port: give PORT, LOCAL:PORT or :PORT")
    if not remote or int(remote) == 0:
        raise Usage(f"{text!r}: a pod has no port 0")
    return int(local or 0) if colon else int(remote), int(remote)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", default="127.0.0.1", help="where to listen (%(default)s)")
    parser.add_argument("id", metavar="POD")
    parser.add_argument("ports", metavar="[LOCAL:]PORT", nargs="+")


COMMANDS = (
    Command(
        "port-forward",
        "lead local ports to ports of a pod",
        _arguments,
        port_forward,
        "  polypod port-forward web 8080:80\n  polypod port-forward web :80      any free port",
    ),
)
