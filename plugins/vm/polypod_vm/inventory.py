"""What the backend knows of its containers, and how it reads what guests tell of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from polypod.plugin import (
    BackendState,
    BackendStatus,
    ContainerId,
    ContainerUsage,
    ExitStatus,
    NamespaceMode,
    Pressure,
    PressureLine,
    SandboxId,
)

_PRESSURES: Final = ("cpu_pressure", "memory_pressure", "io_pressure")
_USAGE: Final = frozenset(item.name for item in fields(ContainerUsage)) - {*_PRESSURES, "source"}


@dataclass(slots=True)
class Container:
    """What is known of one container."""

    id: ContainerId
    sandbox_id: SandboxId
    pid_mode: NamespaceMode
    started: bool = False
    exit: ExitStatus | None = None
    oom_killed: bool = False

    def status(self) -> BackendStatus:
        """Return the contract's view; a guest's pids mean nothing on the host."""
        if self.exit is not None:
            state = BackendState.STOPPED
        else:
            state = BackendState.RUNNING if self.started else BackendState.CREATED
        return BackendStatus(self.id, self.sandbox_id, state, None, self.exit, self.oom_killed)


def restored(sandbox_id: SandboxId, pid_mode: int, name: str, row: Mapping[str, Any]) -> Container:
    """Return a container as its guest describes it to a new daemon."""
    record = row["exit"]
    return Container(
        ContainerId(name),
        sandbox_id,
        NamespaceMode(pid_mode),
        started=bool(row["started"]),
        exit=exit_status(record) if record is not None else None,
        oom_killed=bool(row["oom"]),
    )


def usage(row: Mapping[str, Any]) -> ContainerUsage:
    """Return counters; what is no number is left out."""
    told: dict[str, Any] = {key: row[key] for key in row if key in _USAGE and _counts(row[key])}
    told.update({key: _pressure(row[key]) for key in _PRESSURES if isinstance(row.get(key), list)})
    return ContainerUsage(**told, source="guest cgroup")


def _pressure(value: list[Any]) -> Pressure | None:
    """Return what a guest told of a pressure; what has another shape is not known."""
    try:
        some, full = (_line(*line) for line in value)
    except (TypeError, ValueError):
        return None
    return Pressure(some, full)


def _line(avg10: float, avg60: float, avg300: float, total_ns: int) -> PressureLine:
    return PressureLine(float(avg10), float(avg60), float(avg300), int(total_ns))


def _counts(value: object) -> bool:
    return value is None or type(value) is int


def exit_status(record: Mapping[str, Any]) -> ExitStatus:
    """Return how a process ended."""
    code = record.get("code")
    at = int(record.get("at") or 0) or time.time_ns()
    return ExitStatus(None if code is None else int(code), int(record.get("signal") or 0), at)


def uuid_of(sandbox_id: SandboxId) -> str:
    """Return what identifies a sandbox's machine to libvirt."""
    text = sandbox_id[:32]
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:32]))
