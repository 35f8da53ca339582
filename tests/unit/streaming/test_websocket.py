"""Channels in WebSocket messages, in every dialect, whole and in fragments; and any bytes at all."""

import base64
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.streaming.errors import ProtocolError
from polypod.streaming.protocols import WEBSOCKET_COMMAND, WEBSOCKET_PORT_FORWARD
from polypod.streaming.websocket import ChannelClosed, ChannelData, Closed, WebSocket

DIALECTS = {each.name: each for each in (*WEBSOCKET_COMMAND, *WEBSOCKET_PORT_FORWARD)}
V5 = DIALECTS["v5.channel.k8s.io"]
V4 = next(each for each in WEBSOCKET_COMMAND if each.name == "v4.channel.k8s.io")
BASE64 = next(each for each in WEBSOCKET_COMMAND if each.name == "v4.base64.channel.k8s.io")
TEXT, BINARY, CLOSE, PING, CONTINUATION = 1, 2, 8, 9, 0
MASK = b"\x11\x22\x33\x44"


def frame(opcode, payload, *, fin=True, masked=True):
    """A frame made by hand, as a client sends it (RFC 6455, 5.2)."""
    head = bytes([opcode | (0x80 if fin else 0)])
    bit = 0x80 if masked else 0
    if len(payload) < 126:
        head += bytes([bit | len(payload)])
    else:
        head += bytes([bit | 126]) + struct.pack(">H", len(payload))
    if not masked:
        return head + payload
    return head + MASK + bytes(b ^ MASK[i % 4] for i, b in enumerate(payload))


def read(dialect, data):
    return list(WebSocket(dialect).receive(data))


@pytest.mark.parametrize("dialect", [V4, V5], ids=lambda dialect: dialect.name)
def test_the_first_byte_is_the_channel(dialect):
    assert read(dialect, frame(BINARY, b"\x00hello")) == [ChannelData(0, b"hello")]
    assert read(dialect, frame(BINARY, b"\x04{}")) == [ChannelData(4, b"{}")]


def test_an_empty_message_says_nothing():
    assert read(V5, frame(BINARY, b"\x00") + frame(BINARY, b"")) == []


def test_version_5_closes_a_channel_and_version_4_does_not_know_that():
    assert read(V5, frame(BINARY, b"\xff\x00")) == [ChannelClosed(0)]
    assert read(V4, frame(BINARY, b"\xff\x00")) == [ChannelData(255, b"\x00")]


def test_a_message_in_fragments_stays_on_its_channel():
    raw = (
        frame(BINARY, b"\x00a", fin=False)
        + frame(PING, b"there?")
        + frame(CONTINUATION, b"b", fin=False)
        + frame(CONTINUATION, b"", fin=True)
        + frame(BINARY, b"\x04c")
    )
    assert read(V5, raw) == [ChannelData(0, b"a"), ChannelData(0, b"b"), ChannelData(4, b"c")]


def test_a_ping_is_answered_with_what_it_brought():
    socket = WebSocket(V5)
    assert list(socket.receive(frame(PING, b"there?"))) == []
    assert socket.bytes_to_send() == frame(0xA, b"there?", masked=False)


def test_base64_is_a_digit_and_text():
    raw = frame(TEXT, b"0" + base64.b64encode(b"hello"))
    assert read(BASE64, raw) == [ChannelData(0, b"hello")]


def test_base64_in_fragments_that_break_a_group():
    digits = base64.b64encode(b"some longer text")
    raw = (
        frame(TEXT, b"0" + digits[:3], fin=False)
        + frame(CONTINUATION, digits[3:9], fin=False)
        + frame(CONTINUATION, digits[9:])
    )
    found = read(BASE64, raw)
    assert b"".join(event.data for event in found) == b"some longer text"
    assert {event.channel for event in found} == {0}


@pytest.mark.parametrize(
    ("dialect", "raw"),
    {
        "text in a binary dialect": (V5, frame(TEXT, b"0abc")),
        "bytes in a base64 dialect": (BASE64, frame(BINARY, b"\x00abc")),
        "a channel that is no digit": (BASE64, frame(TEXT, b"\x00abcd")),
        "no base64": (BASE64, frame(TEXT, b"0a*cd")),
        "base64 cut short": (BASE64, frame(TEXT, b"0abc")),
    }.values(),
)
def test_a_message_of_the_wrong_kind_ends_the_connection(dialect, raw):
    socket = WebSocket(dialect)
    with pytest.raises(ProtocolError):
        list(socket.receive(raw))
    assert socket.bytes_to_send()[:4] == b"\x88\x02" + struct.pack(">H", 1002)


def test_a_frame_without_a_mask_ends_the_connection():
    socket = WebSocket(V5)
    assert list(socket.receive(frame(BINARY, b"\x00a", masked=False))) == [Closed()]
    assert socket.bytes_to_send()[:1] == b"\x88"


def test_a_close_is_answered_once():
    socket = WebSocket(V5)
    assert list(socket.receive(frame(CLOSE, struct.pack(">H", 1000)))) == [Closed()]
    socket.close()
    assert socket.bytes_to_send() == frame(CLOSE, struct.pack(">H", 1000), masked=False)


def test_nothing_is_sent_after_the_end():
    socket = WebSocket(V5)
    socket.close()
    socket.bytes_to_send()
    socket.send(1, b"late")
    socket.close()
    assert socket.bytes_to_send() == b""


def test_a_server_ends_no_channel_and_a_client_of_version_5_does():
    server, client = WebSocket(V5), WebSocket(V5, client=True)
    server.end(1)
    client.end(0)
    assert server.bytes_to_send() == b""
    assert list(server.receive(client.bytes_to_send())) == [ChannelClosed(0)]


@given(
    st.sampled_from(sorted(DIALECTS)),
    st.lists(st.tuples(st.integers(0, 4), st.binary(min_size=1, max_size=300)), max_size=6),
    st.lists(st.integers(1, 40), max_size=80),
)
def test_what_one_end_sends_the_other_reads_however_it_is_cut(name, messages, cuts):
    dialect = DIALECTS[name]
    client, server = WebSocket(dialect, client=True), WebSocket(dialect)
    for channel, data in messages:
        client.send(0 if dialect.tunnel else channel, data)
    raw, found = client.bytes_to_send(), []
    for cut in [*cuts, len(raw)]:
        found += server.receive(raw[:cut])
        raw = raw[cut:]
    for channel in range(5):
        sent = b"".join(d for c, d in messages if (0 if dialect.tunnel else c) == channel)
        assert b"".join(e.data for e in found if e.channel == channel) == sent


@given(st.sampled_from(sorted(DIALECTS)), st.lists(st.binary(max_size=100), max_size=8))
def test_any_bytes_are_events_or_a_protocol_error(name, pieces):
    socket = WebSocket(DIALECTS[name])
    try:
        for piece in pieces:
            for event in socket.receive(piece):
                assert isinstance(event, (ChannelData, ChannelClosed, Closed))
                if isinstance(event, Closed):
                    return
    except ProtocolError:
        return


@given(
    st.sampled_from(sorted(DIALECTS)),
    st.lists(
        st.tuples(st.sampled_from([0, 1, 2, 8, 9, 10]), st.binary(max_size=125), st.booleans()),
        max_size=8,
    ),
)
def test_any_frames_are_events_or_a_protocol_error(name, sent):
    socket = WebSocket(DIALECTS[name])
    try:
        for opcode, payload, fin in sent:
            for event in socket.receive(frame(opcode, payload, fin=fin)):
                if isinstance(event, Closed):
                    return
    except ProtocolError:
        return
