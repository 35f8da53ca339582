"""One TCP connection of a port-forward on either side of the channel: a socket, a stream each way.

Each direction ends by itself: the end of what is read goes over as the end of its stream, and becomes a
half-close there. When both have ended, the socket is closed and nothing is left.
"""

from __future__ import annotations

import os

from polypod_vm_child.streams import Sink, Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from polypod.supervisor.server import Loop
    from polypod_vm_child.frames import Link

NAME = "connection"
"""What a request calls the stream; it takes two numbers: from the guest, and the next one to the guest."""


class Connection:
    """Takes the descriptor of a connected stream socket; ``ended`` is called once, when all is closed."""

    def __init__(
        self, loop: Loop, link: Link, fd: int, *, reads: int, writes: int, ended: Callable[[], None]
    ) -> None:
        self.source = Source(loop, link, reads, os.dup(fd))
        self.sink = Sink(loop, link, writes, os.dup(fd), half_close=True)
        self._loop = loop
        self._link = link
        self._fd = fd
        self._ended = ended
        self.source.on_close = self._read_all
        self.sink.on_close = self._settle

    def close(self) -> None:
        """Close both directions at once."""
        self.source.close()
        self.sink.close()

    def _read_all(self) -> None:
        """Nothing more comes from here; one who is gone altogether also reads nothing more."""
        if self.sink.fd >= 0 and self._fd >= 0:
            # Without any event asked for: a hang-up is always told.
            self._loop.add(self._fd, self._hung_up, 0)
        self._settle()

    def _hung_up(self, _events: int) -> None:
        self._loop.drop(self._fd)
        self._link.send_end(self.sink.stream)
        self.sink.close()

    def _settle(self) -> None:
        if self.source.fd >= 0 or self.sink.fd >= 0 or self._fd < 0:
            return
        self._loop.drop(self._fd)
        os.close(self._fd)
        self._fd = -1
        self._ended()
