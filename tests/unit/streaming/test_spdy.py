"""A SPDY connection's rules: numbers, ends, resets, windows; two ends against each other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.streaming import spdy_frames as frames
from polypod.streaming.errors import ProtocolError
from polypod.streaming.spdy import (
    MAX_STREAMS,
    WINDOW_BYTES,
    Connection,
    DataReceived,
    PeerLeaves,
    StreamAccepted,
    StreamEnded,
    StreamOpened,
    StreamReset,
    WindowOpened,
)


class Ends:
    """A client and a server; what one sends the other receives."""

    def __init__(self):
        self.client, self.server = Connection(client=True), Connection()

    def to_server(self):
        return list(self.server.receive(self.client.bytes_to_send()))

    def to_client(self):
        return list(self.client.receive(self.server.bytes_to_send()))

    def open(self):
        number = self.client.open({"streamtype": "stdin"})
        self.to_server()
        self.server.accept(number)
        self.to_client()
        return number


@pytest.fixture
def ends():
    return Ends()


def said(connection):
    """The frames that a connection has to send."""
    return list(frames.FrameReader().feed(connection.bytes_to_send()))


def told(connection, *sent):
    """What a connection makes of a peer's frames."""
    writer = frames.FrameWriter()
    return list(connection.receive(b"".join(writer.write(frame) for frame in sent)))


def test_a_stream_from_its_beginning_to_its_end(ends):
    number = ends.client.open({"streamType": "stdin"})
    assert ends.to_server() == [StreamOpened(number, {"streamtype": "stdin"}, ended=False)]
    ends.server.accept(number)
    assert ends.to_client() == [StreamAccepted(number)]
    assert ends.client.send(number, b"to") == 2
    ends.client.end(number)
    assert ends.to_server() == [DataReceived(number, b"to"), StreamEnded(number)]
    assert ends.server.is_open(number)
    ends.server.send(number, b"back")
    ends.server.end(number)
    ends.server.end(number)
    assert ends.to_client() == [DataReceived(number, b"back"), StreamEnded(number)]
    assert not ends.server.is_open(number)
    assert not ends.client.is_open(number)


def test_clients_count_odd_and_servers_even(ends):
    assert [ends.client.open({}) for _ in range(3)] == [1, 3, 5]
    assert [ends.server.open({}) for _ in range(3)] == [2, 4, 6]


@pytest.mark.parametrize("numbers", [[2], [0], [3, 1], [1, 1]], ids=str)
def test_numbers_that_a_client_may_not_use(numbers):
    with pytest.raises(ProtocolError, match="not a number"):
        told(Connection(), *(frames.SynStream(number) for number in numbers))


def test_after_an_error_the_peer_is_told(ends):
    with pytest.raises(ProtocolError):
        told(ends.server, frames.SynStream(2))
    assert said(ends.server) == [frames.GoAway(0, 1)]


def test_a_ping_comes_back_and_an_own_one_does_not(ends):
    ends.client.ping()
    ends.server.ping()
    assert ends.to_server() == []
    assert said(ends.server) == [frames.Ping(2), frames.Ping(1)]
    told(ends.server, frames.Ping(2))
    assert said(ends.server) == []


def test_a_reset_ends_both_directions(ends):
    number = ends.open()
    ends.server.reset(number)
    assert ends.to_client() == [StreamReset(number, frames.Status.CANCEL)]
    assert ends.client.send(number, b"into the void") == 13
    ends.client.end(number)
    assert said(ends.client) == []


def test_data_for_an_unknown_stream_is_dropped(ends):
    assert told(ends.server, frames.Data(7, b"who?"), frames.RstStream(7, 5)) == []


def test_data_after_the_end_resets_the_stream(ends):
    number = ends.open()
    ends.client.end(number)
    ends.to_server()
    assert told(ends.server, frames.Data(number, b"more")) == [
        StreamReset(number, frames.Status.STREAM_ALREADY_CLOSED)
    ]


def test_a_stream_that_begins_ended(ends):
    number = ends.client.open({}, ended=True)
    assert ends.to_server() == [StreamOpened(number, {}, ended=True)]
    ends.server.accept(number)
    ends.server.end(number)
    assert ends.to_client() == [StreamAccepted(number), StreamEnded(number)]
    assert not ends.server.is_open(number)


def test_a_stream_accepted_twice_is_an_error(ends):
    number = ends.client.open({})
    with pytest.raises(ProtocolError, match="twice"):
        told(ends.client, frames.SynReply(number), frames.SynReply(number))


def test_too_many_streams_are_refused_and_the_others_go_on():
    server = Connection()
    sent = [frames.SynStream(2 * number + 1) for number in range(MAX_STREAMS + 1)]
    assert len(told(server, *sent)) == MAX_STREAMS
    assert said(server) == [frames.RstStream(2 * MAX_STREAMS + 1, frames.Status.REFUSED_STREAM)]


def test_who_leaves_takes_no_more_streams(ends):
    number = ends.open()
    ends.server.leave()
    ends.server.leave()
    assert ends.to_client() == [PeerLeaves()]
    ends.client.open({})
    assert ends.to_server() == []
    assert ends.server.is_open(number)


def test_long_data_is_sent_in_frames_that_leave_room_for_others(ends):
    number = ends.open()
    ends.server.send(number, bytes(100_000))
    lengths = [len(frame.data) for frame in said(ends.server)]
    assert sum(lengths) == 100_000
    assert max(lengths) <= 32 * 1024


# Windows.


