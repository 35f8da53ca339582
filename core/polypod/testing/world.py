"""The host of the simulator: what survives when the daemon goes and a new backend is opened.

As long as the Python process lives, so do the simulated programs, whoever opens the world. A world with
a directory also notes its objects there: when the Python process itself is gone, the next one finds
its sandboxes, and its containers as ended in a way that nobody knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polypod.plugin.errors import AlreadyExists, FailedPrecondition, NotFound
from polypod.plugin.ids import ContainerId, SandboxId
from polypod.plugin.runtime import (
    BackendEvent,
    BackendState,
    BackendStatus,
    ContainerExited,
    ContainerSpec,
    PodResources,
    SandboxDied,
    SandboxSpec,
)
from polypod.plugin.services import ExitStatus
from polypod.testing.clock import Clock, SystemClock
from polypod.testing.faults import Faults
from polypod.testing.files import Files
from polypod.testing.process import Captured, Group, Process, Start
from polypod.testing.programs import execute
from polypod.testing.streams import Streams


@dataclass(slots=True)
class SimSandbox:
    """One sandbox."""

    id: SandboxId
    hostname: str = ""
    healthy: bool = True
    stopped: bool = False
    limits: PodResources | None = None


@dataclass(slots=True)
class SimContainer:
    """One container."""

    id: ContainerId
    sandbox_id: SandboxId
    state: BackendState
    group: Group | None = None
    """None for one that was read from disk."""
    start: Start | None = None
    streams: Streams = field(default_factory=Streams)
    main: Process | None = None
    exit: ExitStatus | None = None
    oom_killed: bool = False
    captured: Captured | None = None
    """What its program goes on from."""

    @property
    def status(self) -> BackendStatus:
        """What the backend reports. No pid: the host has no such process."""
        return BackendStatus(
            self.id, self.sandbox_id, self.state, exit=self.exit, oom_killed=self.oom_killed
        )


class World:
    """All simulated sandboxes and containers of one host."""

    def __init__(
        self,
        directory: Path | None = None,
        *,
        clock: Clock | None = None,
        faults: Faults | None = None,
    ) -> None:
        self.clock = clock or SystemClock()
        self.faults = faults or Faults(self.clock)
        self.sandboxes: dict[SandboxId, SimSandbox] = {}
        self.containers: dict[ContainerId, SimContainer] = {}
        self._listeners: list[asyncio.Queue[BackendEvent]] = []
        self._directory = directory
        self._load()

    # Sandboxes

    def add_sandbox(self, spec: SandboxSpec) -> None:
        """Make a sandbox. AlreadyExists: there is one."""
        if spec.id in self.sandboxes:
            raise AlreadyExists(f"sandbox {spec.id} exists in the simulator already")
        sandbox = SimSandbox(spec.id, spec.config.hostname)
        self.sandboxes[spec.id] = sandbox
        self._note_sandbox(sandbox)

    def sandbox(self, sandbox_id: SandboxId) -> SimSandbox:
        """Return a sandbox in which containers may be made. FailedPrecondition if there is none."""
        sandbox = self.sandboxes.get(sandbox_id)
        if sandbox is None or sandbox.stopped or not sandbox.healthy:
            state = "unknown" if sandbox is None else "stopped" if sandbox.stopped else "dead"
            raise FailedPrecondition(f"sandbox {sandbox_id} is {state} in the simulator")
        return sandbox

    async def stop_sandbox(self, sandbox_id: SandboxId) -> None:
        """Kill everything in a sandbox and see it dead."""
        sandbox = self.sandboxes.get(sandbox_id)
        if sandbox is not None:
            sandbox.stopped = True
            self._note_sandbox(sandbox)
        for container in self.inside(sandbox_id):
            self.kill(container, signal.SIGKILL, whole=True)
            if container.main is not None:
                await container.main.ended.wait()

    async def remove_sandbox(self, sandbox_id: SandboxId) -> None:
        """Forget a sandbox and everything in it."""
        await self.stop_sandbox(sandbox_id)
        for container in self.inside(sandbox_id):
            self.delete(container)
        if self.sandboxes.pop(sandbox_id, None) is not None:
            self._unnote("sandboxes", sandbox_id)

    def kill_sandbox(self, sandbox_id: SandboxId, reason: str = "its holder was killed") -> None:
        """Let a sandbox die without being asked: a fault."""
        sandbox = self.sandboxes[sandbox_id]
        sandbox.healthy = False
        self._note_sandbox(sandbox)
        for container in self.inside(sandbox_id):
            self.kill(container, signal.SIGKILL, whole=True)
        self._tell(SandboxDied(sandbox_id, reason))

    def inside(self, sandbox_id: SandboxId) -> list[SimContainer]:
        """Return the containers of a sandbox."""
        return [each for each in self.containers.values() if each.sandbox_id == sandbox_id]

    # Containers

    def container(self, container_id: ContainerId) -> SimContainer:
        """Return a container. NotFound if there is none."""
        found = self.containers.get(container_id)
        if found is None:
            raise NotFound(f"container {container_id} is unknown to the simulator")
        return found

    def add_container(self, spec: ContainerSpec) -> None:
        """Make a container. AlreadyExists: there is one. FailedPrecondition: its sandbox is not ready."""
        sandbox = self.sandbox(spec.sandbox.id)
        if spec.id in self.containers:
            raise AlreadyExists(f"container {spec.id} exists in the simulator already")
        config, process = spec.config, spec.config.process
        group = Group(
            clock=self.clock,
            files=Files(spec.rootfs, config.mounts, read_only=config.root_readonly),
            hostname=config.hostname or sandbox.hostname,
            memory_limit_bytes=max(0, config.linux.resources.memory.limit or 0),
        )
        container = SimContainer(
            spec.id,
            sandbox.id,
            BackendState.CREATED,
            group,
            Start(process.args, process.env, process.cwd, process.user),
            Streams.adopt(spec.stdio),
        )
        self.containers[spec.id] = container
        self._note_container(container)

    def run(self, container: SimContainer) -> None:
        """Start the program of a created container."""
        group, start = container.group, container.start
        if container.state is not BackendState.CREATED or group is None or start is None:
            raise FailedPrecondition(
                f"container {container.id} is {container.state.value}, not created"
            )
        main = Process(group, start, container.streams)
        main.on_end = lambda process: self._ended(container, process)
        main.captured = container.captured
        container.main = main
        container.state = BackendState.RUNNING
        main.spawn(execute)
        self._note_container(container)

    def kill(self, container: SimContainer, number: int, *, whole: bool) -> None:
        """Signal a container; one that was never started is ended by it."""
        if container.state is BackendState.CREATED:
            if number in {signal.SIGKILL, signal.SIGTERM}:
                container.streams.close()
                self._stopped(container, ExitStatus(128 + number, number, self.clock.now_ns()))
        elif container.state is BackendState.RUNNING and container.group and container.main:
            if whole:
                container.group.signal(number)
            else:
                container.main.deliver(number)

    def delete(self, container: SimContainer) -> None:
        """Forget a container. FailedPrecondition: it runs."""
        if container.state is BackendState.RUNNING:
            raise FailedPrecondition(f"container {container.id} still runs: kill it first")
        if container.state is BackendState.CREATED:
            container.streams.close()
        self.containers.pop(container.id, None)
        self._unnote("containers", container.id)

    def _ended(self, container: SimContainer, main: Process) -> None:
        """The first process is gone, so the kernel would kill the others."""
        if main.group.processes:
            main.group.signal(signal.SIGKILL)
        container.oom_killed = main.group.oom_killed
        self._stopped(container, main.status)

    def _stopped(self, container: SimContainer, status: ExitStatus | None) -> None:
        container.state, container.exit = BackendState.STOPPED, status
        self._note_container(container)
        self._tell(ContainerExited(container.id, status or ExitStatus(None), container.oom_killed))

    # Events

    def listen(self) -> asyncio.Queue[BackendEvent]:
        """Return a queue that gets everything from now on."""
        queue: asyncio.Queue[BackendEvent] = asyncio.Queue()
        self._listeners.append(queue)
        return queue

    def forget(self, queue: asyncio.Queue[BackendEvent]) -> None:
        """Give a queue back."""
        if queue in self._listeners:
            self._listeners.remove(queue)

    def _tell(self, event: BackendEvent) -> None:
        for queue in self._listeners:
            queue.put_nowait(event)

    async def close(self) -> None:
        """End the world: every program is killed and nothing of it is left."""
        for sandbox_id in list(self.sandboxes):
            await self.remove_sandbox(sandbox_id)

    # Notes on disk

    def _note_sandbox(self, sandbox: SimSandbox) -> None:
        facts = {
            "hostname": sandbox.hostname,
            "healthy": sandbox.healthy,
            "stopped": sandbox.stopped,
        }
        self._note("sandboxes", sandbox.id, facts)

    def _note_container(self, container: SimContainer) -> None:
        end = container.exit
        facts = {
            "sandbox": container.sandbox_id,
            "state": container.state.value,
            "exit": [end.code, end.signal, end.finished_at_ns] if end else None,
            "oom_killed": container.oom_killed,
        }
        self._note("containers", container.id, facts)

    def _note(self, kind: str, name: str, facts: dict[str, Any]) -> None:
        if self._directory is None:
            return
        directory = self._directory / kind
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = directory / f".{name}"
        fresh.write_text(json.dumps(facts))
        fresh.replace(directory / name)

    def _unnote(self, kind: str, name: str) -> None:
        if self._directory is not None:
            (self._directory / kind / name).unlink(missing_ok=True)

    def _load(self) -> None:
        for name, facts in self._notes("sandboxes"):
            self.sandboxes[SandboxId(name)] = SimSandbox(SandboxId(name), **facts)
        for name, facts in self._notes("containers"):
            container = SimContainer(
                ContainerId(name), facts["sandbox"], BackendState(facts["state"])
            )
            if container.state is BackendState.CREATED:
                self._unnote("containers", name)  # its streams are gone: it can never start
                continue
            if container.state is BackendState.STOPPED and facts["exit"]:
                container.exit = ExitStatus(*facts["exit"])
            else:
                container.exit = ExitStatus(None, finished_at_ns=self.clock.now_ns())
            container.state, container.oom_killed = BackendState.STOPPED, facts["oom_killed"]
            self.containers[container.id] = container

    def _notes(self, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
        directory = self._directory / kind if self._directory is not None else None
        if directory is None or not directory.is_dir():
            return
        for path in sorted(directory.iterdir()):
            if not path.name.startswith("."):
                with contextlib.suppress(ValueError):
                    yield path.name, json.loads(path.read_text())
