"""Input of a container: attached clients' pipes on one side, its stdin or terminal on the other."""

from __future__ import annotations

import os
import select
from collections.abc import Callable

from polypod.supervisor.server import Loop

_READ_BYTES = 64 * 1024


class Stdin:
    """Copies from any number of clients; what the container does not read stays with the client."""

    __slots__ = ("_loop", "_on_closed", "_once", "_pending", "clients", "target")

    def __init__(
        self, loop: Loop, target: int, *, once: bool, on_closed: Callable[[], None]
    ) -> None:
        """Take the descriptor.

        Args:
            loop: where to wait.
            target: write end of the stdin pipe, or a duplicate of the pty's master; non-blocking.
            once: close it after a client has gone (``stdin_once``).
            on_closed: called when the target is closed by this class.
        """
        os.set_blocking(target, False)
        self._loop = loop
        self._once = once
        self._on_closed = on_closed
        self._pending = b""
        self.target = target
        self.clients: list[int] = []

    def attach(self) -> int:
        """Add a client; return the write end that it writes to."""
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read_end, False)
        self.clients.append(read_end)
        if not self._pending:
            self._listen(read_end)
        return write_end

    def close(self) -> None:
        """Close everything."""
        for client in self.clients:
            self._loop.drop(client)
            os.close(client)
        self.clients.clear()
        self._close_target()

    def _listen(self, client: int) -> None:
        self._loop.add(client, lambda _events: self._read(client))

    def _read(self, client: int) -> None:
        try:
            data = os.read(client, _READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self._pending = data
            self._write()
            return
        self._loop.drop(client)
        self.clients.remove(client)
        os.close(client)
        if self._once:
            self.close()
            self._on_closed()

    def _write(self) -> None:
        try:
            done = os.write(self.target, self._pending)
        except BlockingIOError:
            done = 0
        except OSError:
            # Nobody reads any more: the clients learn it by EPIPE.
            self.close()
            self._on_closed()
            return
        self._pending = self._pending[done:]
        self._wait_for_room() if self._pending else self._go_on()

    def _wait_for_room(self) -> None:
        if self.target in self._loop.callbacks:
            return
        for client in self.clients:
            self._loop.drop(client)
        self._loop.add(self.target, lambda _events: self._write(), select.EPOLLOUT)

    def _go_on(self) -> None:
        if self.target not in self._loop.callbacks:
            return
        self._loop.drop(self.target)
        for client in self.clients:
            self._listen(client)

    def _close_target(self) -> None:
        if self.target >= 0:
            self._loop.drop(self.target)
            os.close(self.target)
            self.target = -1
