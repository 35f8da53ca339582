"""The containers of one handler: what is known of them, their ends, and the events that tell of them.

A backend makes and confines; everything after that is the same for all whose first process is the keeper's::

    container = Container.of(spec)
    launched = await supervisor.launch(container.process_id, plan, fds=..., hold=True,
                                       labels=container.labels(handler))
    containers.add(container, launched)         # from here its end is noted, and told once it was started
    await supervisor.release(container.process_id)
    containers.mark_started(container)

An exit is told once, and only of a program that ran: one that ends before its start was answered is told by
`Containers.mark_started`, one that never ran is not told at all (`Containers.mark_failed`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal as signals
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from polypod.backend import detail, usage
from polypod.backend.cgroups import Cgroups
from polypod.plugin import (
    BackendError,
    BackendEvent,
    BackendState,
    BackendStatus,
    ContainerDetail,
    ContainerExited,
    ContainerId,
    ContainerSpec,
    ContainerUsage,
    ExitStatus,
    Launched,
    LiveProcess,
    MetricGroup,
    NotFound,
    ProcessId,
    RuntimeContext,
    SandboxId,
    Supervisor,
)

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_TRACE = "CAP_SYS_PTRACE"
_NOT_EXECUTED = 127
"""What shells answer for a program that could not be executed."""


class Runner(Protocol):
    """Runs what may block off the loop: `asyncio.to_thread`, or a backend's own pool of threads."""

    async def __call__(self, work: Callable[..., _T], /, *arguments: object) -> _T: ...


@dataclass(slots=True)
class Container:
    """One container; ``pidfd`` is ours."""

    id: ContainerId
    sandbox_id: SandboxId
    cgroup: str
    own_pids: bool = False
    """The kernel ends every process of it with the first one."""
    traces: bool = True
    """It may have CAP_SYS_PTRACE: what it sees it can take over."""
    pid: int = 0
    pidfd: int = -1
    started: bool = False
    exit: ExitStatus | None = None
    oom_killed: bool = False

    @classmethod
    def of(cls, spec: ContainerSpec) -> Container:
        """Return one that is not made yet."""
        kinds = spec.config.linux.namespaces
        own = any(each.type == "pid" and not each.path for each in kinds)
        sets = spec.config.process.capabilities
        traces = sets is None or _TRACE in sets.bounding
        return cls(spec.id, spec.sandbox.id, spec.cgroup, own, traces)

    @classmethod
    def of_labels(cls, found: LiveProcess) -> Container:
        """Return what `labels` kept: enough where a container is nothing but its process."""
        labels = found.labels
        return cls(
            ContainerId(found.process_id),
            SandboxId(labels["sandbox"]),
            labels["cgroup"],
            bool(labels["own_pids"]),
            bool(labels.get("traces", "1")),
        )

    @property
    def process_id(self) -> ProcessId:
        """What keeper and supervisor call its first process."""
        return ProcessId(self.id)

    def labels(self, handler: str) -> dict[str, str]:
        """Return what is kept with the process, for a daemon that comes after us."""
        return {
            "handler": handler,
            "kind": "container",
            "sandbox": self.sandbox_id,
            "cgroup": self.cgroup,
            "own_pids": "1" if self.own_pids else "",
            "traces": "1" if self.traces else "",
        }

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


