"""The framing of the channel between a guest and its relay: streams with credits, messages, an epoch.

The channel is one FIFO of bytes each way (a virtio-serial port). It has no end of file, and bytes that
nobody read may be older than the present connection. So the host opens with `GREETING` and a random epoch,
the guest answers with the same, and each side drops what comes before it. Then frames follow::

    stream (4 bytes) · kind (1) · length (4) · payload (at most MAX_PAYLOAD)

Stream 0 carries messages (JSON objects, in as many frames as they need). Of the others each side may only
send as many bytes as the other has granted: one slow reader never blocks the rest.
"""

from __future__ import annotations

import json
import os
import select
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from polypod.supervisor.server import Loop

    Message = dict[str, Any]

    class Handler(Protocol):
        """What a `Link` calls."""

        def opened(self) -> None:
            """The greeting was answered: frames may be sent."""

        def message(self, message: Message) -> None:
            """One message of stream 0."""

        def data(self, stream: int, payload: bytes) -> None:
            """Bytes of a stream."""

        def ended(self, stream: int) -> None:
            """No more bytes of a stream will come."""

        def granted(self, stream: int, count: int) -> None:
            """The other side takes so many more bytes of a stream."""

        def room(self) -> None:
            """The channel takes bytes again."""

        def lost(self, why: str) -> None:
            """The channel is closed or broken."""


GREETING = b"\0polypod-vm/1\0\xa5\x5a"
EPOCH_BYTES = 8
MAX_PAYLOAD = 32 * 1024
MAX_MESSAGE = 12 * 1024 * 1024
WINDOW = 256 * 1024
"""What a side may send on a new stream before it is granted more."""

PART, MESSAGE, DATA, END, CREDIT = range(5)
"""Kinds: a message to be continued, its last frame, bytes, no more bytes, a grant (4 bytes)."""
_HEADER = struct.Struct("!IBI")
_NUMBER = struct.Struct("!I")
_READ_BYTES = 256 * 1024
_FULL = 512 * 1024
"""Bytes not taken by the channel above which nothing new is read for it."""


class ProtocolError(Exception):
    """The other side does not keep to the framing; the channel is of no more use."""


