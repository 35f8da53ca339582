"""The bridge's connections to the guest's supervisor and keeper."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time

from polypod.plan import channel
from polypod.plan.operations import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from polypod.supervisor.server import Loop

    Message = dict[str, Any]
    Done = Callable[[Message | None, Message | None, list[int]], None]

_STARTS_S = 20.0
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Peers:
    """Asks the supervisor, listens to the keeper. A supervisor that died was started again: ask it anew."""

    def __init__(self, loop: Loop, state: str, exited: Callable[[str, Message], None]) -> None:
        self._loop = loop
        self._state = state
        self._exited = exited
        self._number = 0
        self._pending: dict[int, Done] = {}
        self._supervisor = self._connect("supervisor")
        self._keeper = self._connect("keeper")
        channel.send(self._keeper, {"id": 0, "op": "watch"})

    def ask(self, request: Message, fds: list[int], done: Done) -> None:
        """Ask the supervisor; ``done(ok, error, descriptors)`` is called with its answer."""
        self._number += 1
        self._pending[self._number] = done
        self._send({"id": self._number, **request}, fds)

    def tell(self, request: Message) -> None:
        """Ask for what may fail: it is gone then."""
        self.ask(request, [], lambda _ok, _error, fds: channel.close_all(fds))

    def launch(self, name: str, plan: Plan, fds: list[int], done: Done, *, hold: bool) -> None:
        """Run a plan."""
        memfd = _sealed(json.dumps(plan.to_wire()).encode())
        try:
            request = {"op": "launch", "process": name, "labels": {}, "hold": hold}
            self.ask(request, [memfd, *fds], done)
        finally:
            os.close(memfd)

    def _connect(self, role: str) -> socket.socket:
        sock = _connected(f"{self._state}/{role}.sock")
        self._loop.add(sock.fileno(), lambda _events: self._read(sock, role))
        return sock

    def _send(self, message: Message, fds: list[int]) -> None:
        try:
            channel.send(self._supervisor, message, fds)
        except OSError as error:
            self._lost()
            text = f"the guest's supervisor was restarted: {error}"
            raise OSError(error.errno, text) from error

    def _read(self, sock: socket.socket, role: str) -> None:
        received = channel.receive(sock)
        if received is None:
            if role == "keeper":
                raise SystemExit("the keeper is gone")
            self._lost()
            return
        message, fds = received
        if message.get("event") == "exit":
            record = {key: message.get(key) for key in ("code", "signal", "at")}
            self._exited(str(message["process"]), record)
            return
        number = message.get("id")
        done = self._pending.pop(number, None) if isinstance(number, int) else None
        if done is None:
            channel.close_all(fds)
            return
        ok, error = message.get("ok"), message.get("error")
        done(ok if isinstance(ok, dict) else None, error if isinstance(error, dict) else None, fds)

    def _lost(self) -> None:
        self._loop.drop(self._supervisor.fileno())
        self._supervisor.close()
        pending, self._pending = self._pending, {}
        self._supervisor = self._connect("supervisor")
        error = {"kind": "Unavailable", "message": "the guest's supervisor was restarted"}
        for done in pending.values():
            done(None, error, [])


def _connected(path: str) -> socket.socket:
    """Connect to one that may just be starting."""
    deadline = time.monotonic() + _STARTS_S
    while True:
        try:
            return channel.connect(path)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def _sealed(data: bytes) -> int:
    fd = os.memfd_create("polypod-plan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd
