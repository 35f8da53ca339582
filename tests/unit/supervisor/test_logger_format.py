"""The CRI log format."""

import re

import pytest

from polypod.supervisor import logger_format
from polypod.supervisor.logger_format import PART_BYTES, entries, takeable, timestamp

STAMP = b"2026-01-02T03:04:05.000000006Z"


def parsed(text: bytes) -> list[tuple[bytes, bytes]]:
    assert text.endswith(b"\n")
    head = STAMP + b" stdout "
    found = []
    for line in text[:-1].split(b"\n"):
        assert line.startswith(head), line[:80]
        flag, _, body = line[len(head) :].partition(b" ")
        found.append((flag, body))
    return found


def joined(found: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(body + (b"\n" if flag == b"F" else b"") for flag, body in found)


def test_timestamp_is_rfc3339_with_nine_digits():
    assert timestamp(1_767_323_045_000_000_006) == STAMP
    assert re.fullmatch(rb"1970-01-01T00:00:00\.000000000Z", timestamp(0))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a\n", [(b"F", b"a")]),
        (b"\n", [(b"F", b"")]),
        (b"a\n\nb\n", [(b"F", b"a"), (b"F", b""), (b"F", b"b")]),
        (b"a", [(b"P", b"a")]),
        (b"a\nb", [(b"F", b"a"), (b"P", b"b")]),
        (b"\x00\xff\r\n", [(b"F", b"\x00\xff\r")]),
    ],
)
def test_entries_mark_line_ends(data, expected):
    assert parsed(entries(data, b"stdout", STAMP)) == expected


def test_entries_mark_the_last_line_full_when_final():
    assert parsed(entries(b"a\nb", b"stdout", STAMP, final=True)) == [(b"F", b"a"), (b"F", b"b")]


@pytest.mark.parametrize("extra", [-1, 0, 1])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_entries_split_long_lines_at_the_part_length(parts, extra):
    line = b"x" * (parts * PART_BYTES + extra)
    data = b"short\n" + line + b"\nafter\n"
    found = parsed(entries(data, b"stdout", STAMP))
    assert joined(found) == data
    assert max(len(body) for _, body in found) <= PART_BYTES
    assert len(found) == 2 + parts + (extra > 0)


def test_entries_keep_every_byte():
    pieces = [bytes([n % 256]) * (n * 37 % 40_000) + b"\n" * (n % 3) for n in range(1, 60)]
    data = b"".join(pieces)
    found = parsed(entries(data.replace(b"\n\n", b"\n-\n"), b"stdout", STAMP))
    assert joined(found).rstrip(b"\n") == data.replace(b"\n\n", b"\n-\n").rstrip(b"\n")


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b"", 0),
        (b"tail", 0),
        (b"a\ntail", 2),
        (b"a\n", 2),
        (b"x" * PART_BYTES, PART_BYTES),
        (b"x" * (2 * PART_BYTES + 5), 2 * PART_BYTES),
        (b"\n" + b"x" * PART_BYTES, 1),
    ],
)
def test_takeable_tears_no_short_line(data, count):
    assert takeable(data) == count


def test_part_length_is_the_field_s():
    assert logger_format.PART_BYTES == 16384
