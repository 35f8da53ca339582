"""The guest's end of the channel: its streams, and what it agrees on with a relay that has just come.

The guest outlives every relay. It keeps what a relay is not known to have written, and the answers to the
latest requests, so that the next relay gets what the one before it may have lost.
"""

from __future__ import annotations

import os

from polypod.supervisor.server import note
from polypod_vm_child.frames import Link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from polypod_vm_child.guest_bridge import Bridge
    from polypod_vm_child.streams import Sink, Source

    Message = dict[str, Any]

PORT = "polypod.0"
_OPENS_AGAIN_S = 0.02
_OPENS_AT_LEAST_S = 0.25
_ANSWERS_MAX = 256


class Channel:
    """Implements `polypod_vm_child.frames.Handler`."""

    def __init__(self, bridge: Bridge) -> None:
        self.sources: dict[int, Source] = {}
        self.sinks: dict[int, Sink] = {}
        self.synced = False
        self._bridge = bridge
        self._answers: dict[str, Message | None] = {}
        """Request → its answer, None as long as it is at work: who asks again (another relay) gets the same."""
        self._looks_s = _OPENS_AGAIN_S
        self.link = Link(bridge.loop, _open_port(), self)

    # The connection

    def opened(self) -> None:
        """See `Handler.opened`: nothing is sent before `_agree` has told what had arrived."""
        self._pause()
        self._looks_s = _OPENS_AGAIN_S
        self.link.send({"event": "hello", "kernel": os.uname().release})
        self._bridge.greeted()

    def lost(self, why: str) -> None:
        """See `Handler.lost`: the host may connect again, at any time."""
        if self._looks_s == _OPENS_AGAIN_S:
            # Once, however long nobody comes.
            note(f"channel: {why}")
        self._pause()
        self._bridge.after(self._looks_s, lambda: self.link.attach(_open_port()))
        self._looks_s = min(2 * self._looks_s, _OPENS_AT_LEAST_S)

    def _pause(self) -> None:
        self.synced = False
        for source in self.sources.values():
            source.pause()

    def _agree(self, message: Message) -> None:
        """Agree with a relay: what of our output it has, what of its input we have.

        What it has not is sent once more, and then every exit.
        """
        written = {int(stream): int(count) for stream, count in message["written"].items()}
        reading = set(message["reading"])
        self.synced = True
        processes = self._bridge.processes.values()
        received = {
            each: sink.received if sink.fd >= 0 else -1 for each, sink in self.sinks.items()
        }
        streams = [each for process in processes for each in process.streams]
        self.link.send({"event": "synced", "streams": streams, "received": received})
        for stream, source in list(self.sources.items()):
            if stream in written:
                source.resume_at(written[stream])
            else:
                source.close()
        for stream, sink in list(self.sinks.items()):
            if stream in reading:
                sink.tell()
            else:
                sink.end()
        self._bridge.tell_exits()

    # Streams

    def data(self, stream: int, payload: bytes) -> None:
        """See `Handler.data`."""
        sink = self.sinks.get(stream)
        if sink is not None:
            sink.data(payload)

    def ended(self, stream: int) -> None:
        """See `Handler.ended`."""
        self._bridge.forwards.ended(stream)
        sink, source = self.sinks.get(stream), self.sources.get(stream)
        if sink is not None:
            sink.end()
        if source is not None:
            source.close()

    def granted(self, stream: int, total: int) -> None:
        """See `Handler.granted`."""
        source = self.sources.get(stream)
        if source is not None:
            source.granted(total)

    def room(self) -> None:
        """See `Handler.room`."""
        for source in list(self.sources.values()):
            source.resume()

    # Requests

    def message(self, message: Message) -> None:
        """See `Handler.message`: one request, which is done once however often it comes."""
        if message.get("op") == "sync":
            self._agree(message)
            return
        key = message.get("id")
        if key in self._answers:
            known = self._answers[key]
            if known is not None:
                self.link.send(known)
            return
        if key is not None:
            self._expect(key)

        def answer(ok: Message | None, error: Message | None = None) -> None:
            said: Message = {"id": key}
            said.update({"ok": ok or {}} if error is None else {"error": error})
            if key is not None:
                self._answers[key] = said
            self.link.send(said)

        self._bridge.perform(message, answer)

    def _expect(self, key: str) -> None:
        """Remember a request; the oldest that were answered are forgotten."""
        for old in list(self._answers)[: max(0, len(self._answers) - _ANSWERS_MAX)]:
            if self._answers[old] is not None:
                del self._answers[old]
        self._answers[key] = None


def _open_port() -> int:
    base = "/sys/class/virtio-ports"
    for name in os.listdir(base):
        with open(f"{base}/{name}/name") as file:
            if file.read().strip() == PORT:
                return os.open(f"/dev/{name}", os.O_RDWR | os.O_CLOEXEC)
    text = f"no virtio-serial port is named {PORT}"
    raise FileNotFoundError(2, text)
