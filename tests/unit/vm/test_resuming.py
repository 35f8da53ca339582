"""A relay that was killed, and the next one: what both ends agree on, byte for byte."""

from __future__ import annotations

import os
import random
import socket
import struct

import pytest

from polypod.supervisor.logger_sources import Scratch
from polypod.supervisor.server import Loop
from polypod_vm_child.counters import Counters
from polypod_vm_child.frames import (
    GREETING,
    MAX_PAYLOAD,
    WINDOW,
    Link,
    ProtocolError,
    new_epoch,
)
from polypod_vm_child.peeking import PeekingSource
from polypod_vm_child.streams import Sink, Source


class End:
    """One end of the channel, as relay or as guest."""

    def __init__(self) -> None:
        self.sources = {}
        self.sinks = {}
        self.messages = []
        self.opens = 0
        self.why = ""
        self.link: Link

    def opened(self):
        self.opens += 1
        for source in self.sources.values():
            if isinstance(source, Source):
                source.pause()

    def message(self, message):
        self.messages.append(message)

    def data(self, stream, payload):
        self.sinks[stream].data(payload)

    def ended(self, stream):
        if stream in self.sinks:
            self.sinks[stream].end()

    def granted(self, stream, total):
        if stream in self.sources:
            self.sources[stream].granted(total)

    def room(self):
        for source in self.sources.values():
            source.resume()

    def lost(self, why):
        self.why = why
        for source in self.sources.values():
            source.pause()


class Machine:
    """A guest that lives on, and relays that come and go; as in a machine, nobody tells the guest of it."""

    def __init__(self) -> None:
        self.loop = Loop(lambda *_: None)
        self.loop.timeout = 0.005
        self.guest = End()
        self.mine, theirs = socket.socketpair()
        self.guest.link = Link(self.loop, theirs.detach(), self.guest)
        self.relay: End | None = None
        self.epoch = 0

    def start_relay(self) -> End:
        """Start one; the channel's socket is QEMU's, so it stays."""
        self.epoch += 1
        relay = self.relay = End()
        fd = os.dup(self.mine.fileno())
        relay.link = Link(self.loop, fd, relay, new_epoch(self.epoch), again=self.epoch > 1)
        return relay

    def meet(self) -> None:
        """Let the two greet; a guest that takes what it got for broken opens its port again."""
        relay = self.relay
        for _ in range(2000):
            if relay.link.is_open:
                return
            if self.guest.link.fd < 0:
                self.mine.close()
                self.mine, theirs = socket.socketpair()
                relay.link.attach(os.dup(self.mine.fileno()))
                self.guest.link.attach(theirs.detach())
            relay.link.greet()
            self.loop.step()
        pytest.fail("they never met")

    def kill_relay(self) -> None:
        """It is gone in the middle of whatever it did; what it had read of the channel is lost."""
        for each in (*self.relay.sources.values(), *self.relay.sinks.values()):
            each.on_close = None
            each.close()
        self.relay.link.close()

    def until(self, holds) -> None:
        for _ in range(4000):
            if holds():
                return
            self.loop.step()
        pytest.fail("that never happened")

    def close(self) -> None:
        for end in (self.guest, self.relay):
            if end is not None:
                for each in (*end.sources.values(), *end.sinks.values()):
                    each.close()
                end.link.close()
        self.mine.close()
        self.loop.epoll.close()


@pytest.fixture
def machine():
    made = Machine()
    yield made
    made.close()


@pytest.fixture
def counters(tmp_path):
    return Counters(str(tmp_path / "counters"))


def drain(fd: int) -> bytes:
    os.set_blocking(fd, False)
    found = b""
    while True:
        try:
            piece = os.read(fd, 1 << 20)
        except BlockingIOError:
            return found
        if not piece:
            return found
        found += piece


@pytest.mark.parametrize("seed", range(6))
def test_output_survives_relays_that_are_killed_anywhere(machine, counters, seed):
    """The pipes of both sides outlive the relay, as the keeper sees to it."""
    chance = random.Random(seed)
    wanted = chance.randbytes(1_500_000)
    read_end, into = os.pipe()
    out, write_end = os.pipe()
    os.set_blocking(into, False)
    machine.guest.sources[2] = Source(machine.loop, machine.guest.link, 2, read_end, live=False)
    slot = counters.take()
    got, given = b"", 0
    while len(got) < len(wanted):
        relay = machine.start_relay()
        sink = Sink(
            machine.loop,
            relay.link,
            2,
            os.dup(write_end),
            written=counters.get(slot),
            note=lambda total: counters.set(slot, total),
        )
        relay.sinks[2] = sink
        machine.meet()
        machine.guest.sources[2].resume_at(sink.written)
        for _ in range(chance.randrange(5, 60)):
            try:
                given += os.write(into, wanted[given : given + 60_000])
            except BlockingIOError:
                given += 0
            machine.loop.step()
            if chance.random() < 0.7:
                got += drain(out)
        machine.kill_relay()
        got += drain(out)
    assert got == wanted
    for fd in (into, out, write_end):
        os.close(fd)


