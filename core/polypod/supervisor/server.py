"""The loop that keeper, supervisor and logger share: one thread, one epoll, a listening socket."""

from __future__ import annotations

import os
import select
import socket

from polypod.plan import channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Message = dict[str, Any]


class Refusal(Exception):
    """A request that is answered with an error: ``kind`` is a class name of polypod.plugin.errors."""

    def __init__(self, kind: str, text: str, number: int = 0) -> None:
        super().__init__(text)
        self.kind = kind
        self.number = number


class Peer:
    """One connection."""

    __slots__ = ("sock", "watching")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.watching = False

    def push(self, message: Message, fds: list[int] | tuple[int, ...] = ()) -> bool:
        """Send without ever waiting; False if the peer is gone or does not read."""
        try:
            channel.send(self.sock, message, fds)
        except OSError:
            return False
        return True


class Loop:
    """Callbacks by descriptor, and requests from connected peers.

    A subclass or owner sets ``handler(peer, message, fds)``, which returns the answer's dict (and
    descriptors to send), or None to answer later by `answer`.
    """

    def __init__(self, handler) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        self.epoll = select.epoll()
        self.callbacks: dict[int, object] = {}
        self.peers: dict[int, Peer] = {}
        self.handler = handler
        self.leaving = False
        self.timeout: float = -1

    def add(self, fd: int, callback, events: int = select.EPOLLIN) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        """Call ``callback(events)`` when the descriptor is ready."""
        self.callbacks[fd] = callback
        self.epoll.register(fd, events)

    def drop(self, fd: int) -> None:
        """Stop watching a descriptor."""
        if self.callbacks.pop(fd, None) is not None:
            self.epoll.unregister(fd)

    def listen(self, path: str) -> socket.socket:
        """Accept peers on a path."""
        sock = channel.listen(path)
        self.add(sock.fileno(), lambda _events: self._accept(sock))
        return sock

    def add_peer(self, sock: socket.socket) -> Peer:
        """Serve requests that come over a connected socket."""
        peer = Peer(sock)
        sock.setblocking(False)
        self.peers[sock.fileno()] = peer
        self.add(sock.fileno(), lambda _events: self.read_peer(peer))
        return peer

    def run(self) -> None:
        """Serve until ``leaving``."""
        while not self.leaving:
            self.step()

    def step(self) -> None:
        """Wait once and call what is ready."""
        for fd, events in self.epoll.poll(self.timeout):
            callback = self.callbacks.get(fd)
            if callback is not None:
                callback(events)  # type: ignore[operator]

    def read_peer(self, peer: Peer) -> None:
        """Handle every message that waits on a connection."""
        while True:
            try:
                received = channel.receive(peer.sock)
            except BlockingIOError:
                return
            except (OSError, channel.ChannelError):
                received = None
            if received is None:
                self._lose(peer)
                return
            self._serve(peer, *received)

    def read_all_peers(self) -> None:
        """Handle every message that waits on any connection."""
        for peer in list(self.peers.values()):
            self.read_peer(peer)

    def answer(self, peer: Peer, number: object, ok: Message, fds: list[int]) -> None:
        """Send an answer; a peer that left does not get one. Closes the descriptors."""
        peer.push({"id": number, "ok": ok}, fds)
        channel.close_all(fds)

    def refuse(self, peer: Peer, number: object, error: Exception) -> None:
        """Send an error."""
        kind = getattr(error, "kind", "BackendError")
        errno = getattr(error, "number", 0) or getattr(error, "errno", 0) or 0
        text = str(error) if not isinstance(error, OSError) else (error.strerror or str(error))
        peer.push({"id": number, "error": {"kind": kind, "message": text[:4000], "errno": errno}})

    def _serve(self, peer: Peer, message: Message, fds: list[int]) -> None:
        number = message.get("id")
        try:
            result = self.handler(peer, message, fds)
        except Exception as error:
            channel.close_all(fds)
            self.refuse(peer, number, error)
            return
        if result is not None and number is not None:
            ok, answer_fds = result
            peer.push({"id": number, "ok": ok}, answer_fds)

    def _accept(self, sock: socket.socket) -> None:
        try:
            connection, _address = sock.accept()
        except OSError:
            return
        try:
            channel.check_peer(connection)
        except channel.ChannelError:
            connection.close()
            return
        self.add_peer(connection)

    def _lose(self, peer: Peer) -> None:
        fd = peer.sock.fileno()
        self.drop(fd)
        self.peers.pop(fd, None)
        peer.sock.close()
        self.lost(peer)

    def lost(self, peer: Peer) -> None:
        """Called when a peer has left; for owners to replace."""


def text(message: Message, key: str) -> str:
    """Return a string of a request, or refuse."""
    value = message.get(key)
    if not isinstance(value, str) or not value:
        raise Refusal("InvalidArgument", f"{message.get('op')}: {key} must be a string")
    return value


def identifier(message: Message, key: str) -> str:
    """Return an id that is safe as a file name, or refuse."""
    value = text(message, key)
    if (
        len(value) > 128
        or value in (".", "..")
        or not all(c.isalnum() or c in "_.-" for c in value)
    ):
        raise Refusal("InvalidArgument", f"{message.get('op')}: {key} {value!r} is not an id")
    return value


def close_on_exec_pipe() -> tuple[int, int]:
    """Return a pipe's (read end, write end)."""
    return os.pipe2(os.O_CLOEXEC)
