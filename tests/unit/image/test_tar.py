"""The tar reader: what other writers write it reads, what nobody should write it refuses, and it ends."""

from __future__ import annotations

import importlib.util
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polypod.plugin.errors import InvalidArgument, PolypodError, Unsupported
from polypod_image.streams import ByteStream
from polypod_image.tar import Kind, TarReader, parse_number, parse_pax

_SPEC = importlib.util.spec_from_file_location(
    "polypod_test_tars_here", Path(__file__).with_name("tars.py")
)
t = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(t)


def source_of(data, piece=700):
    pieces = iter([data[at : at + piece] for at in range(0, len(data), piece)])
    return lambda: next(pieces, b"")


def read(data, max_entries=1000, piece=700):
    """Return entries with their contents."""
    stream = ByteStream(source_of(data, piece))
    found = []
    for entry in TarReader(stream, max_entries=max_entries):
        found.append((entry, b"".join(stream.pieces(entry.size))))
    stream.drain()
    return found


def by_stdlib(format_):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format_) as tar:
        for name, size, uid in (
            ("short", 10, 0),
            ("d/" * 60 + "longer-than-a-hundred", 1000, 70_000),
            ("x" * 99 + "/" + "y" * 99, 0, 3_000_000 if format_ != tarfile.USTAR_FORMAT else 1),
            ("ümlaut", 513, 1),
        ):
            info = tarfile.TarInfo(name)
            info.size, info.uid, info.mtime = size, uid, 1_600_000_000
            tar.addfile(info, io.BytesIO(b"z" * size))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "t" * (150 if format_ != 0 else 90)
        tar.addfile(link)
    return out.getvalue()


@pytest.mark.parametrize("piece", [1, 511, 512, 100_000])
@pytest.mark.parametrize(
    "format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=str
)
def test_reader_agrees_with_the_standard_library(format_, piece):
    data = by_stdlib(format_)
    ours = read(data, piece=piece)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        theirs = tar.getmembers()
        assert [entry.name.decode() for entry, _ in ours] == [each.name for each in theirs]
        for (entry, content), each in zip(ours, theirs, strict=True):
            assert (entry.size, entry.uid, entry.mode) == (each.size, each.uid, each.mode)
            assert entry.mtime_ns == each.mtime * 10**9
            assert entry.link.decode() == each.linkname
            assert content == (tar.extractfile(each).read() if each.isfile() else b"")


def test_pax_goes_before_gnu_names_and_the_header():
    data = t.layer(t.longname(b"gnu"), t.pax({b"path": b"pax"}), t.file(b"short"))
    assert read(data)[0][0].name == b"pax"


def test_global_pax_headers_change_nothing():
    data = t.layer(t.pax({b"path": b"evil", b"size": b"9"}, kind=b"g"), t.file(b"good", b"ab"))
    ((entry, content),) = read(data)
    assert (entry.name, content) == (b"good", b"ab")


def test_links_have_no_content_whatever_their_size():
    data = t.layer(t.header(b"l", kind=b"1", link=b"x", size=4096), t.file(b"next", b"n"))
    assert [entry.name for entry, _ in read(data)] == [b"l", b"next"]


def test_missing_end_is_accepted_at_a_boundary():
    assert len(read(t.file(b"x"))) == 1


def test_what_follows_the_end_is_not_read():
    assert len(read(t.layer(t.file(b"x")) + b"anything at all")) == 1


def test_times_have_nanoseconds_and_none_is_negative():
    stamps = {b"1.5": 1_500_000_000, b"7": 7 * 10**9, b"-3.5": 0, b"0.0000000019": 1}
    for text, expected in stamps.items():
        ((entry, _),) = read(t.layer(t.pax({b"mtime": text}), t.file(b"x")))
        assert entry.mtime_ns == expected


@pytest.mark.parametrize("text", [b"x", b"", b"1e9", b"1.2.3", b"9" * 40, b"nan"])
def test_nonsense_times_are_refused(text):
    with pytest.raises(InvalidArgument, match="mtime"):
        read(t.layer(t.pax({b"mtime": text}), t.file(b"x")))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"0000644\0", 0o644),
        (b"   644 \0", 0o644),
        (b"\0" * 8, 0),
        (b"\x80" + bytes(6) + b"\x05", 5),
        (b"\x80\0\0\0" + (1 << 63 - 1).to_bytes(8, "big"), 1 << 62),
    ],
)
def test_numbers(text, value):
    assert parse_number(text, "size") == value


