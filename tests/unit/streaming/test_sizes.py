"""Sizes of terminals: JSON objects in a row, cut anywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.streaming.errors import ProtocolError
from polypod.streaming.sizes import MAX_BYTES, Sizes


@pytest.mark.parametrize(
    ("data", "sizes"),
    [
        (b'{"Width":80,"Height":24}\n', [(80, 24)]),
        (b' {"Width":1,"Height":2}{"Width":3,"Height":4} ', [(1, 2), (3, 4)]),
        (b'{"Width":0,"Height":0}{"Width":3,"Height":4}', [(3, 4)]),
        (b'{"Width":70000,"Height":4}', []),
        (b'{"Width":true,"Height":4}', []),
        (b'{"Width":"80","Height":4}', []),
        (b'[]7"x"null{}', []),
        (b'{"Width":80', []),
        (b"", []),
    ],
)
def test_sizes(data, sizes):
    assert list(Sizes().feed(data)) == sizes


@pytest.mark.parametrize("data", [b"{" * MAX_BYTES, b"[" * MAX_BYTES, b"x" * MAX_BYTES])
def test_what_becomes_no_size_is_given_up(data):
    with pytest.raises(ProtocolError):
        list(Sizes().feed(data))


@given(st.lists(st.tuples(st.integers(1, 65535), st.integers(1, 65535))), st.integers(1, 9))
def test_sizes_cut_anywhere(sizes, step):
    raw = b"".join(b'{"Width":%d,"Height":%d}' % size for size in sizes)
    reader, found = Sizes(), []
    for at in range(0, len(raw), step):
        found += reader.feed(raw[at : at + step])
    assert found == sizes


@given(st.lists(st.binary(max_size=50)))
def test_any_bytes(pieces):
    reader = Sizes()
    try:
        for piece in pieces:
            for width, height in reader.feed(piece):
                assert 0 < width < 65536
                assert 0 < height < 65536
    except ProtocolError:
        return
