"""Bytes to frames and back: whole, in pieces, hostile."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod_nri.framing import (
    MAX_PAYLOAD,
    PLUGIN_CONNECTION,
    RUNTIME_CONNECTION,
    Decoder,
    Frame,
    FrameType,
    ProtocolError,
    encode,
)

FRAMES = st.builds(
    Frame,
    stream=st.integers(0, 2**32 - 1),
    type=st.integers(0, 255),
    payload=st.binary(max_size=9000),
    flags=st.integers(0, 255),
)
TRAFFIC = st.lists(
    st.tuples(st.sampled_from([PLUGIN_CONNECTION, RUNTIME_CONNECTION]), FRAMES), max_size=6
)


def cut(data, sizes):
    """Yield data in pieces of the sizes, the rest at the end."""
    for size in sizes:
        yield data[:size]
        data = data[size:]
    yield data


@given(traffic=TRAFFIC, sizes=st.lists(st.integers(0, 5000), max_size=20))
def test_what_is_encoded_is_decoded_however_it_is_cut(traffic, sizes):
    data = b"".join(encode(connection, frame) for connection, frame in traffic)
    decoder = Decoder()
    found = [each for piece in cut(data, sizes) for each in decoder.feed(piece)]
    assert found == traffic


@given(data=st.binary(max_size=400), sizes=st.lists(st.integers(0, 50), max_size=10))
def test_any_bytes_give_frames_or_a_protocol_error(data, sizes):
    decoder = Decoder()
    with contextlib.suppress(ProtocolError):
        for piece in cut(data, sizes):
            for connection, frame in decoder.feed(piece):
                assert connection in {PLUGIN_CONNECTION, RUNTIME_CONNECTION}
                assert len(frame.payload) <= len(data)


def test_the_bytes_are_those_of_the_field():
    assert (
        encode(1, Frame(3, FrameType.REQUEST, b"ab"))
        == bytes([0, 0, 0, 1, 0, 0, 0, 12, 0, 0, 0, 2, 0, 0, 0, 3, 1, 0]) + b"ab"
    )


def test_a_long_frame_begins_with_a_piece_of_4096_bytes_and_has_its_rest_in_one():
    data = encode(2, Frame(1, FrameType.RESPONSE, b"x" * 10_000))
    assert struct.unpack_from(">II", data) == (2, 4096)
    assert struct.unpack_from(">II", data, 8 + 4096) == (2, 10_010 - 4096)
    assert Decoder().feed(data)[0][1].payload == b"x" * 10_000


def test_the_two_connections_may_be_interleaved_piece_by_piece():
    one, two = Frame(1, 1, b"one" * 10), Frame(3, 2, b"two" * 10)
    first, second = encode(1, one)[8:], encode(2, two)[8:]
    decoder = Decoder()
    found = []
    for start in range(0, len(first), 7):
        for connection, data in ((1, first), (2, second)):
            piece = data[start : start + 7]
            found += decoder.feed(struct.pack(">II", connection, len(piece)) + piece)
    assert found == [(1, one), (2, two)]


def test_other_connections_are_passed_over():
    data = struct.pack(">II", 9, 5) + b"hello" + encode(1, Frame(1, 1, b""))
    assert Decoder().feed(data) == [(1, Frame(1, 1, b""))]


def test_a_message_that_is_too_long_is_not_sent():
    with pytest.raises(ProtocolError, match="4194305 bytes"):
        encode(1, Frame(1, 1, b"x" * (MAX_PAYLOAD + 1)))


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">II", 1, MAX_PAYLOAD + 11),
        struct.pack(">IIIIBB", 1, 10, MAX_PAYLOAD + 1, 1, 1, 0),
    ],
    ids=["piece", "message"],
)
def test_a_length_that_nobody_may_send_is_refused_before_it_is_read(data):
    with pytest.raises(ProtocolError, match="are allowed"):
        Decoder().feed(data)