def test_a_peer_without_flow_control_is_not_held_back_by_windows(ends):
    number = ends.open()
    assert ends.server.send(number, bytes(10 * WINDOW_BYTES)) == 10 * WINDOW_BYTES


def test_a_stream_stops_at_its_window_and_goes_on_with_an_update(ends):
    number = ends.open()
    assert told(ends.server, frames.WindowUpdate(0, 1_000_000)) == [WindowOpened()]
    assert ends.server.send(number, bytes(100_000)) == WINDOW_BYTES
    assert ends.server.send(number, b"x") == 0
    told(ends.server, frames.WindowUpdate(number, 10))
    assert ends.server.send(number, bytes(100)) == 10


def test_all_streams_stop_at_the_connections_window(ends):
    one, two = ends.open(), ends.open()
    told(ends.server, frames.WindowUpdate(one, 100))
    assert ends.server.send(one, bytes(60_000)) == 60_000
    assert ends.server.send(two, bytes(60_000)) == WINDOW_BYTES - 60_000
    told(ends.server, frames.WindowUpdate(0, 7))
    assert ends.server.send(two, bytes(60_000)) == 7


def test_what_was_sent_before_the_first_update_counts(ends):
    number = ends.open()
    ends.server.send(number, bytes(2 * WINDOW_BYTES))
    told(ends.server, frames.WindowUpdate(number, 1000), frames.WindowUpdate(0, 1000))
    assert ends.server.send(number, b"x") == 0
    more = WINDOW_BYTES
    told(ends.server, frames.WindowUpdate(number, more), frames.WindowUpdate(0, more))
    assert ends.server.send(number, bytes(5000)) == 1000


def test_settings_move_the_windows_of_open_streams(ends):
    number = ends.open()
    told(ends.server, frames.WindowUpdate(0, 1_000_000), frames.Settings(100))
    assert ends.server.send(number, bytes(200)) == 100
    told(ends.server, frames.Settings(150))
    assert ends.server.send(number, bytes(200)) == 50


@pytest.mark.parametrize("stream", [0, 1], ids=["connection", "stream"])
def test_a_window_cannot_grow_beyond_all_bounds(ends, stream):
    ends.open()
    with pytest.raises(ProtocolError, match="too large"):
        told(ends.server, frames.WindowUpdate(stream, 0x7FFFFFFF))


def test_used_bytes_are_reported_by_the_half_window(ends):
    number = ends.open()
    half = WINDOW_BYTES // 2
    ends.server.consumed(number, half - 1)
    assert said(ends.server) == []
    ends.server.consumed(number, 1)
    assert said(ends.server) == [frames.WindowUpdate(0, half), frames.WindowUpdate(number, half)]


def test_bytes_of_a_stream_that_is_gone_still_open_the_connections_window(ends):
    number = ends.open()
    ends.server.reset(number)
    ends.server.bytes_to_send()
    told(ends.server, frames.Data(number, bytes(WINDOW_BYTES)))
    assert said(ends.server) == [frames.WindowUpdate(0, WINDOW_BYTES)]


def test_two_ends_with_windows_move_any_amount(ends):
    number = ends.open()
    told(ends.server, frames.Settings(WINDOW_BYTES))
    left, got = bytes(1_000_000), 0
    while got < 1_000_000:
        left = left[ends.server.send(number, left) :]
        for event in ends.to_client():
            assert isinstance(event, DataReceived)
            got += len(event.data)
            ends.client.consumed(number, len(event.data))
        ends.to_server()
    assert left == b""


actions = st.lists(
    st.one_of(
        st.builds(frames.SynStream, st.integers(0, 9), st.just({"a": "b"}), st.booleans()),
        st.builds(frames.SynReply, st.integers(0, 9), st.just({}), st.booleans()),
        st.builds(frames.Headers, st.integers(0, 9), st.just({}), st.booleans()),
        st.builds(frames.RstStream, st.integers(0, 9), st.integers(0, 11)),
        st.builds(frames.Data, st.integers(0, 9), st.binary(max_size=9), st.booleans()),
        st.builds(frames.WindowUpdate, st.integers(0, 9), st.integers(0, 0x7FFFFFFF)),
        st.builds(frames.Settings, st.integers(0, 0x7FFFFFFF)),
        st.builds(frames.Ping, st.integers(0, 9)),
        st.builds(frames.GoAway, st.integers(0, 9)),
        st.sampled_from(["accept", "end", "reset", "send", "consumed"]),
    ),
    max_size=40,
)


@given(actions)
def test_any_order_of_frames_keeps_the_rules(steps):
    """A stream is told as opened first, nothing is told after its end, and what we say can be read."""
    server, writer, reader = Connection(), frames.FrameWriter(), frames.FrameReader()
    opened, ended = set(), set()
    try:
        for step in steps:
            if isinstance(step, str):
                for number in sorted(opened):
                    method = getattr(server, step)
                    method(number, *{"send": (b"x",), "consumed": (1,)}.get(step, ()))
            else:
                for event in server.receive(writer.write(step)):
                    if isinstance(event, StreamOpened):
                        assert event.stream not in opened
                        opened.add(event.stream)
                    elif isinstance(event, (DataReceived, StreamEnded)):
                        assert event.stream in opened
                        assert event.stream not in ended
                        if isinstance(event, StreamEnded):
                            ended.add(event.stream)
            for _frame in reader.feed(server.bytes_to_send()):
                pass
    except ProtocolError:
        assert any(isinstance(f, frames.GoAway) for f in reader.feed(server.bytes_to_send()))
