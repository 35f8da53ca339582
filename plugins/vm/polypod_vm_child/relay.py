"""The relay: one process beside each VM, which owns the channel to it and the streams of its containers.

It is a child of the keeper in the pod's network namespace, and outlives the daemon: output goes on into the
logger's pipes and a new daemon finds everything by asking. The daemon speaks to it over a unix socket, with
the descriptors of the streams; it passes requests on and knows nothing of what they mean.

What it has does not die with it: QEMU goes on listening on the channel, the keeper holds the descriptors, a
file has the counts. The next relay agrees with the guest on what has arrived, and goes on.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time

from polypod.plan import channel
from polypod.supervisor.kernel import process
from polypod.supervisor.server import Loop, Peer, Refusal, note
from polypod_vm_child import connections
from polypod_vm_child.counters import Counters
from polypod_vm_child.frames import Link, new_epoch
from polypod_vm_child.holding import Holder
from polypod_vm_child.relay_streams import Streams
from polypod_vm_child.splice import Splice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Message = dict[str, Any]

_CONNECTS_S = 20.0
_TRIES_AGAIN_S = 0.005
_LOOKS_AT_SIZES_S = 0.25
_GREETS_AGAIN_S = 0.1
_REQUEST_MAX = 12 * 1024 * 1024


class Relay:
    """See the module's description."""

    def __init__(self, name: str, keeper: str, host: str) -> None:
        """See `main`."""
        self.loop = Loop(self.handle)
        self.splice = Splice(host)
        self.counters = Counters("counters")
        self.epoch = self.counters.next_epoch()
        self.holder = Holder(self.loop, keeper, name)
        self.streams = Streams(self.loop, self.holder, self.counters)
        self.link: Link | None = None
        self.gone = ""
        self.greeted: Message | None = None
        self.synced = False
        self._waiting: list[tuple[Peer, object]] = []
        self._pending: dict[str, tuple[Peer, object, Message]] = {}
        self.loop.listen("relay.sock")

    def run(self) -> None:
        """Serve until `quit`."""
        while not self.loop.leaving:
            waits = [self.holder.look()]
            if self.streams.terminals:
                waits.append(_LOOKS_AT_SIZES_S)
            if self.link is not None and not self.link.is_open and not self.gone:
                waits.append(_GREETS_AGAIN_S)
            self.loop.timeout = min((wait for wait in waits if wait >= 0), default=-1.0)
            self.loop.step()
            if self.link is not None and not self.gone:
                self.link.greet()
            if self.synced:
                self.streams.follow_sizes()

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
        """Connect to the VM; answered when both ends agree on their streams, or the VM has ended."""
        self._waiting.append((peer, message.get("id")))
        if self.link is None and not self.gone:
            again = self.epoch > 1
            sock = _connect(str(message["path"]), 0.0 if again else _CONNECTS_S)
            if sock is None:
                self.gone = "the VM has ended (nobody listens on its channel)"
            else:
                epoch = new_epoch(self.epoch)
                self.link = Link(self.loop, sock.detach(), self, epoch, again=again)
                self.streams.restore(self.link)
        self._tell_waiting()

    def _state(self, _peer: Peer, _message: Message, _fds: list[int]) -> tuple[Message, list[int]]:
        return {"gone": self.gone, "greeted": self.greeted, "epoch": self.epoch}, []

    def _quit(self, _peer: Peer, _message: Message, _fds: list[int]) -> tuple[Message, list[int]]:
        self.loop.leaving = True
        return {}, []

    def _call(self, peer: Peer, message: Message, fds: list[int]) -> None:
        """Pass a request on to the guest; descriptors are the host's ends of its streams.

        ``key`` names the request for ever: one that is sent to our successor once more is done once.
        """
        if self.link is None or self.gone or not self.synced:
            raise Refusal("Unavailable", f"the VM does not answer: {self.gone or 'it is booting'}")
        request = _request(message, fds)
        names = message.get("streams") or []
        if len(names) != len(fds):
            raise Refusal("InvalidArgument", f"relay: {len(fds)} streams came, {len(names)} named")
        if names:
            name = str(request["process"])
            request["streams"] = self.streams.attach(name, names, fds)
        elif request.get("op") == "delete":
            self.streams.detach(str(request["process"]))
        key = str(message["key"])
        self._pending[key] = (peer, message.get("id"), request)
        self.link.send({**request, "id": key})

    # The guest

    def opened(self) -> None:
        """See `Handler.opened`: the guest says hello by itself."""

    def message(self, message: Message) -> None:
        """See `Handler.message`."""
        event = message.get("event")
        if event == "hello" and self.link is not None:
            self.greeted = message
            self.link.send(self.streams.sync())
        elif event == "synced" and not self.synced:
            self.streams.synced(message)
            self.synced = True
            self._tell_waiting()
        elif event == "exit":
            self._exited(message)
        elif "id" in message:
            self._answered(message)

    def _answered(self, message: Message) -> None:
        peer, number, request = self._pending.pop(str(message["id"]), (None, None, {}))
        if peer is None:
            return
        error = message.get("error")
        if "streams" in request:
            self.streams.answered(str(request["process"]))
            if error is not None and connections.NAME in request["streams"]:
                self.streams.detach(str(request["process"]))
        answer = {"ok": message.get("ok")} if error is None else {"error": error}
        peer.push({"id": number, **answer})

    def _exited(self, message: Message) -> None:
        """Pass an exit on once all that the process wrote is in the host's pipes."""
        self.streams.close_inputs(message["streams"])
        self.streams.when_written(message["streams"], lambda: self._push(message))

    def _push(self, message: Message) -> None:
        for peer in list(self.loop.peers.values()):
            peer.push(message)

    def data(self, stream: int, payload: bytes) -> None:
        """See `Handler.data`; what nobody has asked for is dropped."""
        sink = self.streams.sinks.get(stream)
        if sink is not None:
            sink.data(payload)

    def ended(self, stream: int) -> None:
        """See `Handler.ended`."""
        self.streams.ended(stream)

    def granted(self, stream: int, total: int) -> None:
        """See `Handler.granted`."""
        source = self.streams.sources.get(stream)
        if source is not None:
            source.granted(total)

    def room(self) -> None:
        """See `Handler.room`."""
        for source in list(self.streams.sources.values()):
            source.resume()

    def lost(self, why: str) -> None:
        """See `Handler.lost`: the VM has ended; so has everything in it."""
        note(f"channel: {why}")
        self.gone = f"the VM has ended ({why})"
        self._tell_waiting()
        for peer, number, _request in self._pending.values():
            self.loop.refuse(peer, number, Refusal("Unavailable", self.gone))
        self._pending.clear()
        self.streams.close_all()
        self._push({"event": "gone", "why": self.gone})

    def _tell_waiting(self) -> None:
        if not self.synced and not self.gone:
            return
        waiting, self._waiting = self._waiting, []
        for peer, number in waiting:
            if self.gone:
                self.loop.refuse(peer, number, Refusal("Unavailable", self.gone))
            else:
                self.loop.answer(peer, number, self.greeted or {}, [])


def _connect(path: str, seconds: float) -> socket.socket | None:
    """Connect to QEMU's end; it may just be starting. None: it is not there."""
    deadline = time.monotonic() + seconds
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect(path)
        except OSError:
            sock.close()
            if time.monotonic() >= deadline:
                return None
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
    """Become the relay of a VM: ``relay DIRECTORY NAME [KEEPER [HOST]]``.

    NAME is what the keeper knows our descriptors by, KEEPER the directory of its socket. HOST is the inode
    of the host's network namespace; with it the pod's interface is spliced.
    """
    process.set_name("polypod-relay")
    process.set_not_dumpable()
    directory, name, keeper, host = (*arguments, "", "")[:4]
    # Paths of sockets are short, those of directories need not be.
    os.chdir(directory)
    Relay(name, keeper, host).run()


if __name__ == "__main__":
    main(sys.argv[1:])
