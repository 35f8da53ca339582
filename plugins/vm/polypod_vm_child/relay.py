"""The relay: one process beside each VM, which owns the channel to it and the streams of its containers.

It is a child of the keeper in the pod's network namespace, and outlives the daemon: output goes on into the
logger's pipes and a new daemon finds everything by asking. The daemon speaks to it over a unix socket, with
the descriptors of the streams; it passes requests on and knows nothing of what they mean.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import sys
import termios
import time
import tty

from polypod.plan import channel
from polypod.supervisor.kernel import process
from polypod.supervisor.server import Loop, Peer, Refusal, note
from polypod_vm_child import connections
from polypod_vm_child.connections import Connection
from polypod_vm_child.frames import Link
from polypod_vm_child.splice import Splice
from polypod_vm_child.streams import Sink, Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Message = dict[str, Any]

_CONNECTS_S = 20.0
_TRIES_AGAIN_S = 0.005
_LOOKS_AT_SIZES_S = 0.25
_REQUEST_MAX = 12 * 1024 * 1024


class Relay:
    """See the module's description."""

    def __init__(self, host: str) -> None:
        self.loop = Loop(self.handle)
        self.splice = Splice(host)
        self.link: Link | None = None
        self.gone = ""
        self.greeted: Message | None = None
        self._number = 0
        self._stream = 0
        self._waiting: list[tuple[Peer, object]] = []
        self._pending: dict[int, tuple[Peer, object, str]] = {}
        self._streams: dict[str, list[int]] = {}
        self._sources: dict[int, Source] = {}
        self._sinks: dict[int, Sink] = {}
        self._terminals: dict[int, tuple[int, bytes]] = {}
        self.loop.listen("relay.sock")

    def run(self) -> None:
        """Serve until `quit`."""
        while not self.loop.leaving:
            self.loop.timeout = _LOOKS_AT_SIZES_S if self._terminals else -1.0
            self.loop.step()
            if self._terminals:
                self._follow_sizes()

    # Requests of the daemon

    def handle(
        self, peer: Peer, message: Message, fds: list[int]
    ) -> tuple[Message, list[int]] | None:
        """Serve one request."""
        operation = {
            "network": self._network,
            "connect": self._connect,
            "call": self._call,
            "state": self._state,
            "quit": self._quit,
        }.get(str(message.get("op")))
        if operation is None:
            raise Refusal("Unimplemented", f"relay: no operation {message.get('op')!r}")
        answer = operation(peer, message, fds)
        channel.close_all(fds)
        return answer

    def _network(
        self, _peer: Peer, _message: Message, _fds: list[int]
    ) -> tuple[Message, list[int]]:
        """Return what the pod's interface is like, and the tap that it was joined to, if there is one."""
        return self.splice.facts, [] if self.splice.tap < 0 else [self.splice.tap]

    def _connect(self, peer: Peer, message: Message, _fds: list[int]) -> None:
        """Connect to the VM; answered when the guest has greeted, or has ended."""
        self._waiting.append((peer, message.get("id")))
        if self.link is None and not self.gone:
            sock = _connect(str(message["path"]))
            self.link = Link(self.loop, sock.detach(), self, os.urandom(8))
        self._tell_waiting()

    def _state(self, _peer: Peer, _message: Message, _fds: list[int]) -> tuple[Message, list[int]]:
        return {"gone": self.gone, "greeted": self.greeted}, []

    def _quit(self, _peer: Peer, _message: Message, _fds: list[int]) -> tuple[Message, list[int]]:
        self.loop.leaving = True
        return {}, []

    def _call(self, peer: Peer, message: Message, fds: list[int]) -> None:
        """Pass a request on to the guest; descriptors are the host's ends of its streams."""
        if self.link is None or self.gone or self.greeted is None:
            raise Refusal("Unavailable", f"the VM does not answer: {self.gone or 'it is booting'}")
        request = _request(message, fds)
        names = message.get("streams") or []
        if len(names) != len(fds):
            raise Refusal("InvalidArgument", f"relay: {len(fds)} streams came, {len(names)} named")
        self._number += 1
        if names:
            self._attach(str(request["process"]), request, names, fds)
        elif request.get("op") == "delete":
            self._detach(str(request["process"]))
        forwarded = str(request["process"]) if connections.NAME in names else ""
        self._pending[self._number] = (peer, message.get("id"), forwarded)
        self.link.send({**request, "id": self._number})

    # Streams

    def _attach(self, name: str, request: Message, names: list[str], fds: list[int]) -> None:
        assert self.link is not None
        mine = self._streams.setdefault(name, [])
        wanted = request["streams"] = {}
        for each, fd in zip(names, fds, strict=True):
            self._stream += 2  # a terminal takes two
            stream = wanted[each] = self._stream
            mine += [stream, stream + 1]
            if each == "console":
                self._add_terminal(stream, fd)
            elif each == connections.NAME:
                self._add_connection(name, stream, os.dup(fd))
            elif each == "stdin":
                self._sources[stream] = Source(self.loop, self.link, stream, os.dup(fd))
            else:
                self._sinks[stream] = Sink(self.loop, self.link, stream, os.dup(fd))

    def _add_terminal(self, stream: int, console: int) -> None:
        """Make a pty whose master is the container's, as the one who asked understands it."""
        assert self.link is not None
        master, peer = os.openpty()
        try:
            tty.setraw(peer)
            with socket.socket(fileno=os.dup(console)) as sock:
                socket.send_fds(sock, [b"pty"], [master])
        finally:
            os.close(master)
        self._sinks[stream] = Sink(self.loop, self.link, stream, peer)
        self._sources[stream + 1] = Source(self.loop, self.link, stream + 1, os.dup(peer))
        self._terminals[stream] = (peer, b"")

    def _add_connection(self, name: str, stream: int, fd: int) -> None:
        """Take a port-forward's socket; both directions gone, nothing of it is left."""
        assert self.link is not None

        def ended() -> None:
            self._sinks.pop(stream, None)
            self._sources.pop(stream + 1, None)
            self._streams.pop(name, None)

        made = Connection(self.loop, self.link, fd, reads=stream + 1, writes=stream, ended=ended)
        self._sinks[stream], self._sources[stream + 1] = made.sink, made.source

    def _follow_sizes(self) -> None:
        """Tell the guest when somebody has changed the size of a terminal."""
        for stream, (fd, last) in list(self._terminals.items()):
            try:
                size = fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8))
            except OSError:
                continue
            height, width, _x, _y = struct.unpack("HHHH", size)
            if size != last and height and width and self.link is not None:
                self._terminals[stream] = (fd, size)
                self.link.send({"op": "resize", "stream": stream, "height": height, "width": width})

    def _detach(self, name: str) -> None:
        for stream in self._streams.pop(name, []):
            self._drop(stream)

    def _drop(self, stream: int) -> None:
        self._terminals.pop(stream, None)
        source, sink = self._sources.pop(stream, None), self._sinks.pop(stream, None)
        if source is not None:
            source.close()
        if sink is not None:
            # What has come is written, however slow its reader is.
            sink.end()

    # The guest

    def opened(self) -> None:
        """See `Handler.opened`: the guest says hello by itself."""

    def message(self, message: Message) -> None:
        """See `Handler.message`."""
        event = message.get("event")
        if event == "hello":
            self.greeted = message
            self._tell_waiting()
        elif event == "exit":
            self._exited(message)
        elif "id" in message:
            self._answered(message)

    def _answered(self, message: Message) -> None:
        peer, number, forwarded = self._pending.pop(message["id"], (None, None, ""))
        if peer is None:
            return
        error = message.get("error")
        if error is not None and forwarded:
            self._detach(forwarded)
        answer = {"ok": message.get("ok")} if error is None else {"error": error}
        peer.push({"id": number, **answer})

    def _exited(self, message: Message) -> None:
        """Pass an exit on once all that the process wrote is in the host's pipes."""
        for stream in message["streams"]:
            if stream in self._sources:
                # Nobody reads its input any more: who writes shall learn it.
                self._sources.pop(stream).close()
        sinks = [self._sinks[each] for each in message["streams"] if each in self._sinks]
        left = [len(sinks)]

        def written() -> None:
            left[0] -= 1
            if left[0] <= 0:
                self._push(message)

        if not sinks:
            self._push(message)
        for sink in sinks:
            sink.when_written(written)

    def _push(self, message: Message) -> None:
        for peer in list(self.loop.peers.values()):
            peer.push(message)

    def data(self, stream: int, payload: bytes) -> None:
        """See `Handler.data`."""
        sink = self._sinks.get(stream)
        if sink is not None:
            sink.data(payload)
        elif self.link is not None:
            self.link.grant(stream, len(payload))

    def ended(self, stream: int) -> None:
        """See `Handler.ended`."""
        if stream in self._sources:
            self._sources.pop(stream).close()
        if stream in self._sinks:
            self._sinks[stream].end()
        if stream in self._terminals:
            del self._terminals[stream]
            self._drop(stream + 1)

    def granted(self, stream: int, count: int) -> None:
        """See `Handler.granted`."""
        source = self._sources.get(stream)
        if source is not None:
            source.granted(count)

    def room(self) -> None:
        """See `Handler.room`."""
        for source in list(self._sources.values()):
            source.resume()

    def lost(self, why: str) -> None:
        """See `Handler.lost`: the VM has ended; so has everything in it."""
        note(f"channel: {why}")
        self.gone = f"the VM has ended ({why})"
        self._tell_waiting()
        for peer, number, _forwarded in self._pending.values():
            self.loop.refuse(peer, number, Refusal("Unavailable", self.gone))
        self._pending.clear()
        for name in list(self._streams):
            self._detach(name)
        self._push({"event": "gone", "why": self.gone})

    def _tell_waiting(self) -> None:
        if self.greeted is None and not self.gone:
            return
        waiting, self._waiting = self._waiting, []
        for peer, number in waiting:
            if self.gone:
                self.loop.refuse(peer, number, Refusal("Unavailable", self.gone))
            else:
                self.loop.answer(peer, number, self.greeted or {}, [])


