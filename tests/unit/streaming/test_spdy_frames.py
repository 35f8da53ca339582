"""SPDY/3.1 frames against bytes that were made by hand from the draft, and against any bytes at all."""

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.streaming.errors import ProtocolError
from polypod.streaming.spdy_frames import (
    MAX_CONTROL_BYTES,
    Data,
    FrameReader,
    FrameWriter,
    GoAway,
    Headers,
    Ping,
    RstStream,
    Settings,
    SynReply,
    SynStream,
    WindowUpdate,
)
from polypod.streaming.spdy_headers import DICTIONARY, MAX_BLOCK_BYTES, Packer, Unpacker


def block(*pairs):
    """A name/value block, not compressed."""
    text = struct.pack(">I", len(pairs))
    for name, value in pairs:
        text += struct.pack(">I", len(name)) + name + struct.pack(">I", len(value)) + value
    return text


def packed(plain):
    """As a peer's first block."""
    squeeze = zlib.compressobj(zdict=DICTIONARY)
    return squeeze.compress(plain) + squeeze.flush(zlib.Z_SYNC_FLUSH)


def control(kind, body, flags=0, version=3):
    return (
        struct.pack(">HHBBH", 0x8000 | version, kind, flags, len(body) >> 16, len(body) & 0xFFFF)
        + body
    )


def read(data):
    return list(FrameReader().feed(data))


def test_the_dictionary_is_the_drafts():
    assert (len(DICTIONARY), zlib.adler32(DICTIONARY)) == (1423, 0xE3C6A7C2)


BY_HAND = {
    "syn_stream": (
        control(1, struct.pack(">IIH", 5, 0, 0) + packed(block((b"StreamType", b"stdin"))), 1),
        SynStream(5, {"streamtype": "stdin"}, fin=True),
    ),
    "syn_reply": (control(2, struct.pack(">I", 5) + packed(block())), SynReply(5)),
    "rst_stream": (control(3, struct.pack(">II", 7, 5)), RstStream(7, 5)),
    "settings": (
        control(4, struct.pack(">IIIII", 2, 4, 100, 0x01000007, 131072)),
        Settings(window=131072),
    ),
    "settings without a window": (control(4, struct.pack(">III", 1, 4, 100)), Settings()),
    "ping": (control(6, struct.pack(">I", 3)), Ping(3)),
    "goaway": (control(7, struct.pack(">II", 9, 0)), GoAway(9)),
    "headers": (
        control(8, struct.pack(">I", 1) + packed(block((b"a", b"b")))),
        Headers(1, {"a": "b"}),
    ),
    "window_update": (control(9, struct.pack(">II", 1, 4096)), WindowUpdate(1, 4096)),
    "data": (struct.pack(">IBBH", 3, 1, 0, 5) + b"hello", Data(3, b"hello", fin=True)),
    "empty data": (struct.pack(">IBBH", 3, 1, 0, 0), Data(3, b"", fin=True)),
}


@pytest.mark.parametrize(("raw", "frame"), BY_HAND.values(), ids=BY_HAND)
def test_frames_made_by_hand_are_read(raw, frame):
    assert read(raw) == [frame]


@pytest.mark.parametrize(("raw", "frame"), BY_HAND.values(), ids=BY_HAND)
def test_what_is_written_is_read_again(raw, frame):
    assert read(FrameWriter().write(frame)) == [frame]


@pytest.mark.parametrize("kind", ["rst_stream", "ping", "goaway", "window_update", "data"])
def test_frames_without_headers_are_written_as_by_hand(kind):
    raw, frame = BY_HAND[kind]
    assert FrameWriter().write(frame) == raw


def test_unknown_types_are_skipped():
    assert read(control(99, b"whatever") + control(6, struct.pack(">I", 1))) == [Ping(1)]


def test_headers_of_one_direction_are_one_zlib_stream():
    packer, unpacker = Packer(), Unpacker()
    for number in range(20):
        pairs = {"streamtype": "data", "port": str(number)}
        assert unpacker.unpack(packer.pack(pairs)) == pairs


