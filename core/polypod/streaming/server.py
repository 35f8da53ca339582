"""The streaming server: URLs with one-time tokens, one connection for each, until it ends.

Spec:
    Reliability A3-A6, A9. It listens on the loopback; elsewhere only with TLS and client certificates.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from polypod.lifecycle.clock import settle
from polypod.lifecycle.ports import Forward, RemoteCommand
from polypod.plugin.errors import FailedPrecondition, InvalidArgument, Unavailable
from polypod.streaming import origins
from polypod.streaming.errors import Gone, ProtocolError
from polypod.streaming.handshake import Handshake, Refused, Request, Upgrade, negotiate
from polypod.streaming.protocols import Kind
from polypod.streaming.sessions import Session
from polypod.streaming.tokens import Tokens, TooMany
from polypod.streaming.transports import READ_BYTES, SocketTransport

log = logging.getLogger("polypod.streaming")

REQUEST_S = 10.0
"""For TLS and for the request with all its headers, after a client has connected."""
LINGER_S = 5.0
"""After the end, for a client to read it and to leave by itself."""
WAITING_LIMIT = 256
"""Connections that have not shown a token yet; one more, and the oldest is closed: anybody on this host
can open them and be silent, but who means it sends its request at once."""
STREAM_LIMIT = 4096
BACKLOG = 256


@dataclass(frozen=True, slots=True)
class Settings:
    """Where and how to listen."""

    host: str
    port: int
    """0 = any that is free."""
    tls: ssl.SSLContext | None = None
    idle_s: float = 4 * 3600.0
    """A connection on which nothing was said for so long is closed."""


@dataclass(frozen=True, slots=True)
class _Target:
    """What a token leads to."""

    kind: Kind
    serve: Callable[[Session], Coroutine[None, None, None]]


class StreamingServer:
    """Implements `polypod.lifecycle.ports.StreamUrls`. `start` it, `stop` it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tokens: Tokens[_Target] = Tokens(lambda: asyncio.get_running_loop().time())
        self._server: asyncio.Server | None = None
        self._base = ""
        self._connections: set[asyncio.Task[None]] = set()
        self._waiting: dict[asyncio.Task[None], None] = {}
        """Those without a token yet, the oldest first."""

    async def start(self) -> None:
        """Listen.

        Raises:
            FailedPrecondition: the address cannot be had.
        """
        settings = self._settings
        try:
            self._server = await asyncio.start_server(
                self._connected,
                settings.host,
                settings.port,
                ssl=settings.tls,
                ssl_handshake_timeout=REQUEST_S if settings.tls else None,
                limit=READ_BYTES,
                backlog=BACKLOG,
            )
        except OSError as error:
            raise FailedPrecondition(
                f"streaming.address: cannot listen on {settings.host}:{settings.port}: {error}"
            ) from error
        host, port = self._server.sockets[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        self._base = f"{'https' if settings.tls else 'http'}://{shown}:{port}"
        log.info("streaming on %s", self._base)

    async def stop(self) -> None:
        """Take no more clients and end those that are there: their execs die. Idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        await settle(*self._connections)
        await server.wait_closed()

    # URLs

    def exec(self, command: RemoteCommand, /) -> str:
        """See `StreamUrls.exec`."""
        return self._url(_Target(Kind.EXEC, lambda session: session.command(command)))

    def attach(self, command: RemoteCommand, /) -> str:
        """See `StreamUrls.attach`."""
        return self._url(_Target(Kind.ATTACH, lambda session: session.command(command)))

    def forward(self, forward: Forward, /) -> str:
        """See `StreamUrls.forward`."""
        return self._url(_Target(Kind.PORT_FORWARD, lambda session: session.forward(forward)))

    def _url(self, target: _Target) -> str:
        if self._server is None:
            raise Unavailable("the streaming server does not listen; try again in a moment")
        return f"{self._base}/{target.kind.value}/{self._tokens.issue(target)}"

    # Connections

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        transport = SocketTransport(reader, writer)
        if task is None or self._server is None or len(self._connections) >= STREAM_LIMIT:
            await transport.abort()
            return
        self._connections.add(task)
        self._waiting[task] = None
        if len(self._waiting) > WAITING_LIMIT:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.cancel()
        try:
            _keep_alive(writer)
            await self._serve(task, transport, reader, writer)
        except asyncio.CancelledError:
            # By `stop`, which waits for us, or for a newer one; asyncio would log it as a failure.
            log.debug("stream: ended by the server")
        except (Gone, ProtocolError) as error:
            log.debug("stream: the client has left: %s", error)
        except Exception:
            log.exception("stream: a connection failed")
        finally:
            self._waiting.pop(task, None)
            self._connections.discard(task)
            await transport.abort()

    async def _serve(
        self,
        task: asyncio.Task[None],
        transport: SocketTransport,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        handshake = Handshake()
        try:
            target, upgrade = self._target(await _request(handshake, transport))
            self._waiting.pop(task, None)
        except Refused as refused:
            log.info("stream: refused status=%d reason=%s", refused.status, refused)
            transport.write(handshake.refuse(refused))
            await transport.close(LINGER_S)
            return
        answer, first = handshake.accept(upgrade)
        transport.write(answer)
        await self._run(target, Session(SocketTransport(reader, writer, first), upgrade))

    async def _run(self, target: _Target, session: Session) -> None:
        name = session.upgrade.dialect.name or "v1"
        begin = time.monotonic()
        running = asyncio.ensure_future(target.serve(session))
        watching = asyncio.ensure_future(self._idle(session.transport))
        try:
            await asyncio.wait({running, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                log.info("stream: closed: nothing was said for %g s", self._settings.idle_s)
                return
            running.result()
            await session.transport.close(LINGER_S)
        finally:
            await settle(running, watching)
            seconds = time.monotonic() - begin
            log.info("stream=%s protocol=%s seconds=%.3f", target.kind.value, name, seconds)

    async def _idle(self, transport: SocketTransport) -> None:
        """Return when nothing was said for the idle time."""
        seen = -1
        while seen != transport.active:
            seen = transport.active
            await asyncio.sleep(self._settings.idle_s)

    def _target(self, request: Request) -> tuple[_Target, Upgrade]:
        if request.method not in ("GET", "POST"):
            raise Refused(405, "use GET or POST", [("Allow", "GET, POST")])
        origins.check(request, [self._settings.host])
        kind, _slash, token = request.path.removeprefix("/").partition("/")
        try:
            target = self._tokens.redeem(token)
        except TooMany:
            raise Refused(429, "newer requests have taken its place; ask again") from None
        if target is None or target.kind.value != kind:
            raise Refused(404, "no such stream: a URL works once, and for a minute")
        return target, negotiate(request, target.kind)


async def _request(handshake: Handshake, transport: SocketTransport) -> Request:
    try:
        async with asyncio.timeout(REQUEST_S):
            request = None
            while request is None:
                request = handshake.receive(await transport.receive())
            return request
    except TimeoutError:
        raise Refused(408, f"no request came within {REQUEST_S:g} s") from None


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    """Find out about clients whose host has gone."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def settings(address: str, *, cert: str, key: str, client_ca: str, idle_s: float) -> Settings:
    """Return the settings of a configuration.

    Raises:
        InvalidArgument: the address is none, or one that others can reach without certificates.
        FailedPrecondition: a certificate cannot be read.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InvalidArgument(f"streaming.address is {address!r}: give HOST:PORT; port 0 = any")
    if bool(cert) != bool(key):
        raise InvalidArgument("streaming.cert and streaming.key belong together: give both or none")
    if client_ca and not cert:
        raise InvalidArgument("streaming.client_ca needs streaming.cert and streaming.key")
    if not _only_this_host(host) and not client_ca:
        raise InvalidArgument(
            f"streaming.address is {address!r}: others can reach it, so it needs streaming.cert, "
            "streaming.key and streaming.client_ca; or listen on 127.0.0.1"
        )
    if idle_s <= 0:
        raise InvalidArgument(f"streaming.idle_timeout_s is {idle_s:g}: give seconds above 0")
    return Settings(host, int(port), _tls(cert, key, client_ca) if cert else None, idle_s)


def _only_this_host(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _tls(cert: str, key: str, client_ca: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key)
        if client_ca:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise FailedPrecondition(f"streaming.cert, .key, .client_ca: {error}") from error
    return context
