"""What a layer's tree is made of: written down when it was unpacked, compared when somebody asks.

The record says of each name its type, mode, owner, size or device numbers, time, link target, a checksum of
the content and one of the extended attributes. The checksums are CRC-32: they find what a disk or a
broken file system did. Nobody but root can write there, and root could change the record as well.

Format: gzip of fields that end with NUL, three for each name: facts, name, link target. Names follow
their directory, which stands before them as ``/``, its path and nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import IO, Final, NamedTuple

from isal import igzip, isal_zlib

from polypod.plugin.errors import InvalidArgument
from polypod_image.merged import OPAQUE, keeps_xattr

NAME: Final = "tree.gz"
"""Of the record, beside the tree."""
_PIECE: Final = 1 << 18
_pack: Final[Callable[..., IO[bytes]]] = igzip.IGzipFile  # type: ignore[assignment]  # untyped
_UnpackError: Final[type[Exception]] = isal_zlib.error  # type: ignore[assignment]
NOT_SUMMED: Final = -1
"""The checksum of what has none."""
_GROUP: Final = b"/"

checksum: Final[Callable[[bytes | memoryview, int], int]] = isal_zlib.crc32
"""Of a piece, going on from the checksum of those before it."""
Differs = Callable[[bytes, str], None]
"""Told the path and what is wrong with it."""
_name = attrgetter("name")


class Made(NamedTuple):
    """A regular file, as it was made."""

    checksum: int
    """Of its content, or `NOT_SUMMED`."""
    blocks: int = 0
    """Of 512 bytes, on disk."""
    facts: bytes = b""
    """Its line; empty if the tree itself must be asked."""


def made(status: os.stat_result, total: int) -> Made:
    """Return what is to be recorded of a regular file that is complete and has one name.

    Args:
        status: of the file, which has no extended attributes.
        total: checksum of its content.
    """
    # A file system may have taken more than the content needs, and give it back when the file is closed.
    needed = -(-status.st_size // status.st_blksize) * (status.st_blksize // 512)
    blocks = min(status.st_blocks, needed)
    facts = (status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns)
    return Made(total, blocks, b"%o %d %d %d %d 1 0 %d" % (*facts, total))


def record(top: bytes, file: IO[bytes], files: Mapping[int, Made]) -> tuple[int, int]:
    """Write down a tree; return the bytes that it takes on disk and its inodes.

    Args:
        top: path of its root, which nobody else changes.
        file: where to.
        files: inode → what is known of a regular file.
    """
    usage = _Usage()
    with _pack(fileobj=file, mode="wb", compresslevel=0, mtime=0) as out:
        status = os.lstat(top)
        usage.add(status)
        out.write(_line(top, status, b"", b"", NOT_SUMMED))
        for path, entries in _walk(top):
            lines = [b"%b\0%b\0\0" % (_GROUP, path)]
            for entry in entries:
                known = files.get(entry.inode()) if entry.is_file(follow_symlinks=False) else None
                if known is not None and known.facts:
                    usage.bytes += known.blocks * 512
                    usage.inodes += 1
                    lines.append(b"%b\0%b\0\0" % (known.facts, entry.name))
                    continue
                status = entry.stat(follow_symlinks=False)
                usage.add(status)
                link = os.readlink(entry.path) if entry.is_symlink() else b""  # noqa: PTH115 - bytes
                total = NOT_SUMMED if known is None else known.checksum
                lines.append(_line(entry.path, status, entry.name, link, total))
            out.write(b"".join(lines))
    return usage.bytes, usage.inodes


def check(top: bytes, file: IO[bytes], differs: Differs, *, deep: bool) -> None:
    """Compare a tree with its record.

    Args:
        top: path of its root.
        file: the record.
        differs: told of each difference.
        deep: read the files' content, too.

    Raises:
        InvalidArgument: the record itself is damaged.
    """
    path, expected, is_empty = b"", dict[bytes, tuple[bytes, bytes]](), True
    for facts, name, link in _fields(file):
        is_empty = False
        if facts != _GROUP:
            expected[name] = (facts, link)
            continue
        _compare(top, path, expected, differs, deep=deep)
        path, expected = name, {}
    if is_empty:
        raise InvalidArgument("the record of the tree is empty")
    _compare(top, path, expected, differs, deep=deep)


def _compare(
    top: bytes,
    path: bytes,
    expected: Mapping[bytes, tuple[bytes, bytes]],
    differs: Differs,
    *,
    deep: bool,
) -> None:
    directory = top + b"/" + path if path else top
    try:
        here = set(os.listdir(directory))  # noqa: PTH208 - bytes
    except (FileNotFoundError, NotADirectoryError):
        return  # it was told of when its own name was compared
    for name, (facts, link) in expected.items():
        place = directory + b"/" + name if name else directory
        shown = path + b"/" + name if path else name
        wrong = _difference(place, facts, link, deep=deep)
        if wrong:
            differs(shown, wrong)
    if b"" not in expected:  # the root alone, before its own names
        for name in sorted(here - set(expected)):
            differs(path + b"/" + name if path else name, "nobody unpacked this")


def _difference(place: bytes, facts: bytes, link: bytes, *, deep: bool) -> str:
    """Return what is wrong with a name; ``""`` for nothing."""
    try:
        status = os.lstat(place)
    except FileNotFoundError:
        return "missing"
    expected = facts.split(b" ")
    total = int(expected[-1])
    found = _facts(place, status).split(b" ")
    for what, wanted, has in zip(_WHAT, expected[:-1], found, strict=True):
        if wanted != has:
            return f"{what} {has.decode()}, unpacked with {wanted.decode()}"
    if stat.S_ISLNK(status.st_mode) and os.readlink(place) != link:  # noqa: PTH115 - bytes
        return "leads elsewhere"
    if deep and total != NOT_SUMMED:
        try:
            if _summed(place) != total:
                return "other content"
        except OSError as error:
            return f"cannot be read: {error.strerror}"
    return ""


_WHAT: Final = ("mode", "owner", "group", "size or device", "time", "names", "attributes")


def _facts(place: bytes, status: os.stat_result) -> bytes:
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFREG:
        amount = status.st_size
    else:
        amount = status.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
    return b"%o %d %d %d %d %d %x" % (
        status.st_mode,
        status.st_uid,
        status.st_gid,
        amount,
        status.st_mtime_ns,
        1 if kind == stat.S_IFDIR else status.st_nlink,
        _attributes(place),
    )


def _line(place: bytes, status: os.stat_result, name: bytes, link: bytes, total: int) -> bytes:
    return b"%b %d\0%b\0%b\0" % (_facts(place, status), total, name, link)


def _attributes(place: bytes) -> int:
    """Return a checksum of the attributes that unpacking sets; 0 for none."""
    names = os.listxattr(place, follow_symlinks=False)
    total = 0
    for name in sorted(map(os.fsencode, names)) if names else ():
        if name == OPAQUE or keeps_xattr(name):
            value = os.getxattr(place, name, follow_symlinks=False)
            total = checksum(b"%b=%b\0" % (name, value), total)
    return total


def _summed(place: bytes) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    descriptor, total = os.open(place, flags), 0
    try:
        while piece := os.read(descriptor, _PIECE):
            total = checksum(piece, total)
    finally:
        os.close(descriptor)
    return total


def _walk(top: bytes) -> Iterator[tuple[bytes, list[os.DirEntry[bytes]]]]:
    """Yield each directory's path below the root with its entries, sorted by name."""
    waiting = [b""]
    while waiting:
        path = waiting.pop()
        with os.scandir(top + b"/" + path if path else top) as found:
            entries = sorted(found, key=_name)
        yield path, entries
        waiting += [
            path + b"/" + entry.name if path else entry.name
            for entry in reversed(entries)
            if entry.is_dir(follow_symlinks=False)
        ]


def _fields(file: IO[bytes]) -> Iterator[tuple[bytes, bytes, bytes]]:
    rest: list[bytes] = [b""]
    waiting: list[bytes] = []
    try:
        with _pack(fileobj=file, mode="rb") as source:
            while piece := source.read(_PIECE):
                rest = (rest[-1] + piece).split(b"\0")
                waiting += rest[:-1]
                whole = len(waiting) // 3 * 3
                for at in range(0, whole, 3):
                    yield waiting[at], waiting[at + 1], waiting[at + 2]
                waiting = waiting[whole:]
    except (EOFError, OSError, _UnpackError) as error:
        raise InvalidArgument(f"the record of the tree is damaged: {error}") from error
    if waiting or rest[-1]:
        raise InvalidArgument("the record of the tree is cut off")


class _Usage:
    """Counts a tree; a file with several names counts once."""

    __slots__ = ("bytes", "inodes", "seen")

    def __init__(self) -> None:
        self.bytes = 0
        self.inodes = 0
        self.seen = set[int]()

    def add(self, status: os.stat_result) -> None:
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            if status.st_ino in self.seen:
                return
            self.seen.add(status.st_ino)
        self.bytes += status.st_blocks * 512
        self.inodes += 1
