"""A ttrpc client and a ttrpc server on one socket, as NRI pairs them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from enum import IntEnum

from polypod_nri import wire
from polypod_nri.framing import (
    MAX_PAYLOAD,
    PLUGIN_CONNECTION,
    RUNTIME_CONNECTION,
    Decoder,
    Frame,
    FrameType,
    ProtocolError,
    encode,
)

log = logging.getLogger(__name__)

_READ = 256 << 10
_MAX_SERVED = 64
"""Calls of one peer that are worked on at once; one that sends more is not answered but closed."""


class Code(IntEnum):
    """Of gRPC's status codes those that occur here."""

    OK = 0
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12


class Gone(Exception):
    """The other side is not there any more, or of no use; the text says why."""


class Refused(Exception):
    """The other side answered with an error."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


Serve = Callable[[str, str, bytes], Awaitable[bytes]]
"""Service, method, payload → payload; raises `Refused`."""


class Connection:
    """One socket: `call` asks the peer, ``serve`` is asked by it. Close it once it is not needed."""

    def __init__(
        self,
        sock: socket.socket,
        serve: Serve,
        ended: Callable[[str], None],
        *,
        ours: int = PLUGIN_CONNECTION,
    ) -> None:
        """Take a connected socket; nothing is read before `start`.

        Args:
            sock: a stream socket; taken.
            serve: answers the peer's calls.
            ended: called once, with the reason, when nothing can be asked any more.
            ours: the connection on which we ask: a server asks on the first, a plugin on the second.
        """
        self._sock = sock
        self._serve = serve
        self._ended = ended
        self._ours = ours
        self._theirs = RUNTIME_CONNECTION if ours == PLUGIN_CONNECTION else PLUGIN_CONNECTION
        self._decoder = Decoder()
        self._next_stream = 1
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._served: set[asyncio.Task[None]] = set()
        self._reason = ""
        self._reading: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def start(self) -> None:
        """Begin to read."""
        reader, self._writer = await asyncio.open_connection(sock=self._sock)
        self._reading = asyncio.create_task(self._read(reader), name="nri connection")

    async def call(self, service: str, method: str, payload: bytes, timeout_s: float) -> bytes:
        """Ask the peer.

        Raises:
            Refused: it answered with an error.
            Gone: it is not there, or ends before it answers.
            TimeoutError: it does not answer in time.
            ProtocolError: the call is too long to be sent.
        """
        if self._reason or self._writer is None:
            raise Gone(self._reason or "not connected")
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        request = wire.question(service, method, payload, int(timeout_s * 1e9))
        data = encode(self._ours, Frame(stream, FrameType.REQUEST, request))
        self._waiting[stream] = waiting = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(data)
            return await asyncio.wait_for(waiting, timeout_s)
        finally:
            self._waiting.pop(stream, None)

    def abandon(self, reason: str) -> None:
        """Close the socket; all who wait for an answer get `Gone`. Idempotent."""
        if self._reason:
            return
        self._reason = reason
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(Gone(reason))
        for task in (*self._served, *([self._reading] if self._reading else [])):
            if task is not asyncio.current_task():
                task.cancel()
        if self._writer is not None:
            self._writer.transport.abort()
        else:
            self._sock.close()
        self._ended(reason)

    async def close(self, reason: str) -> None:
        """`abandon`, and wait until nothing of ours runs."""
        self.abandon(reason)
        mine = {task for task in (*self._served, self._reading) if task is not None}
        me = asyncio.current_task()  # who closes from inside an answer cannot wait for it
        await asyncio.gather(*(task for task in mine if task is not me), return_exceptions=True)
        if self._writer is not None:
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        reason = "it closed the connection"
        try:
            while data := await reader.read(_READ):
                for connection, frame in self._decoder.feed(data):
                    self._take(connection, frame)
        except (ProtocolError, wire.Garbage) as error:
            reason = f"it does not speak ttrpc: {error}"
        except OSError as error:
            reason = f"the connection broke: {error.strerror or error}"
        except asyncio.CancelledError:
            reason = self._reason or "closed"
            raise
        finally:
            self.abandon(reason)

    def _take(self, connection: int, frame: Frame) -> None:
        if connection == self._ours:
            self._answered(frame)
        elif frame.type != FrameType.REQUEST or frame.stream % 2 == 0:
            raise ProtocolError(f"frame of type {frame.type} on stream {frame.stream}")
        elif len(self._served) >= _MAX_SERVED:
            raise ProtocolError(f"{len(self._served)} calls at once")
        else:
            task = asyncio.create_task(self._answer(frame), name="nri call of a plugin")
            self._served.add(task)
            task.add_done_callback(self._served.discard)

    def _answered(self, frame: Frame) -> None:
        if frame.type != FrameType.RESPONSE:
            raise ProtocolError(f"frame of type {frame.type} where an answer was expected")
        waiting = self._waiting.get(frame.stream)
        if waiting is None or waiting.done():
            return  # an answer that nobody waits for any more
        payload, code, text = wire.read_answer(frame.payload)
        if code:
            waiting.set_exception(Refused(code, text))
        else:
            waiting.set_result(payload)

    async def _answer(self, frame: Frame) -> None:
        try:
            service, method, payload = wire.read_question(frame.payload)
            answer = wire.answer(await self._serve(service, method, payload))
        except Refused as error:
            answer = wire.answer(code=error.code, text=str(error))
        except wire.Garbage as error:
            answer = wire.answer(code=Code.INVALID_ARGUMENT, text=str(error))
        except Exception as error:
            log.exception("call of an NRI peer failed")
            answer = wire.answer(code=Code.UNKNOWN, text=repr(error))
        if not self._reason and self._writer is not None and len(answer) <= MAX_PAYLOAD:
            self._writer.write(
                encode(self._theirs, Frame(frame.stream, FrameType.RESPONSE, answer))
            )
