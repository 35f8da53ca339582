"""The standard streams of one container inside the logger."""

from __future__ import annotations

import array
import fcntl
import os
import select
import socket
import struct
import termios
from collections.abc import Callable
from functools import partial

from polypod.plan.channel import close_all
from polypod.supervisor.logger_file import LogFile
from polypod.supervisor.logger_sources import PipeSource, PtySource, Scratch
from polypod.supervisor.logger_stdin import Stdin
from polypod.supervisor.logger_stream import Stream
from polypod.supervisor.server import Loop, Refusal

_HOLD_S = 0.004
"""How long the beginning of a line waits for its end: longer than between two writes of one print."""
_FAN_PIPE_BYTES = 1024 * 1024
_F_SETPIPE_SZ = 1031  # linux/fcntl.h

After = Callable[[float, Callable[[], None]], None]


class Container:
    """Streams, log file, attached clients; `changed` is called when the keeper must hold others."""

    def __init__(
        self,
        loop: Loop,
        scratch: Scratch,
        after: After,
        meta: dict[str, object],
        fds: dict[str, int],
    ) -> None:
        self.meta = meta
        self.fds = fds
        self.streams: dict[str, Stream] = {}
        self.stdin: Stdin | None = None
        self.changed: Callable[[], None] = lambda: None
        self.pty_came: Callable[[int], None] = lambda _fd: None
        self.pty_went: Callable[[], None] = lambda: None
        self._loop = loop
        self._scratch = scratch
        self._after = after
        self._fan_streams: dict[int, Stream] = {}
        self._size = (0, 0)
        self.log = LogFile(fds["log"])
        for name in ("stdout", "stderr"):
            if name in fds:
                os.set_blocking(fds[name], False)
                self._add_stream(name, PipeSource(fds[name], scratch))
        if "stdin" in fds:
            self._add_stdin(fds["stdin"])
        if "console" in fds:
            os.set_blocking(fds["console"], False)
            loop.add(fds["console"], lambda _events: self._read_console())

    # Output.

    def _add_stream(self, name: str, source: PipeSource | PtySource) -> None:
        stream = Stream(name, source, self.log)
        self.streams[name] = stream
        self._loop.add(source.fd, partial(self._ready, stream))

    def _ready(self, stream: Stream, events: int) -> None:
        ended = bool(events & (select.EPOLLHUP | select.EPOLLERR))
        stream.pump(final=ended)
        self._after_pump(stream)

    def _after_pump(self, stream: Stream) -> None:
        fd = stream.source.fd
        if not stream.open:
            self._close_stream(stream)
        elif stream.held and fd in self._loop.callbacks:
            # The unfinished line stays in the pipe, which therefore stays readable: look away.
            self._loop.epoll.modify(fd, 0)
            self._after(_HOLD_S, partial(self._hold_ends, stream))

    def _hold_ends(self, stream: Stream) -> None:
        if not stream.open:
            return
        if stream.held:
            stream.pump(flush=True)
            stream.held = False
        if stream.open:
            self._loop.epoll.modify(stream.source.fd, select.EPOLLIN)
        else:
            self._close_stream(stream)

    def _close_stream(self, stream: Stream) -> None:
        name = stream.name.decode()
        if self.streams.pop(name, None) is None:
            return
        self._forget_fans(stream)
        self._loop.drop(stream.source.fd)
        os.close(stream.source.fd)
        self.fds.pop(name, None)
        if isinstance(stream.source, PtySource):
            self.pty_went()

    def drain(self) -> None:
        """Log everything that was written until now."""
        if "console" in self.fds:
            self._read_console()
        for stream in list(self.streams.values()):
            stream.drain()
            if not stream.open:
                self._close_stream(stream)

    def quiet(self) -> bool:
        """Tell whether nothing can be in flight: a pty hands its output over behind the writer."""
        return not any(isinstance(s.source, PtySource) for s in self.streams.values())

    # Terminal.

    def _read_console(self) -> None:
        console = self.fds["console"]
        try:
            master = _look_for_descriptor(console)
        except BlockingIOError:
            return
        if master is None:
            self._close_console()
            return
        # Only looked at so far: a logger that is killed here finds it in the socket again.
        self.pty_came(master)
        self._close_console()
        self.add_pty(master)
        self.changed()

    def _close_console(self) -> None:
        if "console" in self.fds:
            console = self.fds.pop("console")
            self._loop.drop(console)
            os.close(console)

    def add_pty(self, master: int) -> None:
        """Use a terminal; takes the descriptor."""
        self._close_console()
        self._add_stream("stdout", PtySource(master))
        if self.meta.get("stdin"):
            self._add_stdin(os.dup(master))
        if self._size != (0, 0):
            self.resize(*self._size)

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size; kept for a terminal that is not there yet."""
        if not self.meta.get("tty"):
            raise Refusal("FailedPrecondition", "resize: the container has no terminal")
        self._size = (width, height)
        stream = self.streams.get("stdout")
        if stream is not None:
            size = struct.pack("HHHH", height, width, 0, 0)
            fcntl.ioctl(stream.source.fd, termios.TIOCSWINSZ, size)

    # Input.

    def _add_stdin(self, target: int) -> None:
        once = bool(self.meta.get("stdin_once"))
        self.stdin = Stdin(self._loop, target, once=once, on_closed=self._stdin_closed)

    def _stdin_closed(self) -> None:
        self.stdin = None
        # The keeper's duplicate would keep the pipe open: the container must see its end.
        self.fds.pop("stdin", None)
        self.meta["stdin"] = False
        self.changed()

    # Attach.

    def attach(self, wanted: list[str]) -> tuple[list[str], list[int]]:
        """Return (names, descriptors) for one more client; output starts from now."""
        if "console" in self.fds:
            self._read_console()
        names: list[str] = []
        ends: list[int] = []
        for name in wanted:
            stream = self.streams.get(name)
            if name == "stdin" and self.stdin is not None:
                end = self.stdin.attach()
            elif stream is not None:
                end = self._add_fan(stream)
            else:
                continue
            names.append(name)
            ends.append(end)
        return names, ends

    def _add_fan(self, stream: Stream) -> int:
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(write_end, False)
        try:
            fcntl.fcntl(write_end, _F_SETPIPE_SZ, _FAN_PIPE_BYTES)
        except OSError:
            # Over the user's pipe budget: 64 KiB of slack must do.
            os.set_blocking(write_end, False)
        stream.fans.append(write_end)
        self._fan_streams[write_end] = stream
        self._loop.add(write_end, lambda _events: self._drop_fan(write_end), 0)
        return read_end

    def _drop_fan(self, fan: int) -> None:
        stream = self._fan_streams.pop(fan)
        self._loop.drop(fan)
        stream.fans.remove(fan)
        os.close(fan)

    def _forget_fans(self, stream: Stream) -> None:
        for fan in [fan for fan, owner in self._fan_streams.items() if owner is stream]:
            # `Stream.end` has closed it, and epoll forgets what is closed.
            self._loop.callbacks.pop(fan, None)
            del self._fan_streams[fan]

    # Reopen.

    def use_log(self, log: LogFile) -> None:
        """Go over to another file: each stream at its next line end."""
        self.log = log
        for stream in self.streams.values():
            stream.next_log = log
            if not stream.torn:
                stream.switch()

    def switched(self, *, now: bool = False) -> bool:
        """Tell whether every stream writes to the newest file; ``now`` makes it so."""
        for stream in self.streams.values():
            if now:
                stream.switch()
        return all(stream.next_log is None for stream in self.streams.values())

    def close(self) -> None:
        """Close everything."""
        for stream in list(self.streams.values()):
            stream.torn = False
            stream.end()
            self._close_stream(stream)
        if self.stdin is not None:
            self.stdin.close()
            self.fds.pop("stdin", None)
        self.fds.pop("log", None)
        self.log.close()
        for fd in self.fds.values():
            self._loop.drop(fd)
        close_all(list(self.fds.values()))
        self.fds.clear()


def _look_for_descriptor(console: int) -> int | None:
    """Return a duplicate of the descriptor that waits in a console socket, and leave it there.

    Raises:
        BlockingIOError: nothing was sent yet.
    """
    sock = socket.socket(fileno=console)
    try:
        size = array.array("i").itemsize
        flags = socket.MSG_PEEK | socket.MSG_CMSG_CLOEXEC
        _data, ancillary, _flags, _address = sock.recvmsg(4096, socket.CMSG_SPACE(size), flags)
    except BlockingIOError:
        raise
    except OSError:
        return None
    finally:
        sock.detach()
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            return array.array("i", data[:size])[0]
    return None
