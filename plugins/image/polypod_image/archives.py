"""Places that images are imported from: a layout directory, or a tar that holds a layout or docker's form.

A tar is never unpacked: an index of its members is made once, and their content is read from where it lies.

Spec:
    image-spec image-layout.md. Reliability I3, I5, I6: everything here comes from a stranger.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from polypod.plugin import override
from polypod.plugin.errors import InvalidArgument, NotFound
from polypod_image.mediatypes import Compression, compression_of
from polypod_image.merged import split
from polypod_image.streams import ByteStream, Source, decompress, file_source
from polypod_image.tar import Entry, Kind, TarReader

MAX_MEMBERS: Final = 100_000
_MAX_LINKS: Final = 8
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class Archive(Protocol):
    """Files by name, such as ``blobs/sha256/…``."""

    what: str
    """Names it in errors."""

    def has(self, name: str) -> bool:
        """Return whether there is such a file."""
        ...

    def read(self, name: str, limit: int) -> bytes:
        """Return a small file; `InvalidArgument` if it is missing or larger than ``limit`` bytes."""
        ...

    def source(self, name: str) -> tuple[Source, int, Callable[[], None]]:
        """Return a file as a source, its size, and what closes it."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


def read_whole(archive: Archive, name: str, limit: int) -> bytes:
    """Return a file of an archive.

    Raises:
        InvalidArgument: it is missing, cut off, or larger than ``limit`` bytes.
    """
    source, size, close = archive.source(name)
    try:
        if size > limit:
            raise InvalidArgument(f"{archive.what}: {name}: {size} bytes, at most {limit} are read")
        data = bytearray()
        while len(data) <= limit and (piece := source()):
            data += piece
        if len(data) != size:
            raise InvalidArgument(f"{archive.what}: {name} is cut off, or changes")
        return bytes(data)
    finally:
        close()


class LayoutDirectory:
    """An OCI layout directory. Links in it are not followed."""

    def __init__(self, path: Path) -> None:
        """Open a directory."""
        self.what = str(path)
        self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def has(self, name: str) -> bool:
        """Return whether there is such a file."""
        try:
            self.source(name)[2]()
        except InvalidArgument:
            return False
        return True

    def read(self, name: str, limit: int) -> bytes:
        """Return a small file."""
        return read_whole(self, name, limit)

    def source(self, name: str) -> tuple[Source, int, Callable[[], None]]:
        """Return a file as a source."""
        try:
            descriptor = self._open(name)
        except OSError as error:
            raise InvalidArgument(f"{self.what}: {name}: {error.strerror}") from error
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise InvalidArgument(f"{self.what}: {name} is no regular file")
        return file_source(descriptor), status.st_size, lambda: os.close(descriptor)

    def close(self) -> None:
        """Close the directory."""
        os.close(self._root)

    def _open(self, name: str) -> int:
        *directories, last = name.split("/")
        here = os.dup(self._root)
        try:
            for each in directories:
                inner = os.open(each, _DIRECTORY, dir_fd=here)
                os.close(here)
                here = inner
            return os.open(last, _FILE, dir_fd=here)
        finally:
            os.close(here)


@dataclass(frozen=True, slots=True)
class _Member:
    offset: int
    size: int
    link: bytes = b""
    """Of a link: the member it leads to, from the archive's root."""