def _connect(path: str) -> socket.socket:
    """Connect to QEMU's end; it may just be starting."""
    deadline = time.monotonic() + _CONNECTS_S
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect(path)
        except OSError as error:
            sock.close()
            if time.monotonic() > deadline:
                raise Refusal("Unavailable", f"the VM's channel {path}: {error}") from error
            time.sleep(_TRIES_AGAIN_S)
        else:
            return sock


def _request(message: Message, fds: list[int]) -> Message:
    """Return the guest's request: in the message, or in a memfd in front of the streams."""
    if not message.get("memfd"):
        found = message.get("request")
    else:
        fd = fds.pop(0)
        try:
            size = os.fstat(fd).st_size
            found = json.loads(os.pread(fd, size, 0)) if size <= _REQUEST_MAX else None
        finally:
            os.close(fd)
    if not isinstance(found, dict):
        raise Refusal("InvalidArgument", "relay: a call without a request")
    return found


def main(arguments: list[str]) -> None:
    """Become the relay of a VM: ``relay DIRECTORY [HOST]``.

    HOST is the inode of the host's network namespace; with it the pod's interface is spliced.
    """
    process.set_name("polypod-relay")
    process.set_not_dumpable()
    directory, host = (*arguments, "")[:2]
    # Paths of sockets are short, those of directories need not be.
    os.chdir(directory)
    Relay(host).run()


if __name__ == "__main__":
    main(sys.argv[1:])
