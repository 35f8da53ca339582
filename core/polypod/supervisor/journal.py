"""Where the processes beside the daemon write what they have to say: ``STATE/processes.log``.

The daemon's own stderr may be gone long before they are. The file is bounded: a full one becomes
``processes.log.1`` and a new one is begun.
"""

from __future__ import annotations

import os
import sys
import time

NAME = "processes.log"
_LIMIT = 1024 * 1024
_STDOUT, _STDERR = 1, 2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO, cast


class Journal:
    """What takes the place of ``sys.stderr``: whole lines, with time and role."""

    def __init__(self, role: str, directory: int) -> None:
        """Append to the file in a directory, which is given by descriptor and kept."""
        self._directory = directory
        self._prefix = f"{role}[{os.getpid()}]"
        self._open()

    def write(self, text: str) -> int:
        """Write lines; a disk that does not take them is none of our callers' concern."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        lines = [f"{stamp} {self._prefix} {line}\n" for line in text.splitlines() if line]
        try:
            if os.fstat(_STDERR).st_size > _LIMIT:
                self._turn_over()
            os.write(_STDERR, "".join(lines).encode(errors="replace"))
        except OSError:
            return len(text)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        fresh = os.open(NAME, flags, 0o600, dir_fd=self._directory)
        # Both, so that what C code says arrives there, too.
        os.dup2(fresh, _STDOUT)
        os.dup2(fresh, _STDERR)
        os.close(fresh)

    def _turn_over(self) -> None:
        """Begin a new file, unless one of the other two has just done so."""
        ours, current = os.fstat(_STDERR), os.stat(NAME, dir_fd=self._directory)
        if os.path.samestat(ours, current):
            os.rename(NAME, f"{NAME}.1", src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self._open()


def use(role: str, directory: int) -> None:
    """Send everything that this process says to the file; read nothing from where we come from."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.close(null)
    journal = Journal(role, directory)
    sys.stderr = sys.stdout = cast("TextIO", journal) if TYPE_CHECKING else journal
