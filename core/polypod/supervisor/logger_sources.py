"""Where output comes from: a pipe that is looked into before it is consumed, or a pty.

Both answer `peek` with the oldest bytes that are not consumed: ``b""`` if there is nothing now, None
at the end. A logger that is killed between `peek` and `consume` has lost nothing of a pipe.

Spec:
    man tee(2), splice(2), pty(7).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import termios

READ_BYTES = 64 * 1024
"""What a pipe holds by default; larger reads only leave the CPU's cache."""
_SPLICE_F_NONBLOCK = 2  # fcntl.h

_libc = ctypes.CDLL(None, use_errno=True)
_libc.tee.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint)
_libc.tee.restype = ctypes.c_ssize_t


def tee(source: int, target: int, count: int) -> int:
    """Copy what stands in one pipe to another one without consuming it; 0 at the end."""
    result: int = _libc.tee(source, target, count, _SPLICE_F_NONBLOCK)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"tee: {os.strerror(number)}")
    return result


class Scratch:
    """The pipe that `tee` copies into, and the sink that consumes; one for all streams."""

    __slots__ = ("read_end", "sink", "write_end")

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.sink = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close its descriptors."""
        for fd in (self.read_end, self.write_end, self.sink):
            os.close(fd)


class PipeSource:
    """The read end of a container's stdout or stderr."""

    __slots__ = ("fd", "scratch")

    def __init__(self, fd: int, scratch: Scratch) -> None:
        self.fd = fd
        self.scratch = scratch

    def peek(self) -> bytes | None:
        """See the module's description."""
        try:
            count = tee(self.fd, self.scratch.write_end, READ_BYTES)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EINTR):
                return b""
            return None
        if count == 0:
            return None
        data = os.read(self.scratch.read_end, count)
        while len(data) < count:
            data += os.read(self.scratch.read_end, count - len(data))
        return data

    def consume(self, count: int) -> None:
        """Take the oldest bytes out."""
        while count > 0:
            count -= os.splice(self.fd, self.scratch.sink, count) or count

    def pending(self) -> int:
        """Return how many bytes stand in it now."""
        return readable_bytes(self.fd)


class PtySource:
    """The master of a container's terminal. What was read is gone from the kernel: the buffer is ours."""

    __slots__ = ("buffer", "ended", "fd")

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.buffer = b""
        self.ended = False

    def peek(self) -> bytes | None:
        """See the module's description. EIO means that nobody has the terminal open any more."""
        if not self.ended and len(self.buffer) < READ_BYTES:
            try:
                data = os.read(self.fd, READ_BYTES - len(self.buffer))
                self.ended = not data
                self.buffer += data
            except BlockingIOError:
                return self.buffer
            except OSError:
                self.ended = True
        return None if self.ended and not self.buffer else self.buffer

    def consume(self, count: int) -> None:
        """Forget the oldest bytes."""
        self.buffer = self.buffer[count:]

    def pending(self) -> int:
        """Return how many bytes are known to be there."""
        return len(self.buffer) + readable_bytes(self.fd)


def readable_bytes(fd: int) -> int:
    """Return what FIONREAD says; 0 if it cannot say."""
    try:
        answer = fcntl.ioctl(fd, termios.FIONREAD, struct.pack("i", 0))
    except OSError:
        return 0
    count: int = struct.unpack("i", answer)[0]
    return count