@pytest.mark.parametrize("seed", range(6))
def test_input_survives_relays_that_are_killed_anywhere(machine, counters, seed):
    chance = random.Random(seed)
    wanted = chance.randbytes(700_000)
    read_end, into = os.pipe()
    out, write_end = os.pipe()
    os.set_blocking(into, False)
    scratch = Scratch()
    sink = machine.guest.sinks[2] = Sink(machine.loop, machine.guest.link, 2, write_end)
    slot = counters.take()
    got, given = b"", 0
    while len(got) < len(wanted):
        relay = machine.start_relay()
        source = PeekingSource(
            machine.loop,
            relay.link,
            2,
            os.dup(read_end),
            scratch,
            consumed=counters.get(slot),
            note=lambda total: counters.set(slot, total),
        )
        relay.sources[2] = source
        machine.meet()
        sink.tell()
        source.resume_at(sink.received)
        for _ in range(chance.randrange(5, 40)):
            try:
                given += os.write(into, wanted[given : given + 60_000])
            except BlockingIOError:
                given += 0
            machine.loop.step()
            if chance.random() < 0.7:
                got += drain(out)
        machine.kill_relay()
        got += drain(out)
    assert got == wanted
    scratch.close()
    for fd in (read_end, into, out):
        os.close(fd)


def test_half_a_frame_of_a_killed_relay_is_not_believed(machine):
    relay = machine.start_relay()
    machine.meet()
    out, write_end = os.pipe()
    machine.guest.sinks[2] = Sink(machine.loop, machine.guest.link, 2, write_end)
    os.write(relay.link.fd, struct.pack("!IBI", 2, 2, MAX_PAYLOAD) + b"half of what was to come")
    machine.until(lambda: machine.guest.link._incoming)
    machine.kill_relay()
    machine.start_relay()
    machine.meet()
    assert machine.guest.opens == 2
    assert drain(out) == b""
    os.close(out)


def test_a_greeting_that_is_repeated_changes_nothing(machine):
    relay = machine.start_relay()
    os.write(relay.link.fd, GREETING + relay.link._epoch)
    machine.meet()
    os.write(relay.link.fd, GREETING + relay.link._epoch)
    relay.link.send({"n": 1})
    machine.until(lambda: machine.guest.messages)
    assert (machine.guest.opens, machine.guest.why) == (1, "")


def test_an_end_that_nobody_saw_is_told_again(machine):
    relay = machine.start_relay()
    machine.meet()
    read_end, into = os.pipe()
    source = Source(machine.loop, machine.guest.link, 2, read_end)
    machine.guest.sources[2] = source
    out, write_end = os.pipe()
    os.write(into, b"last words")
    os.close(into)
    relay.data = lambda *_: None
    machine.until(lambda: source.fd < 0)
    machine.kill_relay()
    relay = machine.start_relay()
    relay.sinks[2] = Sink(machine.loop, relay.link, 2, write_end)
    machine.meet()
    source.resume_at(0)
    machine.until(lambda: relay.sinks[2].fd < 0)
    assert drain(out) == b"last words"
    os.close(out)


@pytest.mark.parametrize("total", [-1, 1, WINDOW])
def test_what_cannot_have_arrived_is_no_agreement(machine, total):
    machine.start_relay()
    machine.meet()
    read_end, into = os.pipe()
    source = machine.guest.sources[2] = Source(machine.loop, machine.guest.link, 2, read_end)
    with pytest.raises(ProtocolError, match="written"):
        source.resume_at(total)
    os.close(into)


def test_counts_and_numbers_outlive_who_made_them(tmp_path):
    path = str(tmp_path / "counters")
    first = Counters(path)
    assert (first.next_epoch(), first.next_stream()) == (1, 2)
    slot = first.take()
    first.set(slot, 12345678901)
    second = Counters(path)
    assert (second.next_epoch(), second.next_stream()) == (2, 4)
    second.keep(slot)
    assert second.get(slot) == 12345678901
    assert second.take() != slot
    second.give_back(slot)
    assert second.take() == slot
    assert second.get(slot) == 0


def test_epochs_count_up_and_their_marks_are_never_padding():
    epochs = [new_epoch(number) for number in range(300)]
    assert epochs == sorted(epochs)
    assert all(len(each) == 8 and each[4:] != b"\xff\xff\xff\xff" for each in epochs)
