"""Byte streams: decompressing, hashing, counting, in pieces of bounded size. No program is executed.

A *source* is a function that returns the next piece, ``b""`` at the end.

Spec:
    RFC 1952 (gzip, with several members), RFC 8878 (zstd). Reliability I2, I4.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import IO, Final, Protocol, cast

import zstandard
from isal import igzip_lib

from polypod.plugin.errors import InvalidArgument
from polypod_image.mediatypes import Compression

PIECE: Final = 256 << 10
"""Bytes of one piece."""
_AHEAD: Final = 6
"""Pieces that wait between two threads."""
MAX_ZSTD_WINDOW: Final = 1 << 27
"""What zstd itself accepts without ``--long``."""

Source = Callable[[], bytes]
_IsalError: type[Exception] = igzip_lib.IsalError  # type: ignore[assignment]


class Sink(Protocol):
    """What counts or hashes the bytes that pass."""

    def update(self, data: bytes, /) -> None: ...


def file_source(descriptor: int, length: int | None = None) -> Source:
    """Return a source that reads a descriptor onward, at most ``length`` bytes."""
    left = length

    def read() -> bytes:
        nonlocal left
        if left is None:
            return os.read(descriptor, PIECE)
        piece = os.read(descriptor, min(PIECE, left))
        left -= len(piece)
        return piece

    return read


def decompress(source: Source, compression: Compression) -> Source:
    """Return a source of the unpacked bytes.

    Raises (when read):
        InvalidArgument: the data is damaged or cut off.
    """
    match compression:
        case Compression.NONE:
            return source
        case Compression.GZIP:
            return _Gzip(source).read
        case Compression.ZSTD:
            return _zstd(source)


def watched(source: Source, *sinks: Sink) -> Source:
    """Return the source; each piece is shown to the sinks on its way."""

    def read() -> bytes:
        piece = source()
        for sink in sinks:
            sink.update(piece)
        return piece

    return read


class Ahead:
    """A thread that reads one source, some pieces ahead of who wants them.

    Decompression and hashing let other threads run, so they go on while files are written. The thread begins
    before there is a source: where it runs may forbid to begin one later.
    """

    def __init__(self) -> None:
        """Begin the thread."""
        self._sources: SimpleQueue[Source] = SimpleQueue()
        self._pieces: SimpleQueue[bytes | Exception] = SimpleQueue()
        self._room: SimpleQueue[None] = SimpleQueue()
        self._end: bytes | Exception | None = None
        for _ in range(_AHEAD):
            self._room.put(None)
        threading.Thread(target=self._run, name="ahead", daemon=True).start()

    def of(self, source: Source) -> Source:
        """Return a source of the same pieces and errors; called once."""
        self._sources.put(source)
        return self._read

    def _read(self) -> bytes:
        if self._end is None:
            piece = self._pieces.get()
            if isinstance(piece, bytes) and piece:
                self._room.put(None)
                return piece
            self._end = piece
        if isinstance(self._end, Exception):
            raise self._end
        return self._end

    def _run(self) -> None:
        source = self._sources.get()
        piece: bytes | Exception = b"..."
        while isinstance(piece, bytes) and piece:
            self._room.get()
            try:
                piece = source()
            except Exception as error:  # noqa: BLE001 - raised where the piece is wanted
                piece = error
            self._pieces.put(piece)


class _Gzip:
    """Members one after the other, each checked by its own CRC and length."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._input = b""
        self._member: igzip_lib.IgzipDecompressor | None = None

    def read(self) -> bytes:
        while True:
            if self._member is None:
                self._input = self._input or self._source()
                if not self._input:
                    return b""
                self._member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
            piece = self._step(self._member)
            if self._member.eof:
                self._input = self._member.unused_data
                self._member = None
            if piece:
                return piece

    def _step(self, member: igzip_lib.IgzipDecompressor) -> bytes:
        if member.needs_input and not self._input:
            self._input = self._source()
            if not self._input:
                raise InvalidArgument("gzip: the data ends in the middle")
        data, self._input = self._input, b""
        try:
            piece: bytes = member.decompress(data, PIECE)
        except (_IsalError, EOFError) as error:
            raise InvalidArgument(f"gzip: damaged data: {error}") from error
        return piece


def _zstd(source: Source) -> Source:
    reader = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW).stream_reader(
        cast("IO[bytes]", _Readable(source)), read_across_frames=True
    )

    def read() -> bytes:
        try:
            return reader.read(PIECE)
        except zstandard.ZstdError as error:
            raise InvalidArgument(f"zstd: damaged data: {error}") from error

    return read


class _Readable:
    """A source as the object with ``read`` that zstandard wants."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def read(self, _size: int = -1) -> bytes:
        return self._source()


class ByteStream:
    """Exact reads over a source."""

    __slots__ = ("_at", "_piece", "_source", "_start")

    def __init__(self, source: Source) -> None:
        self._source = source
        self._piece = b""
        self._at = 0
        self._start = 0

    @property
    def position(self) -> int:
        """Return how many bytes were taken."""
        return self._start + self._at

    def take(self, size: int) -> bytes:
        """Return exactly ``size`` bytes.

        Raises:
            InvalidArgument: the stream ends before.
        """
        if size <= len(self._piece) - self._at:
            self._at += size
            return self._piece[self._at - size : self._at]
        return b"".join(self.pieces(size))

    def take_or_end(self, size: int) -> bytes | None:
        """Return exactly ``size`` bytes, or None if the stream ends right here."""
        begin, end = self._at, self._at + size
        if end <= len(self._piece):
            self._at = end
            return self._piece[begin:end]
        if begin == len(self._piece) and not self._more():
            return None
        return self.take(size)

    def pieces(self, size: int) -> Iterator[memoryview]:
        """Yield the next ``size`` bytes in pieces as they come.

        Raises:
            InvalidArgument: the stream ends before.
        """
        left = size
        while left:
            if self._at == len(self._piece) and not self._more():
                raise InvalidArgument(f"the data ends {left} bytes too early")
            part = memoryview(self._piece)[self._at : self._at + left]
            self._at += len(part)
            left -= len(part)
            yield part

    def here(self, size: int) -> memoryview | None:
        """Return the next ``size`` bytes if they are there in one piece; else None, and nothing is taken."""
        begin, end = self._at, self._at + size
        if end > len(self._piece):
            return None
        self._at = end
        return memoryview(self._piece)[begin:end]

    def skip(self, size: int) -> None:
        """Leave out ``size`` bytes."""
        if size <= len(self._piece) - self._at:
            self._at += size
            return
        for _ in self.pieces(size):
            pass

    def skip_to(self, position: int) -> None:
        """Leave out what comes before a position."""
        at = position - self._start
        if self._at <= at <= len(self._piece):
            self._at = at
        else:
            self.skip(position - self.position)

    def drain(self) -> None:
        """Read to the end, so that the whole is hashed."""
        while self._more():
            pass

    def _more(self) -> bool:
        self._start += len(self._piece)
        self._piece = self._source()
        self._at = 0
        return bool(self._piece)
