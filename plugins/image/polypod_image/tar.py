"""Our own reader of tar: bounded, without recursion, and it writes nothing.

It knows ustar, pax and the GNU forms (long names, base-256 numbers, sparse files). Global pax headers change
nothing (as in Go's reader, so that two runtimes see the same layer).

Spec:
    POSIX.1-2001 pax "ustar Interchange Format" and "pax Header Block"; GNU tar manual, "Basic Tar Format".
    image-spec layer.md, "Distributable Format". Reliability: CVE-2025-58183, CVE-2025-8194, CVE-2024-6232.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple
from zlib import adler32

from polypod.plugin.errors import InvalidArgument, Unsupported
from polypod_image import sparse
from polypod_image.streams import ByteStream

BLOCK: Final = 512
MAX_PATH: Final = 4096
"""Bytes of a name or link target: the kernel's PATH_MAX."""
MAX_PAX_BYTES: Final = 1 << 20
MAX_PAX_RECORDS: Final = 1000
MAX_META_HEADERS: Final = 16
"""Headers that describe the next one (pax, long names), in a row."""
_MAX_NUMBER: Final = 1 << 63
_XATTR: Final = b"SCHILY.xattr."
_ZEROES: Final = bytes(BLOCK)
_NONE: Final[Mapping[bytes, bytes]] = MappingProxyType({})


class Kind(Enum):
    """What an entry makes."""

    FILE = "file"
    HARDLINK = "hard link"
    SYMLINK = "symbolic link"
    CHAR = "character device"
    BLOCK = "block device"
    DIRECTORY = "directory"
    FIFO = "fifo"


_KINDS: Final[Mapping[int, Kind]] = {
    0: Kind.FILE,
    ord("0"): Kind.FILE,
    ord("7"): Kind.FILE,
    ord("S"): Kind.FILE,
    ord("1"): Kind.HARDLINK,
    ord("2"): Kind.SYMLINK,
    ord("3"): Kind.CHAR,
    ord("4"): Kind.BLOCK,
    ord("5"): Kind.DIRECTORY,
    ord("6"): Kind.FIFO,
}
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"xgLK"
_FILE: Final = ord("0")
_OLD_SPARSE: Final = ord("S")
_META: Final = frozenset((_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK))


class Entry(NamedTuple):
    """One entry. Names are bytes, as the kernel takes them, and free of NUL."""

    name: bytes
    kind: Kind
    mode: int
    """Permission bits with setuid, setgid, sticky."""
    uid: int
    gid: int
    size: int
    """Bytes of content that follow; 0 for everything but files."""
    mtime_ns: int
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[bytes, bytes] = _NONE
    holes: sparse.Sparse | None = None
    """Where the content belongs in a sparse file; None: from the beginning to the end."""

    def shown(self) -> str:
        """Return the name for an error text."""
        return ascii(self.name[:200].decode(errors="backslashreplace"))


