"""The streams of a relay: what containers and execs read and write, and connections of port-forwards.

Each stream but those of connections is held by the keeper, too, with a note of whose it is, and what was
written or consumed is counted in a file: the next relay goes on where we ended.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import termios
import tty

from polypod.supervisor.logger_sources import Scratch
from polypod.supervisor.server import note
from polypod_vm_child.connections import NAME as CONNECTION
from polypod_vm_child.connections import Connection
from polypod_vm_child.peeking import PeekingSource, is_pipe
from polypod_vm_child.streams import Sink, Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from polypod.supervisor.server import Loop
    from polypod_vm_child.counters import Counters
    from polypod_vm_child.frames import Link
    from polypod_vm_child.holding import Holder

    Message = dict[str, Any]

_CONSOLE, _STDIN = "console", "stdin"


class Streams:
    """See the module's description. A terminal and a connection take two numbers: N writes, N + 1 reads."""

    def __init__(self, loop: Loop, holder: Holder, counters: Counters) -> None:
        self.link: Link
        self.sinks: dict[int, Sink] = {}
        self.sources: dict[int, Source | PeekingSource] = {}
        self.terminals: dict[int, tuple[int, bytes]] = {}
        self._loop = loop
        self._holder = holder
        self._counters = counters
        self._scratch = Scratch()
        self._names: dict[str, dict[str, int]] = {}
        self._slots: dict[int, int] = {}
        self._masters: dict[int, int] = {}

    def restore(self, link: Link) -> None:
        """Take over what a predecessor left; sources wait for `synced`."""
        self.link = link
        for stream, meta, fds in self._holder.restore():
            process, name, slot = meta["process"], meta["name"], int(meta["slot"])
            self._counters.keep(slot)
            self._slots[stream] = slot
            self._names.setdefault(process, {})[name] = stream
            if name == _CONSOLE:
                note(f"{process}: of what its terminal was typed one read may be lost")
                self._open_terminal(stream, fds[0])
                if len(fds) > 1:
                    self._masters[stream] = fds[1]
            else:
                self._open(stream, name, fds[0])

    # New ones

    def attach(self, process: str, names: list[str], fds: list[int]) -> dict[str, int]:
        """Take duplicates of the host's ends of streams; return their numbers.

        Asked again for the same process (who asked first was killed), the same ones are meant.
        """
        mine = self._names.setdefault(process, {})
        for name, fd in zip(names, fds, strict=True):
            if name in mine:
                self._send_master(mine[name], fd)
                continue
            stream = mine[name] = self._counters.next_stream()
            if name == CONNECTION:
                self._connect(process, stream, os.dup(fd))
                continue
            self._slots[stream] = self._counters.take()
            if name == _CONSOLE:
                self._make_terminal(process, stream, fd)
            else:
                self._hold(process, name, stream, [fd])
                self._open(stream, name, os.dup(fd))
                self._begin(stream, 0)
        return {name: mine[name] for name in names}

    def _hold(self, process: str, name: str, stream: int, fds: list[int]) -> None:
        meta = {"process": process, "name": name, "slot": self._slots[stream]}
        self._holder.hold(stream, meta, fds)

    def _open(self, stream: int, name: str, fd: int) -> None:
        slot = self._slots[stream]
        done = self._counters.get(slot)

        def count(total: int) -> None:
            self._counters.set(slot, total)

        source: Source | PeekingSource
        if name != _STDIN:
            self.sinks[stream] = Sink(self._loop, self.link, stream, fd, written=done, note=count)
            self.sinks[stream].on_close = lambda: self._closed(stream)
            return
        if is_pipe(fd):
            source = PeekingSource(
                self._loop, self.link, stream, fd, self._scratch, consumed=done, note=count
            )
        else:
            source = Source(self._loop, self.link, stream, fd, live=False)
        source.on_close = lambda: self._closed(stream)
        self.sources[stream] = source

    def _begin(self, stream: int, received: int) -> None:
        source = self.sources.get(stream)
        if isinstance(source, Source):
            # What it had read and nobody got is lost: it cannot be looked into.
            source.sent = source.acked = received
        if source is not None:
            source.resume_at(received)

    def _make_terminal(self, process: str, stream: int, console: int) -> None:
        """Make a pty whose master is the container's, as the one who asked understands it."""
        master, peer = os.openpty()
        tty.setraw(peer)
        self._masters[stream] = master
        self._hold(process, _CONSOLE, stream, [peer, master])
        self._open_terminal(stream, peer)
        self._begin(stream + 1, 0)
        self._send_master(stream, console)

    def _open_terminal(self, stream: int, peer: int) -> None:
        self._open(stream, _CONSOLE, peer)
        self.sources[stream + 1] = Source(
            self._loop, self.link, stream + 1, os.dup(peer), live=False
        )
        self.terminals[stream] = (peer, b"")

    def _send_master(self, stream: int, console: int) -> None:
        master = self._masters.get(stream, -1)
        if master >= 0:
            with socket.socket(fileno=os.dup(console)) as sock:
                socket.send_fds(sock, [b"pty"], [master])

    def answered(self, process: str) -> None:
        """A process has its streams: masters of its terminals are with who asked, and only there."""
        for name, stream in self._names.get(process, {}).items():
            master = self._masters.pop(stream, -1)
            if master >= 0:
                os.close(master)
                self._hold(process, name, stream, [self.terminals[stream][0]])

    def _connect(self, process: str, stream: int, fd: int) -> None:
        """Take a port-forward's socket; both directions gone, nothing of it is left."""

        def ended() -> None:
            self.sinks.pop(stream, None)
            self.sources.pop(stream + 1, None)
            self._names.pop(process, None)

        made = Connection(self._loop, self.link, fd, reads=stream + 1, writes=stream, ended=ended)
        self.sinks[stream], self.sources[stream + 1] = made.sink, made.source

    # Both ends agree

    def sync(self) -> Message:
        """Return what the guest has to know: how much was written, and what is read."""
        return {
            "op": "sync",
            "written": {str(stream): sink.written for stream, sink in self.sinks.items()},
            "reading": list(self.sources),
        }

    def synced(self, message: Message) -> None:
        """Go on behind what has arrived in the guest; what it does not know is not needed."""
        known = {int(stream) for stream in message["streams"]}
        received = {int(stream): int(count) for stream, count in message["received"].items()}
        for stream in [*self.sinks, *self.sources]:
            if stream not in known or received.get(stream, 0) < 0:
                self.drop(stream)
        for stream, source in list(self.sources.items()):
            self._begin(stream, received.get(stream, source.acked))

    # The end

    def detach(self, process: str) -> None:
        """A process is forgotten: close its streams, outputs when they are written."""
        for stream in self._names.pop(process, {}).values():
            self.drop(stream)
            self.drop(stream + 1)

    def drop(self, stream: int) -> None:
        """Close one."""
        source, sink = self.sources.pop(stream, None), self.sinks.pop(stream, None)
        if source is not None:
            source.close()
        if sink is not None:
            # What has come is written, however slow its reader is.
            sink.end()

    def ended(self, stream: int) -> None:
        """The guest has ended a stream, as its writer or as its reader."""
        if stream in self.sources:
            self.sources.pop(stream).close()
        if stream in self.sinks:
            self.sinks[stream].end()
        if stream in self.terminals:
            self.drop(stream + 1)

    def close_inputs(self, streams: list[int]) -> None:
        """Nobody reads them any more: who writes shall learn it."""
        for stream in streams:
            if stream in self.sources:
                self.sources.pop(stream).close()

    def when_written(self, streams: list[int], done: Callable[[], None]) -> None:
        """Call once all that has come of some streams is written."""
        sinks = [self.sinks[each] for each in streams if each in self.sinks]
        left = [len(sinks)]

        def written() -> None:
            left[0] -= 1
            if left[0] <= 0:
                done()

        if not sinks:
            done()
        for sink in sinks:
            sink.when_written(written)

    def close_all(self) -> None:
        """The machine is gone."""
        for process in list(self._names):
            self.detach(process)

    def _closed(self, stream: int) -> None:
        self._holder.drop(stream)
        self.sinks.pop(stream, None)
        self.sources.pop(stream, None)
        self.terminals.pop(stream, None)
        master = self._masters.pop(stream, -1)
        if master >= 0:
            os.close(master)
        slot = self._slots.pop(stream, -1)
        if slot >= 0:
            self._counters.give_back(slot)

    # Terminals

    def follow_sizes(self) -> None:
        """Tell the guest when somebody has changed the size of a terminal."""
        for stream, (fd, last) in list(self.terminals.items()):
            try:
                size = fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8))
            except OSError:
                continue
            height, width, _x, _y = struct.unpack("HHHH", size)
            if size != last and height and width:
                self.terminals[stream] = (fd, size)
                self.link.send({"op": "resize", "stream": stream, "height": height, "width": width})
