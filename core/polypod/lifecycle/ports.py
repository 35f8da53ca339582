"""What lifecycle needs of the processes beside the daemon, as Protocols: the real ones are in
``polypod.processes``, the fakes in ``polypod.testing``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from polypod.plugin.ids import ContainerId
from polypod.plugin.services import Stdio


class Captured(Protocol):
    """The output of one exec, read by the daemon itself: it dies with the call that asked for it."""

    stdio: Stdio
    """Hand it to the backend, then call `started`."""

    def started(self) -> None:
        """Close our copies of the process' ends."""
        ...

    async def collect(self) -> tuple[bytes, bytes]:
        """Return stdout and stderr as far as they were written when the exec ended.

        Reads until nothing is pending; never waits for a background child that keeps the pipe.
        """
        ...

    def close(self) -> None:
        """Close everything. Idempotent."""
        ...


class Logs(Protocol):
    """Standard streams of containers: made here, pumped by the logger, held by the keeper."""

    async def open(
        self,
        container_id: ContainerId,
        log_path: Path,
        /,
        *,
        base: Path,
        tty: bool,
        stdin: bool,
        stdin_once: bool,
    ) -> Stdio:
        """Make the streams of a container and its log file; both survive this daemon at once.

        Args:
            container_id: whose.
            log_path: absolute, below ``base``.
            base: the directory that must not be left: no link below it is followed (A7).
            tty: one pty instead of pipes; the answer has ``console`` alone.
            stdin: keep a stdin.
            stdin_once: close it after the first attached client is gone.

        Raises:
            InvalidArgument: the path leads out of ``base`` or through a link.
        """
        ...

    async def reopen(self, container_id: ContainerId, log_path: Path, /, *, base: Path) -> None:
        """Write to a fresh file from the next line on. NotFound if the container has no streams."""
        ...

    async def drained(self, container_id: ContainerId, /) -> None:
        """Return when all that the ended container wrote is in the log; bounded, never raises."""
        ...

    async def close(self, container_id: ContainerId, /) -> None:
        """Forget the streams. Unknown ids succeed."""
        ...

    def capture(self, *, limit_bytes: int) -> Captured:
        """Make the streams of an exec whose output is wanted in memory."""
        ...