FLAWS = {
    "another version": control(6, struct.pack(">I", 1), version=2),
    "a control frame too long": struct.pack(">HHI", 0x8003, 1, MAX_CONTROL_BYTES + 1),
    "a ping cut short": control(6, b"\0\0"),
    "a syn_stream cut short": control(1, b"\0" * 9),
    "headers that are no zlib": control(2, struct.pack(">I", 1) + b"no zlib at all"),
    "more settings than bytes": control(4, struct.pack(">III", 2, 7, 1)),
    "a million settings": control(4, struct.pack(">I", 1_000_000)),
    "a bomb": control(2, struct.pack(">I", 1) + packed(bytes(2 * MAX_BLOCK_BYTES))),
    "a million pairs": control(2, struct.pack(">I", 1) + packed(struct.pack(">I", 1_000_000))),
    "a name twice": control(2, struct.pack(">I", 1) + packed(block((b"a", b"b"), (b"A", b"c")))),
    "a name that is empty": control(2, struct.pack(">I", 1) + packed(block((b"", b"b")))),
    "a string cut short": control(2, struct.pack(">I", 1) + packed(block((b"a", b"b"))[:-1])),
    "a length cut short": control(2, struct.pack(">I", 1) + packed(b"\0\0")),
    "something behind the pairs": control(2, struct.pack(">I", 1) + packed(block() + b"x")),
}


@pytest.mark.parametrize("raw", FLAWS.values(), ids=FLAWS)
def test_what_breaks_the_rules_is_a_protocol_error(raw):
    with pytest.raises(ProtocolError):
        read(raw)


texts = st.text(max_size=20)
streams = st.integers(1, 0x7FFFFFFF)
pairs = st.dictionaries(st.text(min_size=1, max_size=9).map(str.lower), texts, max_size=5)
frames = st.one_of(
    st.builds(SynStream, streams, pairs, st.booleans()),
    st.builds(SynReply, streams, pairs, st.booleans()),
    st.builds(RstStream, streams, st.integers(0, 11)),
    st.builds(Settings, st.none() | st.integers(0, 0x7FFFFFFF)),
    st.builds(Ping, st.integers(0, 0xFFFFFFFF)),
    st.builds(GoAway, streams, st.integers(0, 2)),
    st.builds(WindowUpdate, streams, st.integers(0, 0x7FFFFFFF)),
    st.builds(Data, streams, st.binary(max_size=300), st.booleans()),
)


def joined(found):
    """Put the pieces of data frames together, as far as they belong to one stream."""
    whole = []
    for frame in found:
        last = whole[-1] if whole else None
        if (
            isinstance(frame, Data)
            and isinstance(last, Data)
            and last.stream == frame.stream
            and not last.fin
        ):
            whole[-1] = Data(frame.stream, last.data + frame.data, frame.fin)
        else:
            whole.append(frame)
    return whole


@given(st.lists(frames, max_size=8), st.lists(st.integers(1, 50), max_size=60))
def test_any_frames_cut_anywhere_are_the_same(sent, cuts):
    sent = [
        frame
        for frame in sent
        if not hasattr(frame, "headers")
        or len({name.lower() for name in frame.headers}) == len(frame.headers)
    ]
    writer, reader = FrameWriter(), FrameReader()
    raw = b"".join(writer.write(frame) for frame in sent)
    found = []
    for cut in cuts:
        found += reader.feed(raw[:cut])
        raw = raw[cut:]
    found += reader.feed(raw)
    assert joined(found) == joined(sent)


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_any_bytes_are_frames_or_a_protocol_error(pieces):
    reader = FrameReader()
    try:
        for piece in pieces:
            for frame in reader.feed(piece):
                assert frame is not None
    except ProtocolError:
        return


@given(st.sampled_from([1, 2, 3, 4, 6, 7, 8, 9]), st.binary(max_size=60), st.integers(0, 255))
def test_any_body_of_any_control_frame(kind, body, flags):
    try:
        read(control(kind, body, flags))
    except ProtocolError:
        return


@given(st.binary(max_size=200))
def test_any_block_of_headers(plain):
    try:
        Unpacker().unpack(packed(plain))
    except ProtocolError:
        return