class Link:
    """One end of the channel on a non-blocking descriptor that can be read and written."""

    def __init__(self, loop: Loop, fd: int, handler: Handler, epoch: bytes = b"") -> None:
        """Use a descriptor; with an ``epoch`` this is the host's end, which greets."""
        self.fd = fd
        self.is_open = False
        self._loop = loop
        self._handler = handler
        self._host = bool(epoch)
        self._epoch = epoch
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._parts = bytearray()
        self._listening = select.EPOLLIN
        os.set_blocking(fd, False)
        loop.add(fd, self._ready)
        if epoch:
            self._send(GREETING + epoch)

    def send(self, message: Message) -> None:
        """Send a message, in as many frames as it needs."""
        raw = json.dumps(message, separators=(",", ":")).encode()
        frames = bytearray()
        last = max(0, (len(raw) - 1) // MAX_PAYLOAD)
        for number in range(last + 1):
            piece = raw[number * MAX_PAYLOAD : (number + 1) * MAX_PAYLOAD]
            frames += _HEADER.pack(0, MESSAGE if number == last else PART, len(piece)) + piece
        self._send(frames)

    def send_data(self, stream: int, payload: bytes) -> None:
        """Send bytes of a stream; the caller has the credit for them."""
        for start in range(0, len(payload), MAX_PAYLOAD):
            piece = payload[start : start + MAX_PAYLOAD]
            self._send(_HEADER.pack(stream, DATA, len(piece)) + piece)

    def send_end(self, stream: int) -> None:
        """Say that a stream has ended."""
        self._send(_HEADER.pack(stream, END, 0))

    def grant(self, stream: int, count: int) -> None:
        """Let the other side send so many more bytes of a stream."""
        self._send(_HEADER.pack(stream, CREDIT, _NUMBER.size) + _NUMBER.pack(count))

    def is_full(self) -> bool:
        """Tell whether the channel takes no more at the moment."""
        return len(self._outgoing) >= _FULL

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd >= 0:
            self._loop.drop(self.fd)
            os.close(self.fd)
            self.fd = -1
            self.is_open = False

    # Sending

    def _send(self, data: bytes | bytearray) -> None:
        if self.fd < 0:
            return
        self._outgoing += data
        if len(self._outgoing) == len(data):
            self._flush()

    def _flush(self) -> None:
        was_full = self.is_full()
        try:
            while self._outgoing:
                done = os.write(self.fd, memoryview(self._outgoing)[:_READ_BYTES])
                del self._outgoing[:done]
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(f"writing: {error.strerror}")
            return
        wanted = select.EPOLLIN | (select.EPOLLOUT if self._outgoing else 0)
        if wanted != self._listening:
            self._listening = wanted
            self._loop.epoll.modify(self.fd, wanted)
        if was_full and not self.is_full():
            self._handler.room()

    # Receiving

    def _ready(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush()
        if self.fd >= 0 and events & ~select.EPOLLOUT:
            self._read()

    def _read(self) -> None:
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(f"reading: {error.strerror}")
            return
        if not data:
            self._fail("the other side has closed it")
            return
        self._incoming += data
        try:
            if self.is_open or self._greeted():
                self._take_frames()
        except (ProtocolError, ValueError) as error:
            self._fail(str(error))

    def _greeted(self) -> bool:
        """Drop what is older than this connection; True once the greeting was found."""
        wanted = GREETING + self._epoch if self._host else GREETING
        where = self._incoming.find(wanted)
        if where < 0:
            del self._incoming[: max(0, len(self._incoming) - len(wanted) + 1)]
            return False
        end = where + len(GREETING) + EPOCH_BYTES
        if len(self._incoming) < end:
            return False
        epoch = bytes(self._incoming[end - EPOCH_BYTES : end])
        del self._incoming[:end]
        self.is_open = True
        if not self._host:
            self._outgoing.clear()
            self._send(GREETING + epoch)
        self._handler.opened()
        return True

    def _take_frames(self) -> None:
        position = 0
        while len(self._incoming) - position >= _HEADER.size:
            stream, kind, length = _HEADER.unpack_from(self._incoming, position)
            if length > MAX_PAYLOAD:
                text = f"a frame of {length} bytes: at most {MAX_PAYLOAD}"
                raise ProtocolError(text)
            start = position + _HEADER.size
            if len(self._incoming) - start < length:
                break
            position = start + length
            self._take(stream, kind, bytes(self._incoming[start:position]))
            if self.fd < 0:
                return
        del self._incoming[:position]

    def _take(self, stream: int, kind: int, payload: bytes) -> None:
        if kind == DATA:
            self._handler.data(stream, payload)
        elif kind == END:
            self._handler.ended(stream)
        elif kind == CREDIT and len(payload) == _NUMBER.size:
            self._handler.granted(stream, _NUMBER.unpack(payload)[0])
        elif kind in (PART, MESSAGE) and stream == 0:
            self._parts += payload
            if len(self._parts) > MAX_MESSAGE:
                text = f"a message of more than {MAX_MESSAGE} bytes"
                raise ProtocolError(text)
            if kind == MESSAGE:
                raw, self._parts = self._parts, bytearray()
                self._handler.message(_object(raw))
        else:
            text = f"a frame of kind {kind} on stream {stream}"
            raise ProtocolError(text)

    def _fail(self, why: str) -> None:
        self.close()
        self._handler.lost(why)


def _object(raw: bytearray) -> Message:
    message = json.loads(raw)
    if not isinstance(message, dict):
        text = f"a message that is no object but {type(message).__name__}"
        raise ProtocolError(text)
    return message
