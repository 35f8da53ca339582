"""Standard streams over the channel: a `Source` reads a descriptor, a `Sink` on the other side writes one.

The sink tells how much it has written, the source sends no more than a window beyond that: whoever does not
read holds up its own stream and nothing else. And the source keeps what is not known to be written: when the
channel breaks, both sides agree on what has arrived, and the rest is sent once more.
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
_WRITE_BYTES = 32 * 1024
"""At most so much is written twice, where the writer is killed between a write and its own note of it."""
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
        *,
        live: bool = True,
    ) -> None:
        """Without ``live`` nothing is read before `resume_at`."""
        self.fd = fd
        self.stream = stream
        self.sent = 0
        """Bytes given to the channel, in all."""
        self.acked = 0
        """Bytes that the other side has written, in all."""
        self.on_close: Callable[[], None] | None = None
        self._loop = loop
        self._link = link
        self._kept = bytearray()
        self._waits: list[tuple[int, Callable[[], None]]] = []
        self._live = live
        self._listens = False
        self._ended = False
        self._after = after
        self._tail = b""
        self._listen()

    def granted(self, total: int) -> None:
        """The other side has written so much.

        Raises:
            ProtocolError: that cannot be.
        """
        if not self.acked <= total <= self.sent:
            text = f"stream {self.stream}: {total} bytes written of {self.acked} to {self.sent}"
            raise ProtocolError(text)
        del self._kept[: total - self.acked]
        self.acked = total
        self._listen()

    def resume(self) -> None:
        """The channel takes bytes again."""
        self._listen()

    def pause(self) -> None:
        """The channel is broken: nothing more is read until it is known what has arrived."""
        self._live = False
        self._look_away()

    def resume_at(self, total: int) -> None:
        """So much has arrived: send the rest again, and go on.

        Raises:
            ProtocolError: that cannot be.
        """
        self._live = True
        self.granted(total)
        if self._kept:
            self._link.send_data(self.stream, bytes(self._kept))
        self._flush()
        if self._ended:
            self._link.send_end(self.stream)

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
        self._look_away()
        os.close(self.fd)
        self.fd = -1
        self._settle(whole=True)
        if self.on_close is not None:
            self.on_close()

    def _ready(self, _events: int) -> None:
        credit = self.acked + WINDOW - self.sent
        if self._link.is_full() or credit <= 0:
            self._look_away()
            return
        # What waits is always less than this: a full piece is sent at once.
        room = min(_READ_BYTES, credit) - len(self._tail)
        try:
            data = os.read(self.fd, room)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a terminal that nobody has open any more
        if not data:
            self._flush()
            self._ended = True
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
        if not self._tail or not self._live or self.fd < 0:
            return
        data, self._tail = self._tail, b""
        self.sent += len(data)
        self._kept += data
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
        if self._live and not self._listens and self.fd >= 0:
            self._loop.add(self.fd, self._ready)
            self._listens = True


class Sink:
    """Writes a stream into a descriptor. Takes the descriptor, which becomes non-blocking.

    With ``half_close`` it is a socket that somebody else reads from, and closing ends one direction of it.
    """

    def __init__(
        self,
        loop: Loop,
        link: Link,
        stream: int,
        fd: int,
        *,
        written: int = 0,
        note: Callable[[int], None] | None = None,
        half_close: bool = False,
    ) -> None:
        """``written`` is what a predecessor has written; ``note`` is told at once what was written in all."""
        self.fd = fd
        self.stream = stream
        self.received = written
        self.written = written
        self.on_close: Callable[[], None] | None = None
        self._told = written
        self._loop = loop
        self._link = link
        self._note = note
        self._buffer = bytearray()
        self._ending = False
        self._half_close = half_close
        self._waits: list[Callable[[], None]] = []
        os.set_blocking(fd, False)

    def data(self, payload: bytes) -> None:
        """Bytes have come.

        Raises:
            ProtocolError: more than were granted.
        """
        self.received += len(payload)
        if self.fd < 0:
            self.written = self.received
            self._link.grant(self.stream, self.written)
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

    def tell(self) -> None:
        """Say (again) how much is written."""
        self._told = self.written
        self._link.grant(self.stream, self.written)

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
        self.written = self.received
        self._settle()
        if self.on_close is not None:
            self.on_close()

    def _write(self, _events: int) -> None:
        try:
            while self._buffer:
                done = os.write(self.fd, memoryview(self._buffer)[:_WRITE_BYTES])
                self.written += done
                if self._note is not None:
                    self._note(self.written)
                del self._buffer[:done]
        except BlockingIOError:
            if self.fd not in self._loop.callbacks:
                self._loop.add(self.fd, self._write, select.EPOLLOUT)
        except OSError:
            # Nobody reads any more: the writer on the other side shall learn it.
            self.close()
            self._link.send_end(self.stream)
            return
        if self.written - self._told >= _GRANT_STEP or not self._buffer:
            self.tell()
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
