"""Sparse files in tar: which parts of a file follow as content; the rest are holes.

Three of the four forms that GNU tar wrote are read: the old one (type ``S``), and pax 0.1 and 1.0. A map has
a bounded number of parts, in order, within the file, and they make up exactly the content that follows.

Spec:
    GNU tar manual, "Storing Sparse Files" and "Sparse Formats". Reliability I3; CVE-2025-58183.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from polypod.plugin.errors import InvalidArgument, Unsupported
from polypod_image.streams import ByteStream

PREFIX: Final = b"GNU.sparse."
"""Of the pax keys."""
MAX_PARTS: Final = 65_536
_BLOCK: Final = 512
_MAX_DIGITS: Final = 19
Part = tuple[int, int]
Number = Callable[[bytes, str], int]
"""Reads a number field of a header: `tar.parse_number`."""


@dataclass(frozen=True, slots=True)
class Sparse:
    """The map of one file."""

    parts: tuple[Part, ...]
    """Offset and length of each part that has content."""
    size: int
    """Of the whole file, holes included."""


def old_map(header: bytes, stream: ByteStream, number: Number) -> Sparse:
    """Return the map of a header of type ``S``; takes the headers that continue it.

    Raises:
        InvalidArgument: malformed, or too many parts.
    """
    parts = _parts(header, 386, 4, number)
    size = number(header[483:495], "sparse size")
    more = header[482]
    while more:
        block = stream.take(_BLOCK)
        parts += _parts(block, 0, 21, number)
        _check_count(len(parts))
        more = block[504]
    return Sparse(tuple(parts), size)


def _parts(block: bytes, at: int, count: int, number: Number) -> list[Part]:
    found: list[Part] = []
    for start in range(at, at + 24 * count, 24):
        if not block[start]:  # an unused place
            break
        offset = number(block[start : start + 12], "sparse offset")
        found.append((offset, number(block[start + 12 : start + 24], "sparse length")))
    return found


def pax_map(pax: Mapping[bytes, bytes], stream: ByteStream, stored: int) -> tuple[Sparse, int]:
    """Return the map that pax records tell of, and the bytes of it that lay before the content.

    Args:
        pax: records; some begin with `PREFIX`.
        stream: at the entry's content.
        stored: bytes of content and map.

    Raises:
        InvalidArgument: malformed, or too many parts.
        Unsupported: version 0.0, or one that nobody wrote.
    """
    version = (pax.get(PREFIX + b"major", b"0"), pax.get(PREFIX + b"minor", b"1"))
    if version == (b"1", b"0"):
        size = _decimal(pax.get(PREFIX + b"realsize", b""), "realsize")
        numbers, taken = _numbers(stream, stored)
        return Sparse(_paired(numbers), size), taken
    listed = pax.get(PREFIX + b"map")
    if version != (b"0", b"1") or listed is None:
        raise Unsupported("tar: a sparse file of a form that is not read (0.1 and 1.0 are)")
    texts = listed.split(b",") if listed else []
    _check_count(len(texts) // 2)
    size = _decimal(pax.get(PREFIX + b"size", b""), "size")
    return Sparse(_paired([_decimal(each, "map") for each in texts]), size), 0


def check(sparse: Sparse, stored: int) -> None:
    """Make sure that a map is in order and fits the content that follows.

    Raises:
        InvalidArgument: it does not.
    """
    end = 0
    for offset, length in sparse.parts:
        if offset < end or offset + length > sparse.size:
            raise InvalidArgument("tar: parts of a sparse file overlap or lie outside of it")
        end = offset + length
    total = sum(length for _, length in sparse.parts)
    if total != stored:
        raise InvalidArgument(f"tar: a sparse map of {total} bytes for {stored} bytes of content")


def _numbers(stream: ByteStream, stored: int) -> tuple[list[int], int]:
    """Read the map of form 1.0: numbers in lines, a count first, in whole blocks."""
    found: list[int] = []
    rest, taken, wanted = b"", 0, 1
    while len(found) < wanted:
        if taken + _BLOCK > stored:
            raise InvalidArgument("tar: the map of a sparse file is longer than its entry")
        *lines, rest = (rest + stream.take(_BLOCK)).split(b"\n")
        taken += _BLOCK
        for line in lines:
            if len(found) == wanted:
                break
            found.append(_decimal(line, "map"))
            if len(found) == 1:
                _check_count(found[0])
                wanted += 2 * found[0]
        if len(rest) > _BLOCK:
            raise InvalidArgument("tar: a number in a sparse map is too long")
    return found[1:], taken


def _paired(numbers: Sequence[int]) -> tuple[Part, ...]:
    if len(numbers) % 2:
        raise InvalidArgument("tar: a sparse map of an odd number of numbers")
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def _decimal(text: bytes, what: str) -> int:
    if not text.isdigit() or len(text) > _MAX_DIGITS or int(text) >= 1 << 63:
        raise InvalidArgument(f"tar: sparse {what} {text[:40]!r} is no acceptable number")
    return int(text)


def _check_count(count: int) -> None:
    if count > MAX_PARTS:
        raise InvalidArgument(f"tar: a sparse file of more than {MAX_PARTS} parts")
