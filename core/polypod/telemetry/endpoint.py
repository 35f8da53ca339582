"""Where Prometheus reads: ``GET /metrics`` over plain HTTP/1.1, on the server's own loop.

The answer tells what runs on this host, so the address is the loopback unless the configuration says
otherwise. One request for each connection, small and short, so nobody can hold much by opening many.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from polypod.plugin.errors import FailedPrecondition, InvalidArgument

log = logging.getLogger(__name__)

_HEAD_BYTES: Final = 8192
_PATIENCE_S: Final = 5.0
_PLAIN: Final = "text/plain; charset=utf-8"


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of ``host:port`` or ``[v6]:port``.

    Raises:
        InvalidArgument: it is neither.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise InvalidArgument(f"metrics.listen is {text!r}: give host:port, such as 127.0.0.1:9090")
    return host, int(port)


class MetricsEndpoint:
    """A listening socket; `start` and `stop` it."""

    def __init__(self, listen: str, text: Callable[[], bytes], content_type: str) -> None:
        """Choose where.

        Args:
            listen: ``host:port``; port 0 is any free one.
            text: makes the answer.
            content_type: of the answer.

        Raises:
            InvalidArgument: ``listen`` is no address.
        """
        self._host, self._port = parse_address(listen)
        self._text = text
        self._content_type = content_type
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """Where it listens, once started."""
        return self._port

    async def start(self) -> None:
        """Listen.

        Raises:
            FailedPrecondition: the address cannot be had.
        """
        try:
            self._server = await asyncio.start_server(
                self._serve, self._host, self._port, limit=_HEAD_BYTES
            )
        except OSError as error:
            raise FailedPrecondition(
                f"metrics.listen {self._host}:{self._port}: {error.strerror or error}"
            ) from error
        self._port = self._server.sockets[0].getsockname()[1]
        log.info("metrics at http://%s:%d/metrics", self._host, self._port)

    async def stop(self) -> None:
        """Close. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(head))
                await writer.drain()
        except (
            TimeoutError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
            OSError,
        ) as error:
            log.debug("metrics: a client was not served: %r", error)
        finally:
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response("400 Bad Request", _PLAIN, b"this is no request\n", body=True)
        method, target = words[0], words[1].partition(b"?")[0]
        if target != b"/metrics":
            return _response("404 Not Found", _PLAIN, b"see /metrics\n", body=True)
        if method not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", _PLAIN, b"GET it\n", body=True)
        return _response("200 OK", self._content_type, self._text(), body=method == b"GET")


def _response(status: str, content_type: str, text: bytes, *, body: bool) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(text)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (text if body else b"")
