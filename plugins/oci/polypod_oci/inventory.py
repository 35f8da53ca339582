"""What the backend knows of its containers; a restart reads it back from small files.

A container is its bundle: ``config.json``, ``rootfs``, a note of ours, and a mark once it was started. Its
process is found by the id, which keeper and supervisor know, too.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from polypod.plugin import (
    BackendState,
    BackendStatus,
    ContainerId,
    ExitStatus,
    LiveProcess,
    ProcessId,
    SandboxId,
)
from polypod_oci.sandboxes import read_facts


@dataclass(slots=True)
class Container:
    """One container; ``pidfd`` is ours."""

    id: ContainerId
    sandbox_id: SandboxId
    cgroup: str
    own_pids: bool
    """The kernel ends every process of it with the first one."""
    pid: int = 0
    pidfd: int = -1
    started: bool = False
    exit: ExitStatus | None = None
    oom_killed: bool = False
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the runtime starts it: an exit is told only after that has been answered."""

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

    def is_dead(self) -> bool:
        """Tell whether its first process is gone, also before that has been told."""
        if self.exit is not None or self.pidfd < 0:
            return True
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Let go of the descriptor. Idempotent."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Bundle:
    """One container's directory below the handler's ``state``."""

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self.rootfs = directory / "rootfs"
        self.config = directory / "config.json"
        self.pid_file = directory / "pid"

    def make(self, container: Container) -> None:
        """Make it and note whose it is, before anything of the container is made."""
        self.rootfs.mkdir(mode=0o700, parents=True)
        facts = {
            "sandbox": container.sandbox_id,
            "cgroup": container.cgroup,
            "own_pids": container.own_pids,
        }
        (self.path / "note").write_text(json.dumps(facts))

    def mark_started(self) -> None:
        """Note that its program executes."""
        (self.path / "started").touch()

    def is_marked_started(self) -> bool:
        """Tell whether `mark_started` was reached."""
        return (self.path / "started").exists()

    def read(self) -> Container:
        """Return what was noted; of half a note what it says."""
        facts = read_facts(self.path / "note")
        return Container(
            ContainerId(self.path.name),
            SandboxId(str(facts.get("sandbox", ""))),
            str(facts.get("cgroup", "")),
            bool(facts.get("own_pids", True)),
        )

    def write(self, name: str, text: bytes) -> Path:
        """Write one of its files."""
        path = self.path / name
        path.touch(mode=0o600)
        path.write_bytes(text)
        return path

    def remove(self) -> None:
        """Remove it; nothing may be mounted in it any more."""
        if self.rootfs.is_mount():
            raise OSError(f"{self.rootfs} is still mounted")
        shutil.rmtree(self.path, ignore_errors=True)


def take_process(container: Container, found: LiveProcess) -> None:
    """Enter what the supervisor kept."""
    container.pid, container.exit = found.pid, found.exit
    if found.exit is None:
        container.pidfd = _pidfd(found.pid, found.start_time)


def _pidfd(pid: int, start_time: int) -> int:
    """Return a pidfd of exactly that process; -1 if it is gone (its exit will be told)."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return -1
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
        if int(text.rpartition(b")")[2].split()[19]) == start_time:
            return fd
    except OSError:
        os.close(fd)
        return -1
    os.close(fd)
    return -1
