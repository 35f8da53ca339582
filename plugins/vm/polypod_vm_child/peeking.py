"""Standard input on the host: a pipe that is looked into, and consumed when the guest has written it.

A relay that is killed has lost nothing then: what is not known to be written still stands in the pipe.
"""

from __future__ import annotations

import os
import select
import stat

from polypod.supervisor.logger_sources import PipeSource, Scratch
from polypod_vm_child.frames import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from polypod.supervisor.server import Loop
    from polypod_vm_child.frames import Link

_EDGES = select.EPOLLIN | select.EPOLLET
"""What was looked at stays in the pipe: only what is new may wake us."""


def is_pipe(fd: int) -> bool:
    """Tell whether a descriptor can be looked into."""
    return stat.S_ISFIFO(os.fstat(fd).st_mode)


class PeekingSource:
    """Like `polypod_vm_child.streams.Source`, for a pipe. Takes the descriptor.

    Nothing is sent before `resume_at`. Of what the pipe holds at most as much is under way as one look
    shows (64 KiB), which is less than the window.
    """

    def __init__(
        self,
        loop: Loop,
        link: Link,
        stream: int,
        fd: int,
        scratch: Scratch,
        *,
        consumed: int,
        note: Callable[[int], None],
    ) -> None:
        """``consumed`` is what was taken out of the pipe before; ``note`` is told what will be, in all."""
        self.fd = fd
        self.stream = stream
        self.sent = consumed
        self.acked = consumed
        self.on_close: Callable[[], None] | None = None
        self._loop = loop
        self._link = link
        self._note = note
        self._live = False
        self._source = PipeSource(fd, scratch)
        loop.add(fd, lambda _events: self._pump(), _EDGES)

    def resume_at(self, total: int) -> None:
        """So much has arrived in the guest: go on behind it.

        Raises:
            ProtocolError: that cannot be.
        """
        if total < self.acked or total - self.acked > self._source.pending():
            text = f"stream {self.stream}: {total} bytes arrived, {self.acked} were written"
            raise ProtocolError(text)
        self.sent = total
        self._live = True
        self._pump()

    def granted(self, total: int) -> None:
        """The guest has written so much.

        Raises:
            ProtocolError: that cannot be.
        """
        if self.fd < 0:
            return
        if not self.acked <= total <= self.sent:
            text = f"stream {self.stream}: {total} bytes written of {self.acked} to {self.sent}"
            raise ProtocolError(text)
        count, self.acked = total - self.acked, total
        # Noted first: killed in between, we repeat and do not lose.
        self._note(total)
        self._source.consume(count)
        self._pump()

    def resume(self) -> None:
        """The channel takes bytes again."""
        self._pump()

    def close(self) -> None:
        """Stop reading; says nothing to the other side."""
        if self.fd < 0:
            return
        self._loop.drop(self.fd)
        os.close(self.fd)
        self.fd = -1
        if self.on_close is not None:
            self.on_close()

    def _pump(self) -> None:
        if not self._live or self.fd < 0 or self._link.is_full():
            return
        data = self._source.peek()
        if data is None:
            self._link.send_end(self.stream)
            self.close()
            return
        fresh = data[self.sent - self.acked :]
        if fresh:
            self.sent += len(fresh)
            self._link.send_data(self.stream, fresh)