class TarReader:
    """Iterates over entries; the content of each is in the stream until the next is asked for."""

    def __init__(self, stream: ByteStream, *, max_entries: int, takes_sparse: bool = False) -> None:
        """Read from a stream.

        Args:
            stream: decompressed bytes.
            max_entries: more of them are refused.
            takes_sparse: whether who reads knows `Entry.holes`; else sparse files are refused.
        """
        self._stream = stream
        self._max_entries = max_entries
        self._takes_sparse = takes_sparse

    def __iter__(self) -> Iterator[Entry]:
        """Yield the entries.

        Raises:
            InvalidArgument: malformed, ambiguous or beyond a limit.
            Unsupported: a sparse file that is not taken, or a type that nobody defines.
        """
        stream, count = self._stream, 0
        while (header := self._header()) is not None:
            count += 1
            if count > self._max_entries:
                raise InvalidArgument(f"tar: more than {self._max_entries} entries")
            if header[156] == _FILE:
                entry = _plain_file(header)
                end = stream.position + entry.size + -entry.size % BLOCK
            else:
                entry, end = self._described(header)
            yield entry
            stream.skip_to(end)

    def _described(self, header: bytes) -> tuple[Entry, int]:
        """Return an entry that may have headers before its own, and where the next one begins."""
        pax, name, link = _NONE, b"", b""
        for _ in range(MAX_META_HEADERS):
            if header[156] not in _META:
                break
            data = self._meta(header)
            if header[156] == _PAX:
                pax = parse_pax(data)
            elif header[156] == _LONG_NAME:
                name = data.partition(b"\0")[0]
            elif header[156] == _LONG_LINK:
                link = data.partition(b"\0")[0]
            following = self._header()
            if following is None:
                raise InvalidArgument("tar: a header announces an entry that does not follow")
            header = following
        entry = _entry(header, pax, name, link)
        found = self._old_map(header)
        end = self._stream.position + entry.size + -entry.size % BLOCK
        if found is not None or any(map(_is_sparse_key, pax)):
            entry = self._with_holes(entry, pax, found)
        return entry, end

    def _old_map(self, header: bytes) -> sparse.Sparse | None:
        if header[156] != _OLD_SPARSE:
            return None
        return sparse.old_map(header, self._stream, parse_number)

    def _with_holes(
        self, entry: Entry, pax: Mapping[bytes, bytes], found: sparse.Sparse | None
    ) -> Entry:
        if not self._takes_sparse or entry.kind is not Kind.FILE:
            raise Unsupported("tar: sparse files are not accepted here")
        taken = 0
        if found is None:
            found, taken = sparse.pax_map(pax, self._stream, entry.size)
        name = pax.get(sparse.PREFIX + b"name") or entry.name
        if len(name) > MAX_PATH:
            raise InvalidArgument(f"tar: a path of more than {MAX_PATH} bytes: {name[:80]!r}…")
        sparse.check(found, entry.size - taken)
        return entry._replace(name=name, size=entry.size - taken, holes=found)

    def _header(self) -> bytes | None:
        """Return the next header, None at the end."""
        header = self._stream.take_or_end(BLOCK)
        if header is None:
            return None
        if header == _ZEROES:
            second = self._stream.take_or_end(BLOCK)
            if second is not None and second != _ZEROES:
                raise InvalidArgument("tar: data after a lone block of zeros")
            return None
        if _known_number(header[148:156], "checksum") != _sum(header):
            raise InvalidArgument(f"tar: bad header checksum near byte {self._stream.position}")
        return header

    def _meta(self, header: bytes) -> bytes:
        size = parse_number(header[124:136], "size")
        is_pax = header[156] in (_PAX, _PAX_GLOBAL)
        limit = MAX_PAX_BYTES if is_pax else MAX_PATH + 1
        if size > limit:
            raise InvalidArgument(
                f"tar: a header of {size} bytes, at most {limit} are read"
                + ("" if is_pax else ": a path is longer than the kernel takes")
            )
        data = self._stream.take(size)
        self._stream.skip(-size % BLOCK)
        return data


def _entry(header: bytes, pax: Mapping[bytes, bytes], name: bytes, link: bytes) -> Entry:
    kind = _KINDS.get(header[156])
    if kind is None:
        raise Unsupported(
            f"tar: entries of type {header[156]:#x} are not accepted in a layer or archive"
        )
    name = pax.get(b"path") or name or _short_name(header)
    link = pax.get(b"linkpath") or link or header[157:257].partition(b"\0")[0]
    if kind is Kind.FILE and header[156] == 0 and name.endswith(b"/"):
        kind = Kind.DIRECTORY  # as tar wrote them before POSIX
    if len(name) > MAX_PATH or len(link) > MAX_PATH:
        raise InvalidArgument(f"tar: a path of more than {MAX_PATH} bytes: {name[:80]!r}…")
    size = _pax_number(pax, b"size") if b"size" in pax else parse_number(header[124:136], "size")
    is_device = kind in (Kind.CHAR, Kind.BLOCK)
    return Entry(
        name=name,
        kind=kind,
        mode=_known_number(header[100:108], "mode") & 0o7777,
        uid=_id(pax, b"uid", header[108:116]),
        gid=_id(pax, b"gid", header[116:124]),
        size=size if kind is Kind.FILE else 0,
        mtime_ns=_mtime(pax, header),
        link=link if kind in (Kind.HARDLINK, Kind.SYMLINK) else b"",
        device=(
            (parse_number(header[329:337], "major"), parse_number(header[337:345], "minor"))
            if is_device
            else (0, 0)
        ),
        xattrs={key[len(_XATTR) :]: value for key, value in pax.items() if key.startswith(_XATTR)}
        if pax
        else _NONE,
    )


def _plain_file(header: bytes) -> Entry:
    """Return what `_entry` does, for the usual case: a regular file that one header describes."""
    mode, uid, gid = _owner(header[100:124])
    size = parse_number(header[124:136], "size")
    mtime_ns = _header_mtime(header[136:148])
    return Entry(_short_name(header), Kind.FILE, mode, uid, gid, size, mtime_ns)


