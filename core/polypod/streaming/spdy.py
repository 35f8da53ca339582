"""One end of a SPDY/3.1 connection without a socket: bytes in, events out, bytes to send.

Kubernetes' own clients know no flow control: they neither send WINDOW_UPDATE nor look at ours. So the
windows bind us only once the peer has shown that it has some; until then TCP holds us back.

Spec:
    SPDY Protocol Draft 3.1, 2.3 (Streams), 2.6.8 (WINDOW_UPDATE).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from polypod.streaming import spdy_frames as frames
from polypod.streaming.errors import ProtocolError

WINDOW_BYTES = 64 * 1024
MAX_WINDOW = 0x7FFFFFFF
MAX_STREAMS = 2048
"""Open at one time; a port-forward needs two for each connection."""
FRAME_BYTES = 32 * 1024
"""The longest data frame that we send: other streams come in between."""


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer wants a stream; answer with `Connection.accept` or `Connection.reset`."""

    stream: int
    headers: Mapping[str, str]
    ended: bool
    """The peer will send nothing on it."""


@dataclass(frozen=True, slots=True)
class StreamAccepted:
    """The peer has accepted a stream of ours."""

    stream: int


@dataclass(frozen=True, slots=True)
class DataReceived:
    """Some bytes of a stream; tell `Connection.consumed` when they are used up."""

    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The peer will send nothing more on it."""

    stream: int


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The peer wants to hear and say nothing more on it."""

    stream: int
    status: int


@dataclass(frozen=True, slots=True)
class WindowOpened:
    """More may be sent than before."""


@dataclass(frozen=True, slots=True)
class PeerLeaves:
    """The peer opens no more streams."""


Event = (
    StreamOpened
    | StreamAccepted
    | DataReceived
    | StreamEnded
    | StreamReset
    | WindowOpened
    | PeerLeaves
)


@dataclass(slots=True)
class _Stream:
    window: int
    """What may still be sent; below 0 where we did not know of the window yet."""
    accepted: bool = False
    peer_ended: bool = False
    we_ended: bool = False
    unreported: int = 0
    """Consumed bytes of which the peer was not told yet."""


@dataclass(slots=True)
class _Outgoing:
    writer: frames.FrameWriter = field(default_factory=frames.FrameWriter)
    bytes: bytearray = field(default_factory=bytearray)

    def add(self, frame: frames.Frame) -> None:
        self.bytes += self.writer.write(frame)


