"""One stream of output: look, write to the log, tell the attached, and only then consume."""

from __future__ import annotations

import os
import time

from polypod.supervisor import logger_format
from polypod.supervisor.logger_file import LogFile
from polypod.supervisor.logger_sources import PipeSource, PtySource


class Stream:
    """Stdout or stderr of a container, or its terminal.

    A line whose end has not come yet stays where it is (`held`) for a few milliseconds, so that text
    and line end written separately make one entry; then it is logged as a part (`torn`).
    """

    __slots__ = (
        "dropped",
        "error",
        "fans",
        "forwarded",
        "held",
        "log",
        "name",
        "next_log",
        "open",
        "source",
        "torn",
    )

    def __init__(self, name: str, source: PipeSource | PtySource, log: LogFile) -> None:
        self.name = name.encode()
        self.source = source
        self.log = log
        self.next_log: LogFile | None = None
        self.open = True
        self.held = False
        self.torn = False
        self.forwarded = 0
        self.fans: list[int] = []
        self.dropped = 0
        self.error = 0

    def pump(self, *, flush: bool = False, final: bool = False) -> int:
        """Handle one read; return how many bytes were taken.

        Args:
            flush: log the beginning of a line, too; its end is late.
            final: nobody writes any more: the last line is whole as it is.
        """
        data = self.source.peek()
        if data is None:
            self.end()
            return 0
        if not data:
            return 0
        self._forward(data)
        count = self._count(data, flush=flush, final=final)
        self.held = count == 0
        if count:
            # A longer rest is a line of which more may come than one read shows.
            last = final and count == len(data) < logger_format.PART_BYTES
            self.torn = not last and data[count - 1] != 10
            self.write(data[:count], final=last)
            self.source.consume(count)
            self.forwarded -= count
            if not self.torn:
                self.switch()
        return count

    def _count(self, data: bytes, *, flush: bool, final: bool) -> int:
        if flush:
            return len(data)
        count = logger_format.takeable(data)
        # Once a part is out there is nothing to gain by waiting for the end of the line.
        if count == 0 and (self.torn or final):
            return len(data)
        return count

    def drain(self) -> None:
        """Take what stands in the source now; whoever goes on writing is not waited for."""
        pending = self.source.pending()
        while self.open:
            taken = self.pump(final=True)
            pending -= taken
            if taken == 0 or pending <= 0:
                return

    def write(self, data: bytes, *, final: bool = False) -> None:
        """Log bytes; what the disk does not take is counted, and told when it takes data again."""
        stamp = logger_format.timestamp(time.time_ns())
        text = logger_format.entries(data, self.name, stamp, final=final)
        note = b""
        if self.dropped:
            reason = os.strerror(self.error).encode()
            note = b"%b %b F [polypod: %d log entries lost here: %b]\n" % (
                stamp,
                self.name,
                self.dropped,
                reason,
            )
        kept, error = self.log.append(note + text)
        if kept >= len(note):
            self.dropped = 0
        if error:
            self.error = error
            self.dropped += text.count(b"\n", max(0, kept - len(note)))

    def note(self, text: str) -> None:
        """Log a sentence of ours."""
        self.write(f"[polypod: {text}]\n".encode())

    def switch(self) -> None:
        """Go over to the file of a reopen."""
        if self.next_log is not None:
            self.log, self.next_log = self.next_log, None

    def end(self) -> None:
        """The end of the stream: finish the last line, tell the attached."""
        self.open = False
        self.held = False
        if self.torn:
            self.torn = False
            stamp = logger_format.timestamp(time.time_ns())
            self.log.append(b"%b %b F \n" % (stamp, self.name))
        self.switch()
        for fd in self.fans:
            os.close(fd)
        self.fans.clear()

    def _forward(self, data: bytes) -> None:
        fresh = data[self.forwarded :]
        self.forwarded = len(data)
        if not fresh:
            return
        for fd in self.fans:
            try:
                os.write(fd, fresh)
            except OSError:
                # Full: a slow reader loses output, the container never waits. Gone: epoll tells.
                continue
