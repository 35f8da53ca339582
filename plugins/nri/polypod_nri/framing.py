"""Bytes of an NRI connection to frames and back: no sockets here.

One unix socket carries two ttrpc connections. Each piece on it has an 8-byte header (connection, length);
the pieces of one connection, put together, are ttrpc frames, each with a 10-byte header (length, stream,
type, flags). All numbers are big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

PLUGIN_CONNECTION = 1
"""Calls of the server, answers of the plugin."""
RUNTIME_CONNECTION = 2
"""Calls of the plugin, answers of the server."""

MAX_PAYLOAD = 4 << 20
_PIECE = struct.Struct(">II")
_FRAME = struct.Struct(">IIBB")
_MAX_PIECE = _FRAME.size + MAX_PAYLOAD
_FIRST_PIECE = 4096
"""Peers that read into a buffer of this size refuse a larger piece unless they wait for just its rest."""


class FrameType(IntEnum):
    """What a frame is."""

    REQUEST = 1
    RESPONSE = 2
    DATA = 3


@dataclass(frozen=True, slots=True)
class Frame:
    """One message of one call; ``stream`` tells which."""

    stream: int
    type: int
    payload: bytes
    flags: int = 0


class ProtocolError(Exception):
    """The other side does not speak the protocol."""


def encode(connection: int, frame: Frame) -> bytes:
    """Return a frame as it goes over the socket.

    Raises:
        ProtocolError: it is longer than a frame may be.
    """
    if len(frame.payload) > MAX_PAYLOAD:
        raise ProtocolError(f"a message of {len(frame.payload)} bytes; {MAX_PAYLOAD} are allowed")
    head = _FRAME.pack(len(frame.payload), frame.stream, frame.type, frame.flags)
    data = head + frame.payload
    pieces = [each for each in (data[:_FIRST_PIECE], data[_FIRST_PIECE:]) if each]
    return b"".join(_PIECE.pack(connection, len(each)) + each for each in pieces)


class Decoder:
    """Takes bytes as they come and gives (connection, frame), in order."""

    def __init__(self) -> None:
        self._trunk = bytearray()
        self._connections = {PLUGIN_CONNECTION: bytearray(), RUNTIME_CONNECTION: bytearray()}

    def feed(self, data: bytes) -> list[tuple[int, Frame]]:
        """Return the frames that are complete now.

        Raises:
            ProtocolError: a length that no peer may send; the decoder is of no use any more.
        """
        self._trunk += data
        found: list[tuple[int, Frame]] = []
        for connection, piece in self._pieces():
            buffer = self._connections.get(connection)
            if buffer is not None:  # other connections are somebody's extension: passed over
                buffer += piece
                found += [(connection, frame) for frame in _frames(buffer)]
        return found

    def _pieces(self) -> Iterator[tuple[int, bytes]]:
        while len(self._trunk) >= _PIECE.size:
            connection, length = _PIECE.unpack_from(self._trunk)
            if length > _MAX_PIECE:
                raise ProtocolError(f"a piece of {length} bytes; {_MAX_PIECE} are allowed")
            end = _PIECE.size + length
            if len(self._trunk) < end:
                return
            piece = bytes(self._trunk[_PIECE.size : end])
            del self._trunk[:end]
            yield connection, piece


def _frames(buffer: bytearray) -> Iterator[Frame]:
    """Take complete frames out of a buffer."""
    while len(buffer) >= _FRAME.size:
        length, stream, kind, flags = _FRAME.unpack_from(buffer)
        if length > MAX_PAYLOAD:
            raise ProtocolError(f"a message of {length} bytes; {MAX_PAYLOAD} are allowed")
        end = _FRAME.size + length
        if len(buffer) < end:
            return
        frame = Frame(stream, kind, bytes(buffer[_FRAME.size : end]), flags)
        del buffer[:end]
        yield frame