class Containers:
    """All containers of one handler, by id. Nothing in here makes or removes one."""

    def __init__(
        self, context: RuntimeContext, cgroups: Cgroups, run: Runner = asyncio.to_thread
    ) -> None:
        """Begin with none.

        Args:
            context: the handler's.
            cgroups: in which the containers are: for evidence of the OOM killer, and to end what a
                first process leaves behind.
            run: for what blocks.
        """
        self._handler = context.handler
        self._supervisor = context.supervisor
        self._cgroups = cgroups
        self._run = run
        self._known: dict[ContainerId, Container] = {}
        self._watches: dict[ContainerId, asyncio.Task[None]] = {}
        self._events: asyncio.Queue[BackendEvent] = asyncio.Queue()

    # Who is there

    def get(self, container_id: ContainerId) -> Container | None:
        """Return one, or None: `delete` and `kill` of an unknown container succeed."""
        return self._known.get(container_id)

    def known(self, container_id: ContainerId) -> Container:
        """Return one.

        Raises:
            NotFound: there is no such container in this handler.
        """
        container = self._known.get(container_id)
        if container is None:
            raise NotFound(f"container {container_id}: not in handler {self._handler!r}")
        return container

    def alive(self, container_id: ContainerId) -> Container:
        """Return one whose program executes.

        Raises:
            NotFound: there is no such container in this handler.
            BackendError: it does not run.
        """
        container = self.known(container_id)
        if container.exit is not None or not container.started:
            raise BackendError(f"container {container_id}: it does not run")
        return container

    def of(self, sandbox_id: SandboxId) -> Sequence[Container]:
        """Return those of a sandbox."""
        return [each for each in self._known.values() if each.sandbox_id == sandbox_id]

    def is_watched(self, container: Container) -> bool:
        """Tell whether somebody in its pod may trace processes: any of them may share its pid namespace."""
        return any(each.traces for each in self.of(container.sandbox_id))

    def statuses(self) -> dict[ContainerId, BackendStatus]:
        """Return all, for `RuntimeBackend.list`."""
        return {each.id: each.status() for each in self._known.values()}

    # From create to delete

    def add(self, container: Container, launched: Launched) -> None:
        """Enter one that was made, and watch its first process."""
        container.pid, container.pidfd = launched.pid, launched.pidfd
        self._known[container.id] = container
        self.watch(container)

    async def take_over(self, container: Container, found: LiveProcess, *, started: bool) -> None:
        """Enter one that an earlier daemon made. An exit that it had meanwhile is listed, not told."""
        container.pid, container.started = found.pid, started or found.exit is not None
        self._known[container.id] = container
        if found.exit is not None:
            await self._note_exit(container, found.exit)
        else:
            container.pidfd = pidfd_of(found.pid, found.start_time)
            self.watch(container)

    def mark_started(self, container: Container) -> BackendStatus:
        """Note that its program executes, or did; return what `RuntimeBackend.start` answers."""
        container.started = True
        if container.exit is not None:  # its end was known before this answer
            self._tell_exit(container, container.exit)
        return container.status()

    def mark_failed(self, container: Container) -> None:
        """Note that its program could not be executed: there is no exit to come, and nothing to kill."""
        watch = self._watches.get(container.id)
        if watch is not None:
            watch.cancel()
        container.exit = ExitStatus(_NOT_EXECUTED, finished_at_ns=time.time_ns())

    async def signal(self, container: Container, signal: int) -> None:
        """Signal the first process; one that is gone is fine."""
        try:
            await self._supervisor.kill(container.process_id, signal)
        except NotFound:
            _log.debug("container %s is gone already", container.id)

    async def kill(self, container_id: ContainerId, signal: int, *, whole: bool) -> None:
        """Do what `RuntimeBackend.kill` asks, by the cgroup and by the first process."""
        container = self._known.get(container_id)
        if container is None:
            return
        if whole:
            await self._run(self._cgroups.kill, container.cgroup, signal)
        if container.exit is None and not (whole and container.started):
            # One that is just being made may not be in its cgroup yet.
            await self.signal(container, signal)

    async def end(self, container: Container) -> None:
        """Kill the first process if it lives, and return when its exit is noted.

        Raises:
            BackendError: its exit could not be learnt.
        """
        if container.exit is None:
            await self.signal(container, signals.SIGKILL)
            await self.gone(container)

    async def gone(self, container: Container) -> None:
        """Return when a killed container's exit is noted. Raises like `end`."""
        watch = self._watches.get(container.id)
        if watch is not None:
            await asyncio.shield(watch)
        if container.exit is None:
            raise BackendError(f"container {container.id}: its exit could not be learnt")

    async def forget(self, container: Container) -> None:
        """Drop one of which nothing is left."""
        await self._supervisor.forget(container.process_id)
        self._known.pop(container.id, None)
        container.close()

    # Exits

    def watch(self, container: Container) -> None:
        """Wait for the end of the first process, in the background."""
        work = self._await_exit(container)
        task = asyncio.get_running_loop().create_task(work, name=f"wait {container.id[:12]}")
        self._watches[container.id] = task
        task.add_done_callback(partial(self._watched, container.id))

    def _watched(self, container_id: ContainerId, task: asyncio.Task[None]) -> None:
        if self._watches.get(container_id) is task:
            del self._watches[container_id]
        if not task.cancelled() and task.exception() is not None:
            _log.error("container %s: waiting failed", container_id, exc_info=task.exception())

    async def _await_exit(self, container: Container) -> None:
        status = await self._supervisor.wait(container.process_id)
        if not container.own_pids:
            await self._run(self._cgroups.kill, container.cgroup, signals.SIGKILL)
        await self._note_exit(container, status)
        if container.started:  # else `mark_started` tells it, if the program ever ran
            self._tell_exit(container, status)

    async def _note_exit(self, container: Container, status: ExitStatus) -> None:
        kills = await self._run(self._cgroups.oom_kills, container.cgroup)
        container.oom_killed = kills > 0 and status.code != 0
        container.exit = status

    def _tell_exit(self, container: Container, status: ExitStatus) -> None:
        self.tell(ContainerExited(container.id, status, container.oom_killed))

    def tell(self, event: BackendEvent) -> None:
        """Put an event among those that `events` yields."""
        self._events.put_nowait(event)

    async def events(self) -> AsyncIterator[BackendEvent]:
        """Yield what `RuntimeBackend.events` yields."""
        while True:
            yield await self._events.get()

    async def stats(
        self, container_ids: Sequence[ContainerId]
    ) -> Mapping[ContainerId, ContainerUsage]:
        """Return what `StatsSource.stats` returns, from the cgroups."""
        known = ((each, self._known.get(each)) for each in container_ids)
        groups = {each: found.cgroup for each, found in known if found and found.exit is None}
        return await self._run(self._read_all, groups)

    def _read_all(self, groups: Mapping[ContainerId, str]) -> dict[ContainerId, ContainerUsage]:
        return usage.read_all(self._cgroups, groups)

    async def details(
        self, container_ids: Sequence[ContainerId], groups: frozenset[MetricGroup]
    ) -> Mapping[ContainerId, ContainerDetail]:
        """Return what `MetricsSource.details` returns, from the cgroups."""
        known = ((each, self._known.get(each)) for each in container_ids)
        paths = {each: found.cgroup for each, found in known if found and found.exit is None}
        return await self._run(detail.read_all, self._cgroups, paths, groups)

    async def close(self) -> None:
        """Stop watching; the containers go on. Idempotent."""
        watches = list(self._watches.values())
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        for container in self._known.values():
            container.close()
        self._known.clear()


async def end_process(supervisor: Supervisor, process_id: ProcessId) -> None:
    """Kill a process that nobody waits for any more, such as an earlier daemon's exec, and forget it."""
    try:
        await supervisor.kill(process_id, signals.SIGKILL)
    except NotFound:
        _log.debug("%s has ended by itself", process_id)
    await supervisor.wait(process_id)
    await supervisor.forget(process_id)


def executes(pid: int) -> bool:
    """Tell whether a launched process has executed its program, or is held before that.

    Until then it is a copy of the supervisor, which the daemon's own interpreter runs. One that is gone
    counts as executed.
    """
    try:
        return not os.path.samestat(os.stat(f"/proc/{pid}/exe"), os.stat("/proc/self/exe"))
    except OSError:
        return True


def pidfd_of(pid: int, start_time: int) -> int:
    """Return a pidfd of exactly that process; -1 if it is gone (its exit will be told)."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return -1
    try:
        # Field 22: with it a pid is a name that is never used twice.
        text = Path(f"/proc/{pid}/stat").read_bytes()
        if int(text.rpartition(b")")[2].split()[19]) == start_time:
            return fd
    except OSError:
        _log.debug("process %s went while it was looked at", pid)
    os.close(fd)
    return -1
