"""A launched process in the guest, and the telling of its end."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from polypod_vm_child.streams import Source

    Message = dict[str, Any]


class Process:
    """One launched process: a container's first one, or an exec."""

    __slots__ = (
        "cgroup",
        "early_exit",
        "exit",
        "group",
        "kind",
        "oom",
        "own_pids",
        "pid",
        "pidfd",
        "started",
        "streams",
        "terminal",
    )

    def __init__(self, kind: str, cgroup: str, *, own_pids: bool) -> None:
        self.kind = kind
        self.cgroup = cgroup
        self.own_pids = own_pids
        self.pid = 0
        self.pidfd = -1
        self.started = False
        self.streams: list[int] = []
        self.terminal = False
        self.exit: Message | None = None
        self.early_exit: Message | None = None
        """It ended before the supervisor had answered its launch."""
        self.oom = False

    def describe(self) -> Message:
        """Return what a new daemon has to know."""
        return {
            "kind": self.kind,
            "pid": self.pid,
            "started": self.started,
            "exit": self.exit,
            "oom": self.oom,
        }


class Farewell:
    """Calls once: when everything that stood in some streams was sent, or when it is told to wait no longer."""

    def __init__(self, sources: list[Source], tell: Callable[[], None]) -> None:
        self._tell: Callable[[], None] | None = tell
        self._left = len(sources)
        for source in sources:
            source.when_sent(self._sent)
        if not sources:
            self.now()

    def now(self) -> None:
        """Tell it, unless that was done."""
        tell, self._tell = self._tell, None
        if tell is not None:
            tell()

    def _sent(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.now()
