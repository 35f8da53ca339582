"""What a launch takes along: descriptors, numbered as its plan names them.

::

    with Descriptors() as descriptors:
        sources = Sources(root=descriptors.take(open_rootfs(spec.rootfs)), ...)
        await supervisor.launch(process_id, compile_container(config, sources), fds=descriptors.fds)
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Final

from polypod.plugin.errors import ResourceExhausted
from polypod.plugin.services import Stdio
from polypod.spec.compile import Streams

MAX_DESCRIPTORS: Final = 190
"""Below the 200 that travel in one message."""


class Descriptors:
    """The descriptors of one launch, in the order in which plans name them; closed together."""

    def __init__(self) -> None:
        self.fds: list[int] = []
        self._owned: list[int] = []

    def __enter__(self) -> Descriptors:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def take(self, fd: int) -> str:
        """Add a descriptor that is closed with the others; return its source."""
        self._owned.append(fd)
        return self.lend(fd)

    def lend(self, fd: int) -> str:
        """Add a descriptor that stays somebody else's; return its source."""
        if len(self.fds) >= MAX_DESCRIPTORS:
            raise ResourceExhausted(
                f"a launch takes at most {MAX_DESCRIPTORS} descriptors: use fewer mounts"
            )
        self.fds.append(fd)
        return f"fd:{len(self.fds) - 1}"

    def streams(self, stdio: Stdio) -> Streams:
        """Add a process' ends of its streams, which stay the logger's."""

        def lent(fd: int | None) -> str:
            return "" if fd is None else self.lend(fd)

        return Streams(
            lent(stdio.stdin), lent(stdio.stdout), lent(stdio.stderr), lent(stdio.console)
        )

    def close(self) -> None:
        """Close what was taken. Idempotent."""
        while self._owned:
            os.close(self._owned.pop())
