"""The loop that keeper, supervisor and logger share: one thread, one epoll, a listening socket."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
from functools import partial

from polypod.plan import channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Message = dict[str, Any]
    Answer = tuple[Message, list[int]]

_QUEUE_MAX = 1000
"""Messages that wait for a peer which does not read; one more and the connection is given up."""


class Refusal(Exception):
    """A request that is answered with an error: ``kind`` is a class name of polypod.plugin.errors."""

    def __init__(self, kind: str, text: str, number: int = 0) -> None:
        super().__init__(text)
        self.kind = kind
        self.number = number


class Peer:
    """One connection. ``watching`` and ``follows`` are the keeper's notes on it."""

    __slots__ = ("_loop", "_queue", "follows", "sock", "watching")

    def __init__(self, sock: socket.socket, loop: Loop) -> None:
        self.sock = sock
        self.watching = False
        self.follows: tuple[str, ...] = ()
        self._loop = loop
        self._queue: list[tuple[Message, list[int]]] = []

    def push(self, message: Message, fds: list[int] | tuple[int, ...] = ()) -> None:
        """Send without ever waiting; what does not fit now goes when there is room.

        A peer that is gone gets nothing; one that does not read for long is given up, so that it
        connects again and asks for what it missed.
        """
        if self.sock.fileno() < 0:
            return
        if self._queue:
            self._wait_in_line(message, fds)
            return
        try:
            channel.send(self.sock, message, fds)
        except BlockingIOError:
            self._wait_in_line(message, fds)
        except OSError:
            # Its reading side tells the loop that it left. One that is still there shall not wait for ever.
            self._loop.shut(self)

    def _wait_in_line(self, message: Message, fds: list[int] | tuple[int, ...]) -> None:
        if len(self._queue) >= _QUEUE_MAX:
            note(f"a peer has not read {_QUEUE_MAX} messages: connection given up")
            self.drop_queue()
            self._loop.shut(self)
            return
        self._queue.append((message, [os.dup(fd) for fd in fds]))
        self._loop.epoll.modify(self.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def flush(self) -> None:
        """Send what waits, as far as there is room."""
        while self._queue:
            message, fds = self._queue[0]
            try:
                channel.send(self.sock, message, fds)
            except BlockingIOError:
                return
            except OSError:
                self.drop_queue()
                self._loop.shut(self)
                return
            channel.close_all(fds)
            del self._queue[0]
        self._loop.epoll.modify(self.sock.fileno(), select.EPOLLIN)

    def drop_queue(self) -> None:
        """Forget what waits."""
        for _message, fds in self._queue:
            channel.close_all(fds)
        self._queue.clear()


class Loop:
    """Callbacks by descriptor, and requests from connected peers.

    ``handler(peer, message, fds)`` returns the answer's dict and descriptors to send, or None to
    answer later by `answer`. Descriptors that it keeps it takes out of ``fds``, or clears the list.
    """

    def __init__(self, handler: Callable[[Peer, Message, list[int]], Answer | None]) -> None:
        self.epoll = select.epoll()
        self.callbacks: dict[int, Callable[[int], None]] = {}
        self.peers: dict[int, Peer] = {}
        self.handler = handler
        self.leaving = False
        self.timeout: float = -1

    def add(self, fd: int, callback: Callable[[int], None], events: int = select.EPOLLIN) -> None:
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
        self.accept_from(sock)
        return sock

    def accept_from(self, sock: socket.socket) -> None:
        """Accept peers on a listening socket."""
        sock.setblocking(False)
        self.add(sock.fileno(), partial(self._ready_to_accept, sock))

    def add_peer(self, sock: socket.socket) -> Peer:
        """Serve requests that come over a connected socket."""
        peer = Peer(sock, self)
        sock.setblocking(False)
        self.peers[sock.fileno()] = peer
        self.add(sock.fileno(), lambda events: self._ready(peer, events))
        return peer

    def step(self) -> None:
        """Wait once and call what is ready."""
        for fd, events in self.epoll.poll(self.timeout):
            callback = self.callbacks.get(fd)
            if callback is not None:
                callback(events)

    def read_peer(self, peer: Peer) -> None:
        """Handle every message that waits on a connection."""
        while peer.sock.fileno() >= 0 and self._read_one(peer):
            continue

    def _read_one(self, peer: Peer) -> bool:
        """Handle the next message of a connection, if there is one."""
        try:
            received = channel.receive(peer.sock)
        except BlockingIOError:
            return False
        except channel.ChannelError as error:
            note(f"a peer sent what is not a message: {error}")
            received = None
        except OSError:
            received = None
        if received is None:
            self._lose(peer)
            return False
        self._serve(peer, *received)
        return True

    def read_all_peers(self) -> None:
        """Handle every message that waits on any connection."""
        for peer in list(self.peers.values()):
            self.read_peer(peer)

    def close_up(self, listener: socket.socket) -> None:
        """Take no more requests, and handle those that were sent: nobody shall wonder about his own."""
        while self._accept(listener):
            continue
        listener.close()
        for peer in list(self.peers.values()):
            # Whoever sends now is told that it did not arrive; what has arrived is still read.
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_RD)
            self.read_peer(peer)

    def answer(self, peer: Peer, number: object, ok: Message, fds: list[int]) -> None:
        """Send an answer; a peer that left does not get one. Closes the descriptors."""
        peer.push({"id": number, "ok": ok}, fds)
        channel.close_all(fds)

    def refuse(self, peer: Peer, number: object, error: Exception) -> None:
        """Send an error."""
        kind = getattr(error, "kind", "BackendError")
        errno = getattr(error, "number", 0) or getattr(error, "errno", 0) or 0
        if not isinstance(error, OSError):
            said = str(error)
        else:
            said = error.strerror or str(error)
        peer.push({"id": number, "error": {"kind": kind, "message": said[:4000], "errno": errno}})

    def shut(self, peer: Peer) -> None:
        """Give a connection up; its end is seen by the next step."""
        try:
            peer.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def _ready(self, peer: Peer, events: int) -> None:
        if events & select.EPOLLOUT:
            peer.flush()
        if events & ~select.EPOLLOUT:
            # Nearly always there is one; of more the next step tells.
            self._read_one(peer)

    def _serve(self, peer: Peer, message: Message, fds: list[int]) -> None:
        number = message.get("id")
        try:
            result = self.handler(peer, message, fds)
        except Exception as error:
            channel.close_all(fds)
            if number is not None:
                self.refuse(peer, number, error)
            else:
                note(f"{message.get('op')}: {error}")
            return
        if result is not None and number is not None:
            ok, answer_fds = result
            peer.push({"id": number, "ok": ok}, answer_fds)

    def _ready_to_accept(self, sock: socket.socket, _events: int) -> None:
        self._accept(sock)

    def _accept(self, sock: socket.socket) -> bool:
        try:
            connection, _address = sock.accept()
        except OSError:
            return False
        try:
            channel.check_peer(connection)
        except channel.ChannelError as error:
            note(str(error))
            connection.close()
        else:
            self.add_peer(connection)
        return True

    def _lose(self, peer: Peer) -> None:
        fd = peer.sock.fileno()
        self.drop(fd)
        self.peers.pop(fd, None)
        peer.drop_queue()
        peer.sock.close()