@pytest.mark.parametrize(
    "text",
    [b"-1\0\0\0\0\0\0", b"9\0\0\0\0\0\0\0", b"\xff" * 8, b"\x80" + b"\xff" * 11, b"0x1f\0\0\0\0"],
)
def test_wrong_numbers_are_refused(text):
    with pytest.raises(InvalidArgument, match="size"):
        parse_number(text, "size")


@pytest.mark.parametrize(
    "data",
    [
        b"5 a=b\n",
        b"7 a=b\n",
        b"0 a=b\n",
        b"-6 a=b\n",
        b"6 a=bc",
        b"6 ab c\n",
        b"5 =b\n\n",
        b"a=b\n",
        b"99999999999999999999 a=b\n",
        b"9 path=\0\n",
    ],
)
def test_malformed_pax_records_are_refused(data):
    with pytest.raises(InvalidArgument):
        parse_pax(data)


def test_pax_values_of_xattrs_may_be_binary():
    value = bytes(range(1, 256)) + b"\0=\n"
    header = t.pax({b"SCHILY.xattr.user.x": value})
    ((entry, _),) = read(t.layer(header, t.file(b"x")))
    assert entry.xattrs == {b"user.x": value}


def test_too_many_pax_records_are_refused():
    with pytest.raises(InvalidArgument, match="1000"):
        read(t.layer(t.pax({b"k%d" % number: b"v" for number in range(1001)}), t.file(b"x")))


def test_too_large_a_pax_header_is_refused_before_it_is_read():
    with pytest.raises(InvalidArgument, match="1048576"):
        read(t.header(b"p", kind=b"x", size=1 << 40))


def test_too_many_entries_are_refused():
    with pytest.raises(InvalidArgument, match="more than 3"):
        read(t.layer(*(t.file(b"%d" % number) for number in range(4))), max_entries=3)


@pytest.mark.parametrize("kind", [b"S", b"D", b"M", b"V", b"A", b"\xff"])
def test_other_types_are_unsupported(kind):
    with pytest.raises(Unsupported):
        read(t.layer(t.header(b"x", kind=kind)))


def test_kinds():
    parts = [
        t.file(b"f"), t.hardlink(b"h", b"f"), t.symlink(b"s", b"f"), t.device(b"c", (1, 2)),
        t.device(b"b", (3, 4), kind=b"4"), t.directory(b"d"), t.fifo(b"p"),
    ]  # fmt: skip
    assert {entry.kind for entry, _ in read(t.layer(*parts))} == set(Kind)
    devices = {entry.name: entry.device for entry, _ in read(t.layer(*parts))}
    assert devices[b"c"] == (1, 2)
    assert devices[b"b"] == (3, 4)


SEEDS = [by_stdlib(each) for each in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(SEEDS),
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=12)), max_size=8
    ),
    st.booleans(),
)
def test_damaged_tars_are_read_or_refused(data, changes, mend):
    """I3: no other exception, no endless loop, nothing beyond what is there."""
    damaged = bytearray(data)
    for place, value in changes:
        at = int(place * (len(damaged) - 16))
        damaged[at : at + len(value)] = value
        if mend:
            _mend(damaged, at // 512 * 512)
    try:
        total = sum(len(content) for _, content in read(bytes(damaged)))
    except PolypodError:
        return
    assert total <= len(damaged)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=600), max_size=5))
def test_random_headers_are_read_or_refused(parts):
    data = bytearray()
    for part in parts:
        block = bytearray(part[:512].ljust(512, b"\0"))
        data += block
        _mend(data, len(data) - 512)
    try:
        read(bytes(data))
    except PolypodError:
        return


def _mend(data, at):
    """Give a block a right checksum, so that the damage reaches the reader."""
    block = data[at : at + 512]
    if len(block) < 512 or not any(block):
        return
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    data[at : at + 512] = block
