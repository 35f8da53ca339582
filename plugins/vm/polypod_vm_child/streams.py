"""Standard streams over the channel: a `Source` reads a descriptor, a `Sink` on the other side writes one.

The sink grants what it has written, the source sends no more than was granted: whoever does not read holds
up its own stream and nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import termios

from polypod_vm_child.frames import WINDOW, ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from polypod.supervisor.server import Loop
    from polypod_vm_child.frames import Link

_READ_BYTES = 32 * 1024
_HOLD_S = 0.02
_GRANT_STEP = 64 * 1024
_BUFFER_MAX = WINDOW + _GRANT_STEP
"""What was granted at most and is not written yet."""


class Source:
    """Reads a descriptor into a stream. Takes the descriptor.

    With ``after`` (call later) an unfinished line waits a moment for its end or the end of the stream, so
    that whoever makes lines of it on the other side sees both at once.
    """

    def __init__(
        self,
        loop: Loop,
        link: Link,
        stream: int,
        fd: int,
        after: Callable[[float, Callable[[], None]], None] | None = None,
    ) -> None:
        self.fd = fd
        self.stream = stream
        self.sent = 0
        self._loop = loop
        self._link = link
        self._credit = WINDOW
        self._waits: list[tuple[int, Callable[[], None]]] = []
        self._listens = True
        self._after = after
        self._tail = b""
        self.on_close: Callable[[], None] | None = None
        loop.add(fd, self._ready)

    def granted(self, count: int) -> None:
        """The other side takes more."""
        self._credit += count
        self._listen()

    def resume(self) -> None:
        """The channel takes bytes again."""
        self._listen()

    def when_sent(self, callback: Callable[[], None]) -> None:
        """Call once all that stands in the descriptor at this moment was sent."""
        count = _readable(self.fd) + len(self._tail) if self.fd >= 0 else 0
        if count == 0:
            callback()
        else:
            self._waits.append((self.sent + count, callback))

    def close(self) -> None:
        """Stop reading; says nothing to the other side."""
        if self.fd < 0:
            return
        if self._listens:
            self._loop.drop(self.fd)
        os.close(self.fd)
        self.fd = -1
        self._settle(whole=True)
        if self.on_close is not None:
            self.on_close()

    def _ready(self, _events: int) -> None:
        if self._link.is_full() or self._credit <= 0:
            self._look_away()
            return
        # What waits is always less than this: a full piece is sent at once.
        room = min(_READ_BYTES, self._credit) - len(self._tail)
        try:
            data = os.read(self.fd, room)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a terminal that nobody has open any more
        if not data:
            self._flush()
            self._link.send_end(self.stream)
            self.close()
            return
        waits = bool(self._tail)
        self._tail += data
        if self._after is None or room <= len(data) or self._tail.endswith(b"\n"):
            self._flush()
        elif not waits:
            self._after(_HOLD_S, self._flush)

    def _flush(self) -> None:
        """Send what was read."""
        data, self._tail = self._tail, b""
        if data and self.fd >= 0:
            self._credit -= len(data)
            self.sent += len(data)
            self._link.send_data(self.stream, data)
            self._settle(whole=False)

    def _settle(self, *, whole: bool) -> None:
        due = [each for each in self._waits if whole or each[0] <= self.sent]
        self._waits = [each for each in self._waits if each not in due]
        for _mark, callback in due:
            callback()

    def _look_away(self) -> None:
        if self._listens:
            # Dropped, not masked: a hang-up is reported whatever the mask is.
            self._loop.drop(self.fd)
            self._listens = False

    def _listen(self) -> None:
        if not self._listens and self.fd >= 0:
            self._loop.add(self.fd, self._ready)
            self._listens = True


class Sink:
    """Writes a stream into a descriptor. Takes the descriptor, which becomes non-blocking.

    With ``half_close`` it is a socket that somebody else reads from, and closing ends one direction of it.
    """

    def __init__(
        self, loop: Loop, link: Link, stream: int, fd: int, *, half_close: bool = False
    ) -> None:
        self.fd = fd
        self.stream = stream
        self._loop = loop
        self._link = link
        self._buffer = bytearray()
        self._written = 0
        self._ending = False
        self._half_close = half_close
        self._waits: list[Callable[[], None]] = []
        self.on_close: Callable[[], None] | None = None
        os.set_blocking(fd, False)

    def data(self, payload: bytes) -> None:
        """Bytes have come.

        Raises:
            ProtocolError: more than were granted.
        """
        if self.fd < 0:
            self._link.grant(self.stream, len(payload))
            return
        if len(self._buffer) + len(payload) > _BUFFER_MAX:
            text = f"stream {self.stream}: the other side sends more than it was granted"
            raise ProtocolError(text)
        self._buffer += payload
        if len(self._buffer) == len(payload):
            self._write(0)

    def end(self) -> None:
        """No more will come: close the descriptor when all is written."""
        self._ending = True
        if not self._buffer:
            self.close()

    def when_written(self, callback: Callable[[], None]) -> None:
        """Call once all that has come is written."""
        if self._buffer and self.fd >= 0:
            self._waits.append(callback)
        else:
            callback()

    def close(self) -> None:
        """Close it; what comes later is thrown away."""
        if self.fd < 0:
            return
        self._loop.drop(self.fd)
        if self._half_close:
            _shut_down(self.fd)
        os.close(self.fd)
        self.fd = -1
        self._buffer.clear()
        self._settle()
        if self.on_close is not None:
            self.on_close()

    def _write(self, _events: int) -> None:
        try:
            while self._buffer:
                done = os.write(self.fd, self._buffer)
                del self._buffer[:done]
                self._written += done
        except BlockingIOError:
            if self.fd not in self._loop.callbacks:
                self._loop.add(self.fd, self._write, select.EPOLLOUT)
        except OSError:
            # Nobody reads any more: the writer on the other side shall learn it.
            self.close()
            self._link.send_end(self.stream)
            return
        if self._written >= _GRANT_STEP or not self._buffer:
            self._link.grant(self.stream, self._written)
            self._written = 0
        if not self._buffer:
            self._loop.drop(self.fd)
            self._settle()
            if self._ending:
                self.close()

    def _settle(self) -> None:
        due, self._waits = self._waits, []
        for callback in due:
            callback()


def _shut_down(fd: int) -> None:
    """Say on a socket that no more will come; one that is broken knows it."""
    with socket.socket(fileno=os.dup(fd)) as sock, contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)


def _readable(fd: int) -> int:
    try:
        answer = fcntl.ioctl(fd, termios.FIONREAD, struct.pack("i", 0))
    except OSError:
        return 0
    count: int = struct.unpack("i", answer)[0]
    return count
