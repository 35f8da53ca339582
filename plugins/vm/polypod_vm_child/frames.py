"""The framing of the channel between a guest and its relay: streams with credits, messages, an epoch.

The channel is one FIFO of bytes each way (a virtio-serial port). It has no end of file, and bytes that
nobody read may be older than the present connection. So the host opens with `GREETING` and an epoch (a
number that counts up, and four random bytes), the guest answers with the same, and each side drops what
comes before it. Then frames follow::

    stream (4 bytes) · kind (1) · length (4) · payload (at most MAX_PAYLOAD) · mark (4)

Stream 0 carries messages (JSON objects, in as many frames as they need). Of the others each side may only
send `WINDOW` bytes more than the other has written: one slow reader never blocks the rest, and what was
not written yet can be sent once more on another connection.

The mark is the epoch's random half. A relay that is killed leaves half a frame in the guest; its successor
fills it up with what is no mark, so that nothing of it is believed.
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
            """A connection stands: frames may be sent. Whatever was under way on an earlier one is lost."""

        def message(self, message: Message) -> None:
            """One message of stream 0."""

        def data(self, stream: int, payload: bytes) -> None:
            """Bytes of a stream."""

        def ended(self, stream: int) -> None:
            """No more bytes of a stream will come."""

        def granted(self, stream: int, total: int) -> None:
            """The other side has written so many bytes of a stream in all."""

        def room(self) -> None:
            """The channel takes bytes again."""

        def lost(self, why: str) -> None:
            """The channel is closed or broken."""


GREETING = b"\0polypod-vm/2\0\xa5\x5a"
EPOCH_BYTES = 8
_GREETING_BYTES = len(GREETING) + EPOCH_BYTES
MAX_PAYLOAD = 32 * 1024
MAX_MESSAGE = 12 * 1024 * 1024
WINDOW = 256 * 1024
"""What a side may send on a new stream before it is granted more."""

PART, MESSAGE, DATA, END, CREDIT = range(5)
"""Kinds: a message to be continued, its last frame, bytes, no more bytes, what was written (8 bytes)."""
_HEADER = struct.Struct("!IBI")
_NUMBER = struct.Struct("!Q")
_MARK_BYTES = 4
_NO_MARK = b"\xff" * _MARK_BYTES
_PADDING = b"\xff" * (_HEADER.size + MAX_PAYLOAD + _MARK_BYTES)
"""More than any frame lacks: ends one that a predecessor has left."""
_READ_BYTES = 256 * 1024
_FULL = 512 * 1024
"""Bytes not taken by the channel above which nothing new is read for it."""


def new_epoch(number: int) -> bytes:
    """Return the epoch of the n-th connection."""
    mark = _NO_MARK
    while mark == _NO_MARK:
        mark = os.urandom(_MARK_BYTES)
    return _COUNT.pack(number & 0xFFFFFFFF) + mark


_COUNT = struct.Struct("!I")


class ProtocolError(Exception):
    """The other side does not keep to the framing; the channel is of no more use."""


class Link:
    """One end of the channel on a non-blocking descriptor that can be read and written."""

    def __init__(
        self, loop: Loop, fd: int, handler: Handler, epoch: bytes = b"", *, again: bool = False
    ) -> None:
        """Use a descriptor; with an ``epoch`` this is the host's end, which greets.

        Args:
            loop: calls us.
            fd: the channel; ours.
            handler: what is told.
            epoch: see `new_epoch`.
            again: somebody else has used the channel before, and may have left half a frame in it.
        """
        self.fd = -1
        self.is_open = False
        self._loop = loop
        self._handler = handler
        self._host = bool(epoch)
        self._epoch = epoch
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._parts = bytearray()
        self._listening = select.EPOLLIN
        self.attach(fd)
        if again:
            self._send(_PADDING)
        self.greet()

    def attach(self, fd: int) -> None:
        """Use another descriptor, on which nothing was said yet."""
        self.close()
        self.fd = fd
        for buffer in (self._incoming, self._outgoing, self._parts):
            buffer.clear()
        self._listening = select.EPOLLIN
        os.set_blocking(fd, False)
        self._loop.add(fd, self._ready)

    def greet(self) -> None:
        """Greet, on the host and once more as long as there is no answer: the guest may have missed it."""
        if self._host and not self.is_open and not self._outgoing:
            self._send(GREETING + self._epoch)

    def send(self, message: Message) -> None:
        """Send a message, in as many frames as it needs; without a connection it is lost."""
        raw = json.dumps(message, separators=(",", ":")).encode()
        last = max(0, (len(raw) - 1) // MAX_PAYLOAD)
        for number in range(last + 1):
            piece = raw[number * MAX_PAYLOAD : (number + 1) * MAX_PAYLOAD]
            self._frame(0, MESSAGE if number == last else PART, piece)

    def send_data(self, stream: int, payload: bytes) -> None:
        """Send bytes of a stream; the caller has the credit for them."""
        for start in range(0, len(payload), MAX_PAYLOAD):
            self._frame(stream, DATA, payload[start : start + MAX_PAYLOAD])

    def send_end(self, stream: int) -> None:
        """Say that a stream has ended."""
        self._frame(stream, END, b"")

    def grant(self, stream: int, total: int) -> None:
        """Say how many bytes of a stream were written in all."""
        self._frame(stream, CREDIT, _NUMBER.pack(total))

    def is_full(self) -> bool:
        """Tell whether the channel takes no more at the moment."""
        return len(self._outgoing) >= _FULL

    def close(self) -> None:
        """Close the descriptor."""
        self.is_open = False
        if self.fd >= 0:
            self._loop.drop(self.fd)
            os.close(self.fd)
            self.fd = -1

    # Sending

    def _frame(self, stream: int, kind: int, payload: bytes) -> None:
        if self.is_open:
            mark = self._epoch[-_MARK_BYTES:]
            self._send(_HEADER.pack(stream, kind, len(payload)) + payload + mark)

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
        except (ProtocolError, ValueError, TypeError, KeyError, AttributeError) as error:
            # What is no frame, and messages that make no sense.
            self._fail(str(error) or type(error).__name__)

    def _greeted(self) -> bool:
        """Drop what is older than this connection; True once the greeting was found."""
        wanted = GREETING + self._epoch if self._host else GREETING
        where = self._incoming.find(wanted)
        if where < 0:
            del self._incoming[: max(0, len(self._incoming) - len(wanted) + 1)]
            return False
        del self._incoming[:where]
        if len(self._incoming) < _GREETING_BYTES:
            return False
        self._begin()
        return True

    def _begin(self) -> None:
        """A greeting stands in front of what has come."""
        self._epoch = bytes(self._incoming[len(GREETING) : _GREETING_BYTES])
        del self._incoming[:_GREETING_BYTES]
        self._parts.clear()
        self.is_open = True
        if not self._host:
            self._outgoing.clear()
            self._send(GREETING + self._epoch)
        self._handler.opened()

    def _greeted_again(self) -> None:
        """A greeting stands where a frame could: sent once more, or of a new connection that begins with it."""
        found = bytes(self._incoming[:_GREETING_BYTES])
        if found == GREETING + self._epoch:
            del self._incoming[:_GREETING_BYTES]
        elif found.startswith(GREETING):
            self._begin()
        else:
            text = "neither a frame nor a greeting"
            raise ProtocolError(text)

    def _take_frames(self) -> None:
        position = 0
        while len(self._incoming) - position >= _HEADER.size:
            stream, kind, length = _HEADER.unpack_from(self._incoming, position)
            if kind == GREETING[4] and not self._host:
                if len(self._incoming) - position < _GREETING_BYTES:
                    break
                del self._incoming[:position]
                position = 0
                self._greeted_again()
                continue
            if length > MAX_PAYLOAD:
                text = f"a frame of {length} bytes: at most {MAX_PAYLOAD}"
                raise ProtocolError(text)
            start = position + _HEADER.size
            end = start + length
            if len(self._incoming) < end + _MARK_BYTES:
                break
            position = end + _MARK_BYTES
            if self._incoming[end:position] != self._epoch[-_MARK_BYTES:]:
                text = "a frame that was not finished on its connection"
                raise ProtocolError(text)
            self._take(stream, kind, bytes(self._incoming[start:end]))
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
