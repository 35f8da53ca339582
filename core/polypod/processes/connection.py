"""A connection to keeper, supervisor or logger: requests with answers, pushed events, reconnecting."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from polypod.plan import channel
from polypod.plugin import errors
from polypod.plugin.errors import BackendError, PolypodError, Unavailable

_log = logging.getLogger(__name__)
_RETRY_S = 0.02
_CONNECT_TRIES = 500

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
        self._path = path
        self._name = name
        self._on_event = on_event
        self._on_connect = on_connect
        self._on_lost = on_lost
        self._sock: socket.socket | None = None
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._number = 0
        self._closed = False
        self._connecting: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, waiting for a peer that is just being started.

        Raises:
            Unavailable: nobody listens after ten seconds.
        """
        for _ in range(_CONNECT_TRIES):
            if self._sock is not None:
                # A request that came meanwhile has connected: a second socket would lose its answer.
                return
            try:
                self._sock = channel.connect(str(self._path))
                break
            except (OSError, channel.ChannelError):
                await asyncio.sleep(_RETRY_S)
        else:
            msg = f"{self._name}: nobody listens on {self._path}; see the log of the {self._name}"
            raise Unavailable(msg)
        self._sock.setblocking(False)
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._read)
        if self._on_connect is not None:
            self._on_connect()

    async def request(self, op: str, /, fds: Sequence[int] = (), **fields: object) -> Answer:
        """Send a request and return its answer and descriptors, which are the caller's.

        Raises:
            Unavailable: the peer went away; it may or may not have done it.
            PolypodError: what the peer refused, by its kind, with the OSError as cause if it was one.
        """
        if self._sock is None:
            await self._reconnected()
        number = self.send(op, fds, **fields)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            return await future
        finally:
            self._waiting.pop(number, None)

    def send(self, op: str, fds: Sequence[int] = (), **fields: object) -> int:
        """Send without waiting for an answer; return the request's number."""
        if self._sock is None:
            msg = f"{self._name}: not connected"
            raise Unavailable(msg)
        self._number += 1
        try:
            channel.send(self._sock, {"id": self._number, "op": op, **fields}, list(fds))
        except BlockingIOError as error:
            msg = f"{self._name}: too many requests wait; try again"
            raise Unavailable(msg) from error
        except OSError as error:
            msg = f"{self._name}: {error}"
            raise Unavailable(msg) from error
        return self._number

    def close(self) -> None:
        """Disconnect; requests in flight fail."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        self._disconnect()

    async def _reconnected(self) -> None:
        if self._closed:
            msg = f"{self._name}: the connection is closed"
            raise Unavailable(msg)
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.ensure_future(self.open())
        await asyncio.shield(self._connecting)

    def _read(self) -> None:
        while self._sock is not None:
            try:
                received = channel.receive(self._sock)
            except BlockingIOError:
                return
            except (OSError, channel.ChannelError) as error:
                _log.warning("%s: %s", self._name, error)
                received = None
            if received is None:
                self._lost()
                return
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
        self._disconnect()
        if self._on_lost is not None:
            self._on_lost()
        if not self._closed:
            self._connecting = asyncio.ensure_future(self.open())
            self._connecting.add_done_callback(self._note_failure)

    def _note_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            _log.error("%s", task.exception())

    def _disconnect(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(sock.fileno())
            sock.close()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(Unavailable(f"{self._name}: it went away; try again"))


def _error_of(error: Message) -> PolypodError:
    kind = getattr(errors, str(error.get("kind")), BackendError)
    made: PolypodError = kind(str(error.get("message")))
    number = int(error.get("errno") or 0)
    if number:
        made.__cause__ = OSError(number, os.strerror(number))
    return made
