"""The HTTP/1.1 request that becomes a stream, without a socket: bytes in, a request; an answer, bytes out.

One connection carries one request. Whatever is not a proper upgrade is answered once with
``Connection: close``: nothing that follows it is ever read as a second request (A4).

Spec:
    RFC 9110, 7.8 (Upgrade); RFC 6455, 4.2 (WebSocket handshake).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import h11

from polypod.streaming.errors import ProtocolError
from polypod.streaming.protocols import (
    ACCEPTED_PROTOCOLS_HEADER,
    SPDY,
    SPDY_COMMAND,
    SPDY_PORT_FORWARD,
    STREAM_PROTOCOL_HEADER,
    WEBSOCKET_COMMAND,
    WEBSOCKET_PORT_FORWARD,
    Dialect,
    Kind,
    choose,
)

MAX_HEADER_BYTES = 32 * 1024
_WEBSOCKET_SALT = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked, header names in lower case."""

    method: str
    path: str
    """Without the query."""
    headers: Pairs

    def all(self, name: str) -> list[str]:
        """Return every value of a header, lists taken apart at their commas."""
        values = [value for key, value in self.headers if key == name]
        return [part for value in values for each in value.split(",") if (part := each.strip())]

    def get(self, name: str) -> str:
        """Return a header that must not come twice, ``""`` without one.

        Raises:
            Refused: it comes twice.
        """
        values = [value for key, value in self.headers if key == name]
        if len(values) > 1:
            raise Refused(400, f"the header {name} comes {len(values)} times")
        return values[0].strip() if values else ""


class Refused(Exception):
    """The request is answered with an HTTP status, and the connection closed."""

    def __init__(self, status: int, text: str, headers: Pairs = ()) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What the connection becomes."""

    websocket: bool
    dialect: Dialect
    headers: Pairs
    """Of the answer."""


class Handshake:
    """One connection until it is upgraded or refused."""

    def __init__(self) -> None:
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER_BYTES)

    def receive(self, data: bytes) -> Request | None:
        """Return the request once it is complete; ``b""`` is the end of the connection.

        Raises:
            Refused: it is no request that can be upgraded.
            ProtocolError: the peer left in the middle of it.
        """
        try:
            self._http.receive_data(data)
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                return None
            if isinstance(event, h11.ConnectionClosed):
                raise ProtocolError("left without a request")
            rest = self._http.next_event()
        except h11.RemoteProtocolError as error:
            if not data:
                raise ProtocolError(str(error)) from error
            raise Refused(error.error_status_hint, str(error)) from error
        if not isinstance(event, h11.Request) or not isinstance(rest, h11.EndOfMessage):
            raise Refused(400, "an upgrade has no body")
        target = event.target.decode("latin-1")
        headers = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers
        ]
        return Request(event.method.decode("latin-1"), target.partition("?")[0], headers)

    def accept(self, upgrade: Upgrade) -> tuple[bytes, bytes]:
        """Return the answer, and what the peer has already sent of the new protocol."""
        answer = h11.InformationalResponse(status_code=101, headers=list(upgrade.headers))
        return self._http.send(answer) or b"", self._http.trailing_data[0]

    def refuse(self, refused: Refused) -> bytes:
        """Return the answer; the connection ends with it. Empty where none can be given any more."""
        body = f"{refused}\n".encode()
        headers = [
            *refused.headers,
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ]
        answer = b""
        with contextlib.suppress(h11.LocalProtocolError):
            response = h11.Response(status_code=refused.status, headers=headers)
            answer = self._http.send(response) or b""
            # The answer to HEAD has no body.
            answer += self._http.send(h11.Data(body)) or b""
        return answer


def negotiate(request: Request, kind: Kind) -> Upgrade:
    """Return what a request is upgraded to.

    Raises:
        Refused: it asks for no upgrade, or for none that we know.
    """
    wanted = [each.lower() for each in request.all("upgrade")]
    if "upgrade" not in [each.lower() for each in request.all("connection")] or not wanted:
        raise Refused(400, f"ask for an upgrade of the connection to {SPDY} or to websocket")
    if SPDY.lower() in wanted:
        return _spdy(request, kind)
    if "websocket" in wanted:
        return _websocket(request, kind)
    raise Refused(400, f"no upgrade to {', '.join(wanted)}: ask for {SPDY} or websocket")


def _spdy(request: Request, kind: Kind) -> Upgrade:
    known = SPDY_PORT_FORWARD if kind is Kind.PORT_FORWARD else SPDY_COMMAND
    dialect = _chosen(request.all(STREAM_PROTOCOL_HEADER.lower()), known)
    headers = [("Connection", "Upgrade"), ("Upgrade", SPDY)]
    if dialect.name:
        headers.append((STREAM_PROTOCOL_HEADER, dialect.name))
    return Upgrade(websocket=False, dialect=dialect, headers=headers)


def _websocket(request: Request, kind: Kind) -> Upgrade:
    if request.method != "GET":
        raise Refused(405, "a WebSocket begins with GET", [("Allow", "GET")])
    if request.get("sec-websocket-version") != "13":
        raise Refused(426, "WebSocket version 13 is spoken", [("Sec-WebSocket-Version", "13")])
    known = WEBSOCKET_PORT_FORWARD if kind is Kind.PORT_FORWARD else WEBSOCKET_COMMAND
    dialect = _chosen(request.all("sec-websocket-protocol"), known)
    headers = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Accept", _accept_token(request.get("sec-websocket-key"))),
    ]
    if dialect.name:
        headers.append(("Sec-WebSocket-Protocol", dialect.name))
    return Upgrade(websocket=True, dialect=dialect, headers=headers)


def _chosen(offered: Sequence[str], known: Sequence[Dialect]) -> Dialect:
    dialect = choose(offered, known)
    if dialect is None:
        have = [each.name for each in known if each.name]
        raise Refused(
            403,
            f"none of the protocols {', '.join(offered)} is spoken here; these are: {', '.join(have)}",
            [(ACCEPTED_PROTOCOLS_HEADER, name) for name in have],
        )
    return dialect


def _accept_token(key: str) -> str:
    try:
        raw = base64.b64decode(key, validate=True)
    except binascii.Error:
        raw = b""
    if len(raw) != 16:
        raise Refused(400, "Sec-WebSocket-Key must be 16 bytes in base64")
    # SHA-1 is what RFC 6455 asks for; nothing is secured by it.
    digest = hashlib.sha1(key.encode() + _WEBSOCKET_SALT, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()
