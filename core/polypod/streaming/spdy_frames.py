"""Frames of SPDY/3.1: bytes to frames and back.

What a data frame carries is handed on as it comes, in `Data` pieces: a frame may be 16 MiB long, and
nobody needs it in one piece.

Spec:
    SPDY Protocol Draft 3.1, 2.2 (Framing) and 2.6 (Control frames).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from polypod.streaming.errors import ProtocolError
from polypod.streaming.spdy_headers import Packer, Unpacker

VERSION = 3
MAX_CONTROL_BYTES = 64 * 1024
"""Of one control frame; those of real peers have some hundred bytes."""
MAX_DATA_BYTES = 0xFFFFFF
MAX_SETTINGS = 64
ID_MASK = 0x7FFFFFFF
_HEADER_BYTES = 8
_FIN = 0x01
_INITIAL_WINDOW = 7


class Kind(IntEnum):
    """The types of control frames."""

    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


class Status(IntEnum):
    """Why a stream was reset, as far as we say it."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    CANCEL = 5
    STREAM_ALREADY_CLOSED = 9


@dataclass(frozen=True, slots=True)
class SynStream:
    """A stream begins."""

    stream: int
    headers: Mapping[str, str] = field(default_factory=dict)
    fin: bool = False


@dataclass(frozen=True, slots=True)
class SynReply:
    """A stream is accepted."""

    stream: int
    headers: Mapping[str, str] = field(default_factory=dict)
    fin: bool = False


@dataclass(frozen=True, slots=True)
class Headers:
    """More headers of a stream."""

    stream: int
    headers: Mapping[str, str] = field(default_factory=dict)
    fin: bool = False


@dataclass(frozen=True, slots=True)
class RstStream:
    """A stream ends at once, in both directions."""

    stream: int
    status: int


@dataclass(frozen=True, slots=True)
class Settings:
    """What the peer wishes; ``window`` is the one setting that matters here."""

    window: int | None = None


@dataclass(frozen=True, slots=True)
class Ping:
    """To be sent back as it is."""

    number: int


@dataclass(frozen=True, slots=True)
class GoAway:
    """The peer takes no new streams."""

    last: int
    status: int = 0


@dataclass(frozen=True, slots=True)
class WindowUpdate:
    """So many more bytes may be sent; stream 0 means the whole connection."""

    stream: int
    more: int


@dataclass(frozen=True, slots=True)
class Data:
    """A piece of a data frame; ``fin`` comes with its last piece alone."""

    stream: int
    data: bytes
    fin: bool = False


Frame = SynStream | SynReply | Headers | RstStream | Settings | Ping | GoAway | WindowUpdate | Data


def _control(kind: Kind, body: bytes, flags: int = 0) -> bytes:
    return struct.pack(">HHI", 0x8000 | VERSION, kind, flags << 24 | len(body)) + body