def note(line: str) -> None:
    """Write a line to our log."""
    sys.stderr.write(f"{line}\n")


def text(message: Message, key: str) -> str:
    """Return a string of a request, or refuse."""
    value = message.get(key)
    if not isinstance(value, str) or not value:
        raise Refusal("InvalidArgument", f"{message.get('op')}: {key} must be a string")
    return value


def identifier(message: Message, key: str) -> str:
    """Return an id that is safe as a file name, or refuse."""
    value = text(message, key)
    if len(value) > 128 or not is_identifier(value):
        raise Refusal("InvalidArgument", f"{message.get('op')}: {key} {value!r} is not an id")
    return value


def is_identifier(value: str) -> bool:
    """Tell whether a text is safe as a file name."""
    if value.startswith("."):
        return False
    return value.isascii() and all(char.isalnum() or char in "_.-" for char in value)


def strings(message: Message, key: str) -> list[str]:
    """Return a list of strings of a request, or refuse."""
    value = message.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Refusal("InvalidArgument", f"{message.get('op')}: {key} must be a list of strings")
    return value


def mapping(message: Message, key: str) -> dict[str, str]:
    """Return an object of strings of a request, or refuse."""
    value = message.get(key) or {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise Refusal("InvalidArgument", f"{message.get('op')}: {key} must map strings to strings")
    return value


def page(items: list[str], message: Message, size: int) -> tuple[list[str], bool]:
    """Return the items after the one that the request names, at most so many; and whether more follow."""
    after = str(message.get("after") or "")
    rest = [item for item in items if item > after]
    return rest[:size], len(rest) > size
