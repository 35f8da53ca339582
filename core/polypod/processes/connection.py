"""A connection to keeper, supervisor or logger: requests with answers, pushed events, reconnecting."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from polypod.plan import channel
from polypod.plugin import errors
from polypod.plugin.errors import BackendError, PolypodError, Unavailable

_log = logging.getLogger(__name__)
_FIRST_RETRY_S = 0.005
_LONGEST_RETRY_S = 0.5
_CONNECT_S = 10.0
_QUEUE_MAX = 10_000


class NotNow(Unavailable):
    """The peer is there, has done nothing of what was asked, and will do it soon."""


Message = dict[str, Any]
Answer = tuple[Message, list[int]]


class Connection:
    """One peer. Requests in flight fail with `Unavailable` when it goes; then it is found again."""

    def __init__(
        self,
        path: Path,
        name: str,
        *,
        on_event: Callable[[Message], None] | None = None,
        on_connect: Callable[[], None] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self.path = path
        self._name = name
        self._on_event = on_event
        self._on_connect = on_connect
        self._on_lost = on_lost
        self._sock: socket.socket | None = None
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._queue: deque[tuple[Message, list[int]]] = deque()
        self._number = 0
        self._closed = False
        self.losses = 0
        """How often a peer went away: whoever compares learns whether the same one is still there."""
        self._connecting: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, waiting for a peer that is just being started.

        Raises:
            Unavailable: nobody listens after ten seconds; it goes on being looked for.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _CONNECT_S
        # Again and again: one that was just killed may still have taken the connection.
        while not self.is_open:
            if self._closed:
                msg = f"{self._name}: the connection is closed"
                raise Unavailable(msg)
            if loop.time() >= deadline:
                msg = f"{self._name}: nobody listens on {self.path}; see processes.log beside it"
                raise Unavailable(msg)
            if self._connecting is None or self._connecting.done():
                self._connecting = asyncio.ensure_future(self._connect())
            await asyncio.wait([self._connecting], timeout=deadline - loop.time())

    @property
    def is_open(self) -> bool:
        """Tell whether there is a peer now."""
        return self._sock is not None

    async def _connect(self) -> None:
        """Try until somebody listens; only one task does this, so there is only one socket."""
        pause_s = _FIRST_RETRY_S
        while (sock := _connected(self.path)) is None:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LONGEST_RETRY_S)
        sock.setblocking(False)
        self._sock = sock
        asyncio.get_running_loop().add_reader(sock.fileno(), self._read)
        if self._on_connect is not None:
            self._on_connect()

    async def request(self, op: str, /, fds: Sequence[int] = (), **fields: object) -> Answer:
        """Send a request and return its answer and descriptors, which are the caller's.

        Raises:
            Unavailable: the peer went away; it may or may not have done it.
            PolypodError: what the peer refused, by its kind, with the OSError as cause if it was one.
        """
        await self.open()
        self._number += 1
        number = self._number
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._send({"id": number, "op": op, **fields}, fds)
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                # The answer came in the same moment; nobody else will close its descriptors.
                channel.close_all(future.result()[1])
            raise
        finally:
            self._waiting.pop(number, None)

    def _send(self, message: Message, fds: Sequence[int]) -> None:
        """Send, or queue it until the peer reads again."""
        if self._sock is None:
            msg = f"{self._name}: not connected; try again"
            raise NotNow(msg)
        try:
            if self._queue:
                raise BlockingIOError
            channel.send(self._sock, message, list(fds))
        except BlockingIOError:
            if len(self._queue) >= _QUEUE_MAX:
                msg = f"{self._name}: {_QUEUE_MAX} requests wait already; try again"
                raise Unavailable(msg) from None
            self._queue.append((message, [os.dup(fd) for fd in fds]))
            asyncio.get_running_loop().add_writer(self._sock.fileno(), self._flush)
        except channel.ChannelError as error:
            msg = f"{self._name}: {message['op']}: {error}"
            raise errors.InvalidArgument(msg) from error
        except OSError as error:
            msg = f"{self._name}: {error}"
            raise NotNow(msg) from error

    def _flush(self) -> None:
        if self._sock is None:
            return
        while self._queue:
            message, fds = self._queue[0]
            try:
                channel.send(self._sock, message, fds)
            except BlockingIOError:
                return
            except OSError:
                # The reading side says that the peer is gone, and fails what waits.
                break
            self._queue.popleft()
            channel.close_all(fds)
        asyncio.get_running_loop().remove_writer(self._sock.fileno())

    def close(self) -> None:
        """Disconnect; requests in flight fail."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        self._disconnect()

    def _read(self) -> None:
        """Take one message: nearly always there is one, and of more the loop tells at once."""
        if self._sock is None:
            return
        try:
            received = channel.receive(self._sock)
        except BlockingIOError:
            return
        except ConnectionError:
            received = None
        except (OSError, channel.ChannelError) as error:
            _log.warning("%s: %s", self._name, error)
            received = None
        if received is None:
            self._lost()
        else:
            self._dispatch(*received)

    def _dispatch(self, message: Message, fds: list[int]) -> None:
        if "event" in message:
            channel.close_all(fds)
            if self._on_event is not None:
                self._on_event(message)
            return
        future = self._waiting.pop(int(message.get("id") or 0), None)
        if future is None or future.done():
            channel.close_all(fds)
        elif "error" in message:
            channel.close_all(fds)
            future.set_exception(_error_of(message["error"]))
        else:
            future.set_result((message.get("ok") or {}, fds))

    def _lost(self) -> None:
        self.losses += 1
        self._disconnect()
        if self._closed:
            return
        if self._on_lost is not None:
            self._on_lost()
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.ensure_future(self._connect())

    def _disconnect(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(sock.fileno())
                asyncio.get_running_loop().remove_writer(sock.fileno())
            sock.close()
        while self._queue:
            channel.close_all(self._queue.popleft()[1])
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(Unavailable(f"{self._name}: it went away; try again"))


def _connected(path: Path) -> socket.socket | None:
    try:
        return channel.connect(str(path))
    except (OSError, channel.ChannelError):
        return None


def _error_of(error: Message) -> PolypodError:
    kind = getattr(errors, str(error.get("kind")), BackendError)
    kind = NotNow if kind is Unavailable else kind
    made: PolypodError = kind(str(error.get("message")))
    number = int(error.get("errno") or 0)
    if number:
        made.__cause__ = OSError(number, os.strerror(number))
    return made
