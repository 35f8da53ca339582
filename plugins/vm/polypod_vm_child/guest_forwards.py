"""Port-forward in the guest: connections that begin at the pod's own localhost.

Spec:
    kubernetes/cri-api api.proto, RuntimeService.PortForward.
"""

from __future__ import annotations

import errno
import os
import select
import socket

from polypod_vm_child.connections import NAME, Connection
from polypod_vm_child.guest_launch import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from polypod_vm_child.guest_bridge import Bridge

    Message = dict[str, Any]
    Answer = Callable[..., None]

_LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
"""Kubernetes: localhost of the pod, IPv4 first."""
_CONNECTS_S = 8.0


class Forwards:
    """The connections of one guest."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._open: dict[int, Connection] = {}
        self._attempts: dict[int, _Attempt] = {}

    def forward(self, message: Message, answer: Answer) -> None:
        """Connect to a port; answered when that has succeeded or failed."""
        port = message.get("port")
        if type(port) is not int or not 0 < port < 65536:
            raise Refused("InvalidArgument", f"forward: {port!r} is no port")
        stream = int(message["streams"][NAME])

        def done(sock: socket.socket | None, error: Message | None) -> None:
            self._attempts.pop(stream, None)
            # Answered first: what is read comes behind the answer.
            answer({}, error)
            if sock is not None:
                self._add(sock, stream)

        attempt = self._attempts[stream] = _Attempt(self._bridge, port, done)
        attempt.next()

    def ended(self, stream: int) -> None:
        """Whoever asked has left; a connection that does not stand yet is given up."""
        attempt = self._attempts.pop(stream, None) or self._attempts.pop(stream - 1, None)
        if attempt is not None:
            attempt.give_up()

    def close(self) -> None:
        """End all of them: whoever they were for is gone."""
        for stream in list(self._attempts):
            self.ended(stream)
        for connection in list(self._open.values()):
            connection.close()

    def _add(self, sock: socket.socket, stream: int) -> None:
        """Pump a connected socket."""
        bridge = self._bridge

        def ended() -> None:
            del self._open[stream]
            bridge.sources.pop(stream, None)
            bridge.sinks.pop(stream + 1, None)

        made = Connection(
            bridge.loop, bridge.link, sock.detach(), reads=stream, writes=stream + 1, ended=ended
        )
        self._open[stream] = made
        bridge.sources[stream], bridge.sinks[stream + 1] = made.source, made.sink


class _Attempt:
    """One request: each address in turn, until one answers; ``done`` gets a socket or an error, once."""

    def __init__(
        self,
        bridge: Bridge,
        port: int,
        done: Callable[[socket.socket | None, Message | None], None],
    ) -> None:
        self._bridge = bridge
        self._port = port
        self._done = done
        self._left = list(_LOOPBACK)
        self._first = 0
        self._sock: socket.socket | None = None

    def next(self) -> None:
        """Try the next address; without one the first failure is the answer."""
        while self._left:
            family, host = self._left.pop(0)
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
            except OSError as error:
                self._first = self._first or error.errno or 0
                continue
            sock.setblocking(False)
            number = sock.connect_ex((host, self._port))
            if number == 0:
                self._done(sock, None)
                return
            if number == errno.EINPROGRESS:
                self._wait_for(sock)
                return
            sock.close()
            self._first = self._first or number
        said = f"connect: {os.strerror(self._first)}"
        self._done(None, {"kind": "BackendError", "message": said, "errno": self._first})

    def give_up(self) -> None:
        """Nobody waits any more."""
        self._left.clear()
        self._drop()

    def _wait_for(self, sock: socket.socket) -> None:
        self._sock = sock
        self._bridge.loop.add(sock.fileno(), lambda _events: self._settled(), select.EPOLLOUT)
        self._bridge.after(_CONNECTS_S, lambda: self._too_late(sock))

    def _settled(self) -> None:
        sock, self._sock = self._sock, None
        assert sock is not None
        self._bridge.loop.drop(sock.fileno())
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number == 0:
            self._done(sock, None)
            return
        sock.close()
        self._first = self._first or number
        self.next()

    def _too_late(self, sock: socket.socket) -> None:
        if self._sock is sock:
            self._drop()
            self._first = self._first or errno.ETIMEDOUT
            self.next()

    def _drop(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            self._bridge.loop.drop(sock.fileno())
            sock.close()
