"""The channel's framing: stale bytes, epochs, credits, and a side that does not keep to it."""

from __future__ import annotations

import contextlib
import os
import socket
import struct

import pytest

from polypod.supervisor.server import Loop
from polypod_vm_child.frames import GREETING, MAX_PAYLOAD, WINDOW, Link
from polypod_vm_child.streams import Sink, Source

EPOCH = b"12345678"
MARK = b"5678"


class Side:
    """One end: a link, and what it told."""

    def __init__(self, loop: Loop, sock: socket.socket, epoch: bytes = b"") -> None:
        self.loop = loop
        self.messages: list[dict] = []
        self.why = ""
        self.opens = 0
        self.sources: dict[int, Source] = {}
        self.sinks: dict[int, Sink] = {}
        self.link = Link(loop, sock.detach(), self, epoch)

    def opened(self):
        self.opens += 1

    def message(self, message):
        self.messages.append(message)

    def data(self, stream, payload):
        self.sinks[stream].data(payload)

    def ended(self, stream):
        if stream in self.sinks:
            self.sinks[stream].end()
        if stream in self.sources:
            self.sources[stream].close()

    def granted(self, stream, count):
        if stream in self.sources:
            self.sources[stream].granted(count)

    def room(self):
        for source in self.sources.values():
            source.resume()

    def lost(self, why):
        self.why = why

    def source(self, stream):
        """Return the write end of a pipe that is read into a stream."""
        read_end, write_end = os.pipe()
        self.sources[stream] = Source(self.loop, self.link, stream, read_end)
        return write_end

    def sink(self, stream):
        """Return the read end of a pipe that a stream is written into."""
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        self.sinks[stream] = Sink(self.loop, self.link, stream, write_end)
        return read_end


class Pair:
    """Host and guest on one socket pair."""

    def __init__(self) -> None:
        self.loop = Loop(lambda *_: None)
        self.loop.timeout = 0.01
        ours, theirs = socket.socketpair()
        self.guest = Side(self.loop, theirs)
        self.raw = ours

    def connect(self) -> Side:
        self.host = Side(self.loop, self.raw, EPOCH)
        self.until(lambda: self.host.link.is_open and self.guest.link.is_open)
        return self.host

    def until(self, holds):
        for _ in range(2000):
            if holds():
                return
            self.loop.step()
        pytest.fail("that never happened")

    def quiet(self):
        for _ in range(20):
            self.loop.step()


@pytest.fixture
def pair():
    made = Pair()
    ends: list[int] = []
    made.ends = ends
    yield made
    for side in (made.guest, getattr(made, "host", None)):
        if side is not None:
            for each in (*side.sources.values(), *side.sinks.values()):
                each.close()
            side.link.close()
    made.raw.close()
    for fd in ends:
        os.close(fd)
    made.loop.epoll.close()


def drain(fd: int) -> bytes:
    data = b""
    while True:
        try:
            piece = os.read(fd, 1 << 20)
        except BlockingIOError:
            return data
        if not piece:
            return data
        data += piece


def test_both_sides_open_once(pair):
    pair.connect()
    pair.quiet()
    assert (pair.host.opens, pair.guest.opens) == (1, 1)


def test_messages_arrive_whole_however_large(pair):
    host = pair.connect()
    large = {"text": "x" * (5 * MAX_PAYLOAD)}
    host.link.send({"n": 1})
    host.link.send(large)
    host.link.send({})
    pair.until(lambda: len(pair.guest.messages) == 3)
    assert pair.guest.messages == [{"n": 1}, large, {}]


def test_bytes_from_before_the_greeting_are_dropped(pair):
    pair.raw.send(b"half a frame of an earlier connection" + GREETING[:7])
    pair.connect()
    pair.host.link.send({"n": 2})
    pair.until(lambda: pair.guest.messages)
    assert pair.guest.messages == [{"n": 2}]


def test_an_answer_of_an_earlier_epoch_is_not_taken(pair):
    loop = pair.loop
    ours, theirs = socket.socketpair()
    host = Side(loop, ours, EPOCH)
    theirs.send(GREETING + b"earlier!" + b"\0" * 40)
    for _ in range(5):
        loop.step()
    assert not host.link.is_open
    theirs.send(GREETING + EPOCH)
    pair.until(lambda: host.link.is_open)
    host.link.close()
    theirs.close()


def test_a_stream_arrives_whole_and_ends(pair):
    host = pair.connect()
    into, out = pair.guest.source(4), host.sink(4)
    pair.ends.append(out)
    data = os.urandom(3 * WINDOW)
    got = b""
    os.set_blocking(into, False)
    rest = data
    while len(got) < len(data):
        if rest:
            with contextlib.suppress(BlockingIOError):
                rest = rest[os.write(into, rest[:65536]) :]
            if not rest:
                os.close(into)
        pair.loop.step()
        got += drain(out)
    assert got == data
    pair.until(lambda: host.sinks[4].fd < 0)


def test_a_reader_that_waits_holds_up_its_own_stream_alone(pair):
    host = pair.connect()
    slow_in, slow_out = pair.guest.source(2), host.sink(2)
    quick_in, quick_out = pair.guest.source(4), host.sink(4)
    pair.ends += [slow_in, slow_out, quick_in, quick_out]
    os.set_blocking(slow_in, False)
    for _ in range(200):
        with contextlib.suppress(BlockingIOError):
            os.write(slow_in, b"x" * 65536)
        pair.loop.step()
    assert pair.guest.sources[2].sent <= WINDOW + 65536 + 4096
    os.write(quick_in, b"quick")
    got = b""
    for _ in range(50):
        pair.loop.step()
        got += drain(quick_out)
    assert got == b"quick"


def test_what_was_written_before_is_sent_before(pair):
    host = pair.connect()
    into, out = pair.guest.source(4), host.sink(4)
    pair.ends += [into, out]
    os.write(into, b"last words")
    told = []
    pair.guest.sources[4].when_sent(lambda: told.append("exit"))
    assert told == []
    pair.until(lambda: told)
    pair.guest.link.send({"event": "exit"})
    pair.until(lambda: host.messages)
    assert drain(out) == b"last words"


def test_an_unfinished_line_comes_with_the_end_of_its_stream(pair):
    host = pair.connect()
    later = []
    read_end, into = os.pipe()
    pair.guest.sources[4] = Source(
        pair.loop, pair.guest.link, 4, read_end, lambda _seconds, call: later.append(call)
    )
    out = host.sink(4)
    pair.ends.append(out)
    os.write(into, b"a line\nunfin")
    pair.quiet()
    assert drain(out) == b""
    os.write(into, b"ished")
    os.close(into)
    pair.until(lambda: host.sinks[4].fd < 0)
    assert drain(out) == b"a line\nunfinished"
    assert len(later) == 1


def test_an_unfinished_line_does_not_wait_for_ever(pair):
    host = pair.connect()
    later = []
    read_end, into = os.pipe()
    source = Source(pair.loop, pair.guest.link, 4, read_end, lambda _s, call: later.append(call))
    pair.guest.sources[4] = source
    out = host.sink(4)
    pair.ends += [out, into]
    os.write(into, b"prompt> ")
    pair.until(lambda: later)
    told = []
    source.when_sent(lambda: told.append(1))
    assert told == []
    later[0]()
    pair.quiet()
    assert drain(out) == b"prompt> "
    assert told == [1]


def test_a_reader_that_left_is_told_to_the_writer(pair):
    host = pair.connect()
    into, out = pair.guest.source(4), host.sink(4)
    os.close(out)
    os.write(into, b"for nobody")
    pair.until(lambda: pair.guest.sources[4].fd < 0)
    with pytest.raises(BrokenPipeError):
        os.write(into, b"more")
    os.close(into)


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (struct.pack("!IBI", 0, 1, MAX_PAYLOAD + 1), "at most"),
        (struct.pack("!IBI", 0, 9, 0) + MARK, "kind 9"),
        (struct.pack("!IBI", 3, 1, 2) + b"{}" + MARK, "kind 1 on stream 3"),
        (struct.pack("!IBI", 0, 1, 2) + b"[]" + MARK, "no object"),
        (struct.pack("!IBI", 0, 1, 2) + b"{!" + MARK, "Expecting"),
        (struct.pack("!IBI", 0, 1, 2) + b"{}" + b"mark", "not finished"),
        (b"\0oldy" + bytes(30), "neither a frame nor a greeting"),
        (struct.pack("!IBIQ", 4, 4, 8, 1) + MARK, "1 bytes written of 0 to 0"),
    ],
    ids=[
        "too long",
        "unknown kind",
        "message on a stream",
        "no object",
        "no JSON",
        "of another connection",
        "no greeting",
        "written what was not sent",
    ],
)
def test_a_side_that_breaks_the_framing_loses_the_channel(pair, frame, why):
    pair.connect()
    pair.ends.append(pair.guest.source(4))
    os.write(pair.host.link.fd, frame)
    pair.until(lambda: pair.guest.why)
    assert why in pair.guest.why


def test_more_than_was_granted_loses_the_channel(pair):
    host = pair.connect()
    out = host.sink(4)
    pair.ends.append(out)
    for _ in range(2 * WINDOW // MAX_PAYLOAD):
        pair.guest.link.send_data(4, b"x" * MAX_PAYLOAD)
    pair.until(lambda: host.why)
    assert "granted" in host.why
