"""The file end of a log: whole lines or nothing, whatever the disk says.

Only descriptors arrive here; the daemon opens the files.
"""

from __future__ import annotations

import os

_REPAIR_BYTES = 256 * 1024
"""More than the entries of one read of 64 KiB usually take."""


class LogFile:
    """A log file opened for reading, and for appending by us alone."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def append(self, text: bytes) -> tuple[int, int]:
        """Write entries; return (bytes that are in the file, errno or 0).

        When the disk is full a torn last line is taken back, so that the next entry starts a line.
        """
        done = 0
        try:
            done = os.write(self.fd, text)
            while done < len(text):
                done += os.write(self.fd, text[done:])
        except OSError as error:
            return self._take_back(text, done), error.errno or 0
        return done, 0

    def _take_back(self, text: bytes, done: int) -> int:
        kept = text.rfind(b"\n", 0, done) + 1
        try:
            if kept < done:
                os.ftruncate(self.fd, os.fstat(self.fd).st_size - (done - kept))
        except OSError:
            return done
        return kept

    def repair(self) -> None:
        """Take back a torn last line, left by a logger that was killed while it wrote.

        What stood in it was not consumed from its pipe yet and comes again.
        """
        try:
            size = os.fstat(self.fd).st_size
            start = max(0, size - _REPAIR_BYTES)
            tail = os.pread(self.fd, size - start, start)
            end = tail.rfind(b"\n") + 1
            if tail and end < len(tail) and (end or start == 0):
                os.ftruncate(self.fd, start + end)
        except OSError:
            # A disk that cannot be read now is reported by the next `append`.
            return

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)