class FrameWriter:
    """Frames to bytes, in the order of the calls: headers are packed into one zlib stream."""

    def __init__(self) -> None:
        self._packer = Packer()

    def write(self, frame: Frame) -> bytes:
        """Return a frame's bytes."""
        match frame:
            case Data(stream, data, fin):
                return struct.pack(">II", stream, fin << 24 | len(data)) + data
            case SynStream(stream, headers, fin):
                start = struct.pack(">IIH", stream, 0, 0)
                return _control(Kind.SYN_STREAM, start + self._packer.pack(headers), fin)
            case SynReply(stream, headers, fin):
                body = struct.pack(">I", stream) + self._packer.pack(headers)
                return _control(Kind.SYN_REPLY, body, fin)
            case Headers(stream, headers, fin):
                body = struct.pack(">I", stream) + self._packer.pack(headers)
                return _control(Kind.HEADERS, body, fin)
            case RstStream(stream, status):
                return _control(Kind.RST_STREAM, struct.pack(">II", stream, status))
            case Settings(window):
                pairs = b"" if window is None else struct.pack(">II", _INITIAL_WINDOW, window)
                return _control(Kind.SETTINGS, struct.pack(">I", len(pairs) // 8) + pairs)
            case Ping(number):
                return _control(Kind.PING, struct.pack(">I", number))
            case GoAway(last, status):
                return _control(Kind.GOAWAY, struct.pack(">II", last, status))
            case WindowUpdate(stream, more):
                return _control(Kind.WINDOW_UPDATE, struct.pack(">II", stream, more))


class FrameReader:
    """Bytes to frames."""

    def __init__(self) -> None:
        self._unpacker = Unpacker()
        self._buffer = bytearray()
        self._stream = 0
        self._left = 0
        """Bytes of the data frame that is being read."""
        self._fin = False

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield what these bytes complete; frames of unknown types are skipped, as the draft asks.

        Raises:
            ProtocolError: another version, a frame too long, or one that is not what its type wants.
        """
        self._buffer += data
        while True:
            if self._left:
                if not self._buffer:
                    return
                yield self._piece()
                continue
            if len(self._buffer) < _HEADER_BYTES:
                return
            first, second = struct.unpack_from(">II", self._buffer)
            flags, length = second >> 24, second & 0xFFFFFF
            if first >> 31:
                if not self._whole(first, length):
                    return
                frame = self._parse(first & 0xFFFF, flags, self._take(length))
                if frame is not None:
                    yield frame
                continue
            del self._buffer[:_HEADER_BYTES]
            self._stream, self._left, self._fin = first, length, bool(flags & _FIN)
            if not length:
                yield Data(first, b"", self._fin)

    def _piece(self) -> Data:
        data = bytes(self._buffer[: self._left])
        del self._buffer[: len(data)]
        self._left -= len(data)
        return Data(self._stream, data, self._fin and not self._left)

    def _whole(self, first: int, length: int) -> bool:
        version = first >> 16 & 0x7FFF
        if version != VERSION:
            raise ProtocolError(f"SPDY version {version}; this is version {VERSION}")
        if length > MAX_CONTROL_BYTES:
            raise ProtocolError(f"a control frame of {length} bytes")
        return len(self._buffer) >= _HEADER_BYTES + length

    def _take(self, length: int) -> bytes:
        body = bytes(self._buffer[_HEADER_BYTES : _HEADER_BYTES + length])
        del self._buffer[: _HEADER_BYTES + length]
        return body

    def _parse(self, kind: int, flags: int, body: bytes) -> Frame | None:
        fin = bool(flags & _FIN)
        match kind:
            case Kind.SYN_STREAM:
                stream, _associated, _priority = _fields(">IIH", body, kind)
                return SynStream(stream & ID_MASK, self._unpacker.unpack(body[10:]), fin)
            case Kind.SYN_REPLY:
                (stream,) = _fields(">I", body, kind)
                return SynReply(stream & ID_MASK, self._unpacker.unpack(body[4:]), fin)
            case Kind.HEADERS:
                (stream,) = _fields(">I", body, kind)
                return Headers(stream & ID_MASK, self._unpacker.unpack(body[4:]), fin)
            case Kind.RST_STREAM:
                stream, status = _fields(">II", body, kind)
                return RstStream(stream & ID_MASK, status)
            case Kind.SETTINGS:
                return _settings(body)
            case Kind.PING:
                return Ping(*_fields(">I", body, kind))
            case Kind.GOAWAY:
                last, status = _fields(">II", body, kind)
                return GoAway(last & ID_MASK, status)
            case Kind.WINDOW_UPDATE:
                stream, more = _fields(">II", body, kind)
                return WindowUpdate(stream & ID_MASK, more & ID_MASK)
            case _:
                return None


def _fields(layout: str, body: bytes, kind: int) -> tuple[int, ...]:
    if len(body) < struct.calcsize(layout):
        raise ProtocolError(f"a {Kind(kind).name} frame of {len(body)} bytes")
    return struct.unpack_from(layout, body)


def _settings(body: bytes) -> Settings:
    (count,) = _fields(">I", body, Kind.SETTINGS)
    if count > MAX_SETTINGS or len(body) != 4 + 8 * count:
        raise ProtocolError(f"{count} settings in {len(body)} bytes")
    window = None
    for number in range(count):
        flags_and_id, value = struct.unpack_from(">II", body, 4 + 8 * number)
        if flags_and_id & 0xFFFFFF == _INITIAL_WINDOW:
            window = value & ID_MASK
    return Settings(window)
