"""The daemon's connection to the relay of one VM."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from polypod.plan import channel
from polypod.plugin import BackendError, PolypodError, Unavailable, errors

Message = dict[str, Any]
_CONNECTS_S: Final = 10.0
_AGAIN_S: Final = 0.005
_CALL_S: Final = 60.0
_GONE: Final = "the relay of this VM is gone"


class Lost(Unavailable):
    """The connection has ended before the answer came."""


class RelayLink:
    """Requests and their answers; what comes unasked goes to ``on_event``, the end to ``on_lost``.

    ``on_lost`` tells whether there will be another connection: what the guest was asked waits for it then,
    and is asked again. Each request has a name of its own, so it is done once.
    """

    def __init__(
        self, on_event: Callable[[Message], None], on_lost: Callable[[], bool | None]
    ) -> None:
        """Not connected yet."""
        self._on_event = on_event
        self._on_lost = on_lost
        self._number = 0
        self._name = secrets.token_hex(8)
        self._calls = 0
        self._pending: dict[int, asyncio.Future[tuple[Message, list[int]]]] = {}
        self._sock: socket.socket | None = None
        self._comes_back = False
        self._back = asyncio.Event()

    async def open(self, directory: Path, *, wait: bool) -> None:
        """Connect to the relay of a directory; with ``wait`` it may still be starting.

        Raises:
            Unavailable: there is none.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (_CONNECTS_S if wait else 0.0)
        place = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # By the descriptor: paths of sockets are short, those of directories need not be.
            path = f"/proc/self/fd/{place}/relay.sock"
            while self._sock is None:
                try:
                    self._sock = channel.connect(path)
                except (OSError, channel.ChannelError) as error:
                    if loop.time() >= deadline:
                        raise Unavailable(f"the relay in {directory}: {error}") from error
                    await asyncio.sleep(_AGAIN_S)
        finally:
            os.close(place)
        self._sock.setblocking(False)
        loop.add_reader(self._sock.fileno(), self._read)

    @property
    def is_open(self) -> bool:
        """Whether there is a connection."""
        return self._sock is not None

    async def ask(
        self, op: str, fds: Sequence[int] = (), *, timeout_s: float = _CALL_S, **fields: object
    ) -> tuple[Message, list[int]]:
        """Ask the relay itself; descriptors of the answer are the caller's.

        Raises:
            PolypodError: what the relay or the guest said, by its meaning.
            Unavailable: the relay is gone (then it is `Lost`), or does not answer.
        """
        if self._sock is None:
            raise Lost(_GONE)
        self._number += 1
        number = self._number
        answer: asyncio.Future[tuple[Message, list[int]]]
        answer = asyncio.get_running_loop().create_future()
        self._pending[number] = answer
        try:
            await self._send({"id": number, "op": op, **fields}, list(fds))
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError as error:
            raise Unavailable(f"the VM has not answered {op} for {timeout_s:g} s") from error
        finally:
            self._pending.pop(number, None)

    async def call(
        self, request: Mapping[str, object], streams: Mapping[str, int] | None = None
    ) -> Message:
        """Ask the guest.

        Args:
            request: ``op`` and its fields.
            streams: name → the host's end of standard streams, which stay the caller's.
        """
        named = streams or {}
        self._calls += 1
        key = f"{self._name}.{self._calls}"
        memfd = os.memfd_create("polypod-request", os.MFD_CLOEXEC)
        try:
            os.write(memfd, json.dumps(request).encode())
            fds = [memfd, *named.values()]
            while True:
                try:
                    names = list(named)
                    answer, _fds = await self.ask("call", fds, memfd=True, streams=names, key=key)
                except Lost:
                    if not await self._came_back():
                        raise
                else:
                    return answer
        finally:
            os.close(memfd)

    async def _came_back(self) -> bool:
        """Wait for another connection; False if there will be none."""
        if self._comes_back:
            async with asyncio.timeout(_CALL_S):
                await self._back.wait()
        return self._sock is not None

    def recovered(self) -> None:
        """There is another connection, on which the guest can be asked."""
        self._back.set()

    def give_up(self) -> None:
        """There will be none."""
        self._comes_back = False
        self._back.set()

    async def _send(self, message: Message, fds: list[int]) -> None:
        while True:
            sock = self._sock
            if sock is None:
                raise Lost(_GONE)
            try:
                channel.send(sock, message, fds)
            except BlockingIOError:
                await asyncio.sleep(_AGAIN_S)
            except OSError as error:
                self._lost()
                raise Lost(f"{_GONE}: {error}") from error
            else:
                return

    def _read(self) -> None:
        while self._sock is not None:
            try:
                received = channel.receive(self._sock)
            except BlockingIOError:
                return
            except (OSError, channel.ChannelError):
                received = None
            if received is None:
                self._lost()
                return
            message, fds = received
            if "event" in message:
                self._on_event(message)
            else:
                self._settle(message, fds)

    def _settle(self, message: Message, fds: list[int]) -> None:
        number = message.get("id")
        answer = self._pending.get(number) if isinstance(number, int) else None
        if answer is None or answer.done():
            channel.close_all(fds)
            return
        error = message.get("error")
        if isinstance(error, dict):
            answer.set_exception(_raised(error))
        else:
            found = message.get("ok")
            answer.set_result((found if isinstance(found, dict) else {}, fds))

    def _lost(self) -> None:
        self.close()
        self._back.clear()
        self._comes_back = bool(self._on_lost())

    def close(self) -> None:
        """Disconnect; the relay goes on."""
        if self._sock is None:
            return
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._sock.close()
        self._sock = None
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(Lost(_GONE))


def _raised(error: Message) -> PolypodError:
    kind = getattr(errors, str(error.get("kind")), BackendError)
    if not (isinstance(kind, type) and issubclass(kind, PolypodError)):
        kind = BackendError
    raised = kind(str(error.get("message")))
    number = int(error.get("errno") or 0)
    if number:
        raised.__cause__ = OSError(number, os.strerror(number))
    return raised
