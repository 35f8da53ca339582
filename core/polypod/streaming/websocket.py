"""A WebSocket as Kubernetes uses it, without a socket: channels in messages, or a plain stream of bytes.

The first byte of a message is the number of its channel (in base64 dialects the first digit). What
follows is handed on as it comes: a message may be of any length, and is never put together here.

Spec:
    RFC 6455; channel protocols: k8s.io/apimachinery ``remotecommand`` (v5: CLOSE is channel 255).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import (
    BytesMessage,
    CloseConnection,
    Ping,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from polypod.streaming.errors import ProtocolError
from polypod.streaming.protocols import Dialect

CLOSE_CHANNEL = 255
_ZERO = "0"
NORMAL, PROTOCOL_ERROR = 1000, 1002


@dataclass(frozen=True, slots=True)
class ChannelData:
    """Bytes of one channel."""

    channel: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    """The peer will send nothing more on a channel."""

    channel: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The peer has ended the connection."""


Event = ChannelData | ChannelClosed | Closed


class WebSocket:
    """One end of a connection whose handshake is over."""

    def __init__(self, dialect: Dialect, *, client: bool = False) -> None:
        """Speak a dialect; in a tunnel everything is channel 0, and no byte names it."""
        self._dialect = dialect
        self._is_client = client
        self._ws = Connection(ConnectionType.CLIENT if client else ConnectionType.SERVER)
        self._out = bytearray()
        self._channel: int | None = None
        """Of the message that is being read."""
        self._rest = ""
        """Base64 digits that do not yet make three bytes."""

    def receive(self, data: bytes) -> Iterator[Event]:
        """Yield what these bytes mean; pings are answered by `bytes_to_send`.

        Raises:
            ProtocolError: the connection cannot go on.
        """
        try:
            self._ws.receive_data(data)
            for event in self._ws.events():
                match event:
                    case BytesMessage() if not self._dialect.base64:
                        yield from self._message(bytes(event.data), whole=event.message_finished)
                    case TextMessage() if self._dialect.base64:
                        yield from self._text(event.data, whole=event.message_finished)
                    case BytesMessage() | TextMessage():
                        raise ProtocolError(
                            f"{self._dialect.name or 'v1'}: a message of the wrong type"
                        )
                    case Ping():
                        self._out += self._ws.send(event.response())
                    case CloseConnection():
                        self._answer_close(event)
                        yield Closed()
                        return
                    case _:
                        continue  # pongs
        except (LocalProtocolError, RemoteProtocolError) as error:
            self.close(PROTOCOL_ERROR)
            raise ProtocolError(str(error)) from error
        except ProtocolError:
            self.close(PROTOCOL_ERROR)
            raise

    def _answer_close(self, event: CloseConnection) -> None:
        if self._ws.state is ConnectionState.REMOTE_CLOSING:
            self._out += self._ws.send(event.response())
        elif self._ws.state is ConnectionState.OPEN:
            # What came was no frame: wsproto tells that as a close, with the code to answer.
            self.close(event.code)

    def _message(self, data: bytes, *, whole: bool) -> Iterator[Event]:
        if self._dialect.tunnel:
            if data:
                yield ChannelData(0, data)
            return
        if self._channel is None and data:
            self._channel, data = data[0], data[1:]
        if self._channel is not None and data:
            yield from self._piece(self._channel, data)
        if whole:
            self._channel = None

    def _piece(self, channel: int, data: bytes) -> Iterator[Event]:
        if channel == CLOSE_CHANNEL and self._dialect.closes:
            for number in data:
                yield ChannelClosed(number)
        else:
            yield ChannelData(channel, data)

    def _text(self, text: str, *, whole: bool) -> Iterator[Event]:
        if self._channel is None and text:
            if text[0] < _ZERO:
                raise ProtocolError(f"a channel must be a digit, not {text[0]!r}")
            # Beyond 9 the characters go on, as in Kubernetes.
            self._channel, text = ord(text[0]) - ord(_ZERO), text[1:]
        self._rest += text
        ready = len(self._rest) if whole else len(self._rest) // 4 * 4
        digits, self._rest = self._rest[:ready], self._rest[ready:]
        try:
            data = base64.b64decode(digits, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ProtocolError(f"no base64: {error}") from error
        if self._channel is not None and data:
            yield ChannelData(self._channel, data)
        if whole:
            self._channel = None

    # Out.

    def send(self, channel: int, data: bytes) -> None:
        """Send bytes as one message; an empty one only names its channel."""
        message: BytesMessage | TextMessage
        if self._dialect.tunnel:
            message = BytesMessage(data=data)
        elif self._dialect.base64:
            message = TextMessage(
                data=f"{chr(ord(_ZERO) + channel)}{base64.b64encode(data).decode()}"
            )
        else:
            message = BytesMessage(data=bytes((channel,)) + data)
        try:
            self._out += self._ws.send(message)
        except LocalProtocolError:
            # After the end nothing is sent: whoever wanted to is about to learn of it.
            return

    def end(self, channel: int) -> None:
        """Send nothing more on a channel, where the dialect can say so: as a client in version 5."""
        if self._dialect.closes and self._is_client:
            self.send(CLOSE_CHANNEL, bytes((channel,)))

    def close(self, code: int = NORMAL) -> None:
        """End the connection. Idempotent."""
        if self._ws.state in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
            self._out += self._ws.send(CloseConnection(code=code))

    def bytes_to_send(self) -> bytes:
        """Return what must be sent now."""
        data = bytes(self._out)
        self._out.clear()
        return data