class TarArchive:
    """A tar file. Only regular files and links among them count."""

    def __init__(self, path: Path, unpacked: Callable[[Source], Path]) -> None:
        """Open a file and index it.

        Args:
            path: the archive, compressed or not.
            unpacked: writes a source into a temporary file, for a compressed archive; the file is removed
                by `close`.

        Raises:
            InvalidArgument: not a tar, or ambiguous.
        """
        self.what = str(path)
        self._temporary: Path | None = None
        self._descriptor = _open_regular(path)
        try:
            compression = compression_of(os.pread(self._descriptor, 4, 0))
            if compression is not Compression.NONE:
                self._temporary = unpacked(decompress(file_source(self._descriptor), compression))
                os.close(self._descriptor)
                self._descriptor = _open_regular(self._temporary)
            self._members = self._index()
        except BaseException:
            self.close()
            raise

    def has(self, name: str) -> bool:
        """Return whether there is such a file."""
        return self._find(name) is not None

    def read(self, name: str, limit: int) -> bytes:
        """Return a small file."""
        return read_whole(self, name, limit)

    def source(self, name: str) -> tuple[Source, int, Callable[[], None]]:
        """Return a file as a source; several may be read at once."""
        member = self._find(name)
        if member is None:
            raise InvalidArgument(f"{self.what}: {name} is missing")
        offset, left = member.offset, member.size

        def read() -> bytes:
            nonlocal offset, left
            piece = os.pread(self._descriptor, min(left, 1 << 18), offset)
            offset += len(piece)
            left -= len(piece)
            return piece

        return read, member.size, lambda: None

    def close(self) -> None:
        """Close the file; remove the temporary one."""
        with suppress(OSError):
            os.close(self._descriptor)
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)

    def _index(self) -> dict[bytes, _Member]:
        members: dict[bytes, _Member] = {}
        stream = _Seekable(self._descriptor)
        for entry in TarReader(stream, max_entries=MAX_MEMBERS):
            parts = split(entry.name)
            if entry.kind is Kind.DIRECTORY:
                continue
            if not parts or b".." in parts:
                raise InvalidArgument(
                    f"{self.what}: member {entry.shown()} leads out of the archive"
                )
            name = b"/".join(parts)
            if name in members:
                raise InvalidArgument(f"{self.what}: member {entry.shown()} is there twice")
            if entry.kind is Kind.FILE:
                members[name] = _Member(stream.position, entry.size)
            elif entry.kind in (Kind.SYMLINK, Kind.HARDLINK):
                members[name] = _Member(0, 0, _target(entry, parts))
        return members

    def _find(self, name: str) -> _Member | None:
        member = self._members.get(b"/".join(split(os.fsencode(name))))
        for _ in range(_MAX_LINKS):
            if member is None or not member.link:
                return member
            member = self._members.get(member.link)
        return None


class _Seekable(ByteStream):
    """A stream over a file, which jumps instead of reading what is left out."""

    def __init__(self, descriptor: int) -> None:
        self._fd = descriptor
        self._end = os.fstat(descriptor).st_size
        self._next = 0
        super().__init__(self._read)

    @property
    @override
    def position(self) -> int:
        return self._next

    @override
    def take(self, size: int) -> bytes:
        data = os.pread(self._fd, size, self._next)
        if len(data) != size:
            raise InvalidArgument(f"the tar ends {size - len(data)} bytes too early")
        self._next += size
        return data

    @override
    def take_or_end(self, size: int) -> bytes | None:
        return None if self._next >= self._end else self.take(size)

    @override
    def skip(self, size: int) -> None:
        self._next += size
        if self._next - 511 > self._end:  # the padding of the last member may be missing
            raise InvalidArgument("the tar ends in the middle of a member")

    def _read(self) -> bytes:
        data = os.pread(self._fd, 1 << 18, self._next)
        self._next += len(data)
        return data


def _target(entry: Entry, parts: list[bytes]) -> bytes:
    """Return what a link leads to, from the root; one that leads out leads to nothing."""
    start = parts[:-1] if entry.kind is Kind.SYMLINK and not entry.link.startswith(b"/") else []
    for part in split(entry.link):
        if part == b".." and start:
            start = start[:-1]
        elif part == b"..":
            return b"\0"
        else:
            start = [*start, part]
    return b"/".join(start) or b"\0"


def _open_regular(path: Path) -> int:
    try:
        descriptor = os.open(path, _FILE & ~os.O_NOFOLLOW)
    except FileNotFoundError:
        raise NotFound(f"{path}: there is no such file") from None
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidArgument(f"{path}: no regular file")
    return descriptor
