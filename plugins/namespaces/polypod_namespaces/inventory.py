"""What the backend knows of its sandboxes and containers; a restart reads it back.

Containers are recognised by the labels of their process; sandboxes by one small file each, because a
pod on the host's namespaces has nothing else that lives.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from polypod.plugin.ids import ContainerId, ProcessId, SandboxId
from polypod.plugin.runtime import BackendState, BackendStatus
from polypod.plugin.services import ExitStatus, LiveProcess


@dataclass(slots=True)
class Sandbox:
    """One sandbox."""

    id: SandboxId
    cgroup: str
    shm: Path
    has_init: bool
    """A pid namespace is pinned: when its init dies, the sandbox is dead."""
    dead: bool = False


@dataclass(slots=True)
class Container:
    """One container; ``pidfd`` is ours."""

    id: ContainerId
    sandbox_id: SandboxId
    cgroup: str
    pid: int
    start_time: int
    pidfd: int
    own_pids: bool
    """The kernel ends every process of it with the first one."""
    started: bool = False
    exit: ExitStatus | None = None
    oom_killed: bool = False

    @property
    def process_id(self) -> ProcessId:
        """What keeper and supervisor call its first process."""
        return ProcessId(self.id)

    def status(self) -> BackendStatus:
        """Return the contract's view."""
        if self.exit is not None:
            state = BackendState.STOPPED
        else:
            state = BackendState.RUNNING if self.started else BackendState.CREATED
        pid = self.pid if self.exit is None else None
        return BackendStatus(self.id, self.sandbox_id, state, pid, self.exit, self.oom_killed)

    def labels(self, handler: str) -> dict[str, str]:
        """Return what is kept with the process."""
        return {
            "handler": handler,
            "kind": "container",
            "sandbox": self.sandbox_id,
            "cgroup": self.cgroup,
            "own_pids": "1" if self.own_pids else "",
        }

    @classmethod
    def restore(cls, found: LiveProcess, *, started: bool) -> Container:
        """Build from what the supervisor kept."""
        labels = found.labels
        return cls(
            ContainerId(found.process_id),
            SandboxId(labels["sandbox"]),
            labels["cgroup"],
            found.pid,
            found.start_time,
            -1 if found.exit is not None else _pidfd(found.pid, found.start_time),
            bool(labels["own_pids"]),
            started=started,
        )


def _pidfd(pid: int, start_time: int) -> int:
    """Return a pidfd of exactly that process; -1 if it is gone (its exit will be told)."""
    try:
        fd = os.pidfd_open(pid)
        if start_time_of(pid) == start_time:
            return fd
        os.close(fd)
    except OSError:
        return -1
    return -1


def start_time_of(pid: int) -> int:
    """Return field 22 of ``/proc/PID/stat``."""
    text = Path(f"/proc/{pid}/stat").read_bytes()
    return int(text.rpartition(b")")[2].split()[19])


class SandboxFiles:
    """The sandboxes' small files below the handler's state directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, exist_ok=True)

    def write(self, sandbox: Sandbox) -> None:
        """Note a sandbox before anything of it is made."""
        facts = {"cgroup": sandbox.cgroup, "shm": str(sandbox.shm), "init": sandbox.has_init}
        (self._directory / sandbox.id).write_text(json.dumps(facts))

    def remove(self, sandbox_id: SandboxId) -> None:
        """Forget a sandbox; an unknown one is fine."""
        (self._directory / sandbox_id).unlink(missing_ok=True)

    def read(self) -> Iterator[Sandbox]:
        """Yield what an earlier daemon noted; half a note is a sandbox to be removed."""
        for path in self._directory.iterdir():
            try:
                facts: Mapping[str, object] = json.loads(path.read_text())
            except ValueError:
                facts = {}
            yield Sandbox(
                SandboxId(path.name),
                str(facts.get("cgroup", "")),
                Path(str(facts.get("shm", "/nonexistent"))),
                bool(facts.get("init")),
                dead=not facts,
            )
