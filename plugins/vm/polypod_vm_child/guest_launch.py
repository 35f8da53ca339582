"""From a plan as the host compiled it to one with descriptors of this guest."""

from __future__ import annotations

import os
import socket

from polypod.plan.channel import close_all
from polypod.plan.operations import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_ONE = ("source", "stdin", "stdout", "stderr", "console", "pidfd")
_OUTPUTS = ("stdout", "stderr")


class Refused(Exception):
    """A request that cannot be done; ``kind`` is a class name of polypod.plugin.errors."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Opened:
    """What was opened for one launch, by source; all of it is closed with it."""

    def __init__(self) -> None:
        self.fds: list[int] = []
        self._names: dict[str, int] = {}
        self._owned: list[int] = []

    def add(self, source: str, fd: int) -> None:
        """Take a descriptor under the name that plans use for it."""
        self._owned.append(fd)
        self._names[source] = fd

    def index(self, source: str, otherwise: Callable[[str], int]) -> str:
        """Return ``fd:N`` for a source; N counts the descriptors that go with the launch."""
        if source == "":
            return source
        fd = self._names[source] if source in self._names else otherwise(source)
        if fd not in self.fds:
            self.fds.append(fd)
        return f"fd:{self.fds.index(fd)}"

    def close(self) -> None:
        """Close what was taken; the launch has duplicates. Idempotent."""
        close_all(self._owned)


def resolve(plan: Plan, opened: Opened, otherwise: Callable[[str], int]) -> Plan:
    """Replace each source by a descriptor of this guest, in place.

    Args:
        plan: as it came; sources are ``disk:SERIAL``, ``bind:N``, ``stream:NAME``, ``sandbox:KIND`` …
        opened: what was opened for this launch.
        otherwise: returns a descriptor for every other source, or raises.
    """
    for operation in plan.operations:
        for slot in operation.__slots__:
            if slot in _ONE:
                setattr(operation, slot, opened.index(getattr(operation, slot), otherwise))
            elif slot == "sources":
                found = [opened.index(each, otherwise) for each in getattr(operation, slot)]
                setattr(operation, slot, found)
            elif slot == "items":
                pairs = getattr(operation, slot)
                found = [[kind, opened.index(source, otherwise)] for kind, source in pairs]  # type: ignore[misc]
                setattr(operation, slot, found)
    plan.pid_namespace = opened.index(plan.pid_namespace, otherwise)
    return plan


def open_streams(wanted: dict[str, Any], opened: Opened) -> list[tuple[int, str, int]]:
    """Make pipes (or a console's socket pair) for the streams that the host wants.

    Returns:
        (stream id, ``in``, ``out`` or ``console``, our end) of each.
    """
    ours: list[tuple[int, str, int]] = []
    for name, stream in wanted.items():
        if name == "console":
            mine, theirs = socket.socketpair()
            opened.add("stream:console", theirs.detach())
            ours.append((int(stream), "console", mine.detach()))
            continue
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        is_output = name in _OUTPUTS
        opened.add(f"stream:{name}", write_end if is_output else read_end)
        ours.append(
            (int(stream), "out" if is_output else "in", read_end if is_output else write_end)
        )
    return ours