@lru_cache(4096)
def _owner(fields: bytes) -> tuple[int, int, int]:
    """Return mode, uid and gid of their three fields."""
    mode = parse_number(fields[:8], "mode") & 0o7777
    return mode, _id(_NONE, b"uid", fields[8:16]), _id(_NONE, b"gid", fields[16:24])


def _is_sparse_key(key: bytes) -> bool:
    return key.startswith(sparse.PREFIX)


def _short_name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    # GNU's magic is "ustar  "; there the prefix field holds times.
    if header[345] and header[257:263] == b"ustar\0":
        return header[345:500].partition(b"\0")[0] + b"/" + name
    return name


def _sum(header: bytes) -> int:
    """Return the sum of a header's bytes, its checksum taken as blanks.

    The lower half of an Adler-32 is one more than the sum of the bytes, modulo 65521; 256 bytes stay below.
    """
    halves = (adler32(header[:256]) & 0xFFFF) + (adler32(header[256:]) & 0xFFFF)
    return halves - 1 - (adler32(header[148:156]) & 0xFFFF) + 8 * 0x20


def parse_number(text: bytes, what: str) -> int:
    """Return a number field: octal digits, or GNU's base 256.

    Raises:
        InvalidArgument: negative, too large, or not a number.
    """
    if text[0] & 0x80:
        value = int.from_bytes(text, "big", signed=False) & ~(0x80 << 8 * (len(text) - 1))
        if text[0] & 0x40 or value >= _MAX_NUMBER:
            raise InvalidArgument(f"tar: {what} is negative or too large")
        return value
    digits = text.strip(b" \0")
    if not digits:
        return 0
    if digits.strip(b"01234567"):
        raise InvalidArgument(f"tar: {what} {digits[:16]!r} is no octal number")
    return int(digits, 8)


_known_number = lru_cache(4096)(parse_number)
"""For fields that are the same in many entries."""


@lru_cache(4096)
def _header_mtime(text: bytes) -> int:
    if text[0] & 0x80 and text[0] & 0x40:
        return 0
    return min(parse_number(text, "mtime"), _MAX_NUMBER // 10**9) * 10**9


def _mtime(pax: Mapping[bytes, bytes], header: bytes) -> int:
    """Return the time of the last change; one before 1970 becomes 1970."""
    text = pax.get(b"mtime")
    if text is None:
        return _header_mtime(header[136:148])
    whole, dot, fraction = text.partition(b".")
    negative = whole.startswith(b"-")
    digits = whole[1:] if negative else whole
    if not digits.isdigit() or len(digits) > 18 or (dot and not fraction.isdigit()):
        raise InvalidArgument(f"tar: pax mtime {text[:40]!r} is no number")
    if negative:
        return 0
    whole_ns = min(int(digits), _MAX_NUMBER // 10**9 - 1) * 10**9
    return whole_ns + int(fraction[:9].ljust(9, b"0") or 0)


def _id(pax: Mapping[bytes, bytes], key: bytes, field_: bytes) -> int:
    value = _pax_number(pax, key) if key in pax else _known_number(field_, key.decode())
    if value >= 0xFFFF_FFFF:  # 2^32 - 1 is "no change" for chown
        raise InvalidArgument(f"tar: {key.decode()} {value} is none")
    return value


def _pax_number(pax: Mapping[bytes, bytes], key: bytes) -> int:
    text = pax[key]
    if not text.isdigit() or len(text) > 19 or int(text) >= _MAX_NUMBER:
        raise InvalidArgument(f"tar: pax {key.decode()} {text[:40]!r} is no acceptable number")
    return int(text)


def parse_pax(data: bytes) -> dict[bytes, bytes]:
    """Return the records of a pax header; a later one replaces an earlier one.

    Raises:
        InvalidArgument: bad lengths, NUL in a name, too many records.
    """
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 8)
        digits = data[at:space] if space > at else b""
        length = int(digits) if digits.isdigit() else 0
        record = data[space + 1 : at + length]
        key, equals, value = record[:-1].partition(b"=")
        if length == 0 or at + length > len(data) or record[-1:] != b"\n" or not equals or not key:
            raise InvalidArgument("tar: malformed pax record")
        if b"\0" in key or (b"\0" in value and not key.startswith(_XATTR)):
            raise InvalidArgument(f"tar: NUL in pax record {key[:60]!r}")
        found[key] = value
        if len(found) > MAX_PAX_RECORDS:
            raise InvalidArgument(f"tar: more than {MAX_PAX_RECORDS} pax records")
        at += length
    return found