class Connection:
    """See the module's description. After a `ProtocolError` send `bytes_to_send`, then close."""

    def __init__(self, *, client: bool = False) -> None:
        """Be the side that has asked for the connection, or (the default) the one that was asked."""
        self._client = client
        self._reader = frames.FrameReader()
        self._out = _Outgoing()
        self._streams: dict[int, _Stream] = {}
        self._last_peer = 0
        self._next_own = 1 if client else 2
        self._next_ping = 1 if client else 2
        self._windows_count = False
        self._initial_window = WINDOW_BYTES
        self._window = WINDOW_BYTES
        self._unreported = 0
        self._leaving = False

    # In.

    def receive(self, data: bytes) -> Iterator[Event]:
        """Yield what these bytes mean.

        Raises:
            ProtocolError: the connection cannot go on.
        """
        try:
            for frame in self._reader.feed(data):
                yield from self._handle(frame)
        except ProtocolError:
            self.leave(frames.Status.PROTOCOL_ERROR)
            raise

    def _handle(self, frame: frames.Frame) -> Iterator[Event]:
        match frame:
            case frames.Data():
                yield from self._data(frame)
            case frames.SynStream():
                yield from self._syn_stream(frame)
            case frames.SynReply() | frames.Headers():
                yield from self._reply(frame)
            case frames.RstStream(stream, status):
                if self._streams.pop(stream, None) is not None:
                    yield StreamReset(stream, status)
            case frames.Ping(number):
                if number % 2 == (0 if self._client else 1):
                    self._out.add(frame)
            case frames.Settings(window):
                yield from self._settings(window)
            case frames.WindowUpdate(stream, more):
                yield from self._window_update(stream, more)
            case frames.GoAway():
                yield PeerLeaves()

    def _syn_stream(self, frame: frames.SynStream) -> Iterator[Event]:
        number = frame.stream
        if number % 2 == (1 if self._client else 0) or number <= self._last_peer:
            raise ProtocolError(f"stream {number}: not a number that the peer may use now")
        self._last_peer = number
        if len(self._streams) >= MAX_STREAMS or self._leaving:
            self._out.add(frames.RstStream(number, frames.Status.REFUSED_STREAM))
            return
        self._streams[number] = _Stream(self._initial_window, peer_ended=frame.fin)
        yield StreamOpened(number, frame.headers, frame.fin)

    def _reply(self, frame: frames.SynReply | frames.Headers) -> Iterator[Event]:
        stream = self._streams.get(frame.stream)
        if stream is None:
            return
        if isinstance(frame, frames.SynReply) and self._is_own(frame.stream):
            if stream.accepted:
                raise ProtocolError(f"stream {frame.stream}: accepted twice")
            stream.accepted = True
            yield StreamAccepted(frame.stream)
        if frame.fin:
            yield from self._peer_ends(frame.stream, stream)

    def _data(self, frame: frames.Data) -> Iterator[Event]:
        stream = self._streams.get(frame.stream)
        if stream is None:
            # What was under way when the stream was reset; for the connection's window it counts.
            self._report(len(frame.data))
            return
        if stream.peer_ended:
            self.reset(frame.stream, frames.Status.STREAM_ALREADY_CLOSED)
            yield StreamReset(frame.stream, frames.Status.STREAM_ALREADY_CLOSED)
            return
        if frame.data:
            yield DataReceived(frame.stream, frame.data)
        if frame.fin:
            yield from self._peer_ends(frame.stream, stream)

    def _peer_ends(self, number: int, stream: _Stream) -> Iterator[Event]:
        if stream.peer_ended:
            return
        stream.peer_ended = True
        yield StreamEnded(number)
        self._forget_ended(number, stream)

    def _settings(self, window: int | None) -> Iterator[Event]:
        if window is None:
            return
        self._windows_count = True
        for stream in self._streams.values():
            stream.window += window - self._initial_window
        self._initial_window = window
        yield WindowOpened()

    def _window_update(self, number: int, more: int) -> Iterator[Event]:
        self._windows_count = True
        if number == 0:
            self._window += more
            if self._window > MAX_WINDOW:
                raise ProtocolError("the connection's window is too large")
        elif (stream := self._streams.get(number)) is not None:
            stream.window += more
            if stream.window > MAX_WINDOW:
                raise ProtocolError(f"stream {number}: its window is too large")
        yield WindowOpened()

    # Out.

    def bytes_to_send(self) -> bytes:
        """Return what must be sent now."""
        data = bytes(self._out.bytes)
        self._out.bytes.clear()
        return data

    def open(self, headers: Mapping[str, str], *, ended: bool = False) -> int:
        """Open a stream of ours, return its number."""
        number = self._next_own
        self._next_own += 2
        self._streams[number] = _Stream(self._initial_window, we_ended=ended)
        self._out.add(frames.SynStream(number, headers, ended))
        return number

    def accept(self, number: int) -> None:
        """Accept a stream of the peer's."""
        if number in self._streams:
            self._streams[number].accepted = True
            self._out.add(frames.SynReply(number))

    def send(self, number: int, data: bytes) -> int:
        """Send bytes; return how many of them the windows let through (all, mostly).

        Bytes of a stream that has ended are dropped: the peer has said that it wants none.
        """
        stream = self._streams.get(number)
        if stream is None or stream.we_ended:
            return len(data)
        room = len(data)
        if self._windows_count:
            room = max(0, min(room, stream.window, self._window))
        stream.window -= room
        self._window -= room
        for at in range(0, room, FRAME_BYTES):
            self._out.add(frames.Data(number, data[at : min(at + FRAME_BYTES, room)]))
        return room

    def end(self, number: int) -> None:
        """Send nothing more on a stream. Idempotent."""
        stream = self._streams.get(number)
        if stream is None or stream.we_ended:
            return
        stream.we_ended = True
        self._out.add(frames.Data(number, b"", fin=True))
        self._forget_ended(number, stream)

    def reset(self, number: int, status: int = frames.Status.CANCEL) -> None:
        """End a stream at once. Idempotent."""
        if self._streams.pop(number, None) is not None:
            self._out.add(frames.RstStream(number, status))

    def consumed(self, number: int, count: int) -> None:
        """So many bytes of `DataReceived` are used up: the peer may send as many again."""
        self._report(count)
        stream = self._streams.get(number)
        if stream is None or stream.peer_ended:
            return
        stream.unreported += count
        if stream.unreported >= WINDOW_BYTES // 2:
            self._out.add(frames.WindowUpdate(number, stream.unreported))
            stream.unreported = 0

    def ping(self) -> None:
        """Ask the peer for a sign of life."""
        self._out.add(frames.Ping(self._next_ping))
        self._next_ping = (self._next_ping + 2) & 0xFFFFFFFF

    def leave(self, status: int = 0) -> None:
        """Tell the peer that no new streams are taken. Idempotent."""
        if not self._leaving:
            self._leaving = True
            self._out.add(frames.GoAway(self._last_peer, int(status != 0)))

    def is_open(self, number: int) -> bool:
        """Tell whether a stream is open in at least one direction."""
        return number in self._streams

    def _report(self, count: int) -> None:
        self._unreported += count
        if self._unreported >= WINDOW_BYTES // 2:
            self._out.add(frames.WindowUpdate(0, self._unreported))
            self._unreported = 0

    def _is_own(self, number: int) -> bool:
        return number % 2 == (1 if self._client else 0)

    def _forget_ended(self, number: int, stream: _Stream) -> None:
        if stream.peer_ended and stream.we_ended:
            self._streams.pop(number, None)
