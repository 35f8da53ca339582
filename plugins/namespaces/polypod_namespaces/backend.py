"""The backend: sandboxes and containers as namespaces and cgroups, made through the supervisor.

It opens what a launch needs (`polypod.backend.mounts`), compiles the plan (`polypod.spec.compile`) and
lets the supervisor run it. Exits come from the supervisor, evidence of the OOM killer from the cgroup.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal as signals
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from polypod.backend import cgroups as cgroup_writer
from polypod.backend import inits, usage
from polypod.backend.descriptors import Descriptors
from polypod.backend.mounts import SharedMemory
from polypod.backend.sessions import ExecSession
from polypod.plugin.errors import BackendError, InvalidArgument, NotFound
from polypod.plugin.ids import ContainerId, ProcessId, SandboxId
from polypod.plugin.requests import Resources
from polypod.plugin.runtime import (
    BackendEvent,
    BackendStatus,
    ContainerExited,
    ContainerSpec,
    ContainerUsage,
    ExecSpec,
    Inventory,
    PodResources,
    RuntimeContext,
    SandboxDied,
    SandboxSpec,
)
from polypod.plugin.services import (
    ExitStatus,
    Launched,
    LiveProcess,
    SandboxNamespaces,
    Session,
)
from polypod.spec.updates import pod_total
from polypod_namespaces.inventory import Container, Sandbox, SandboxFiles
from polypod_namespaces.launching import Launches

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_THREADS = 8
_NOT_EXECUTED = 127
"""What shells answer for a program that could not be executed."""


async def open_backend(context: RuntimeContext) -> NamespacesBackend:
    """Open the engine and find what an earlier daemon left alive.

    Raises:
        InvalidArgument: the handler has options; this type knows none.
        BackendError: the host has no cgroups.
    """
    if context.options:
        raise InvalidArgument(
            f"handlers.{context.handler}.options: {sorted(context.options)} are unknown; the type "
            "namespaces has no options"
        )
    backend = NamespacesBackend(context)
    await backend.restore()
    return backend


class NamespacesBackend:
    """Implements `RuntimeBackend`, `Execs`, `Resizable` and `StatsSource`."""

    def __init__(self, context: RuntimeContext) -> None:
        self._handler = context.handler
        self._supervisor = context.supervisor
        self._cgroups = cgroup_writer.Cgroups(cgroup_writer.discover())
        self._own_parent = context.cgroup_parent
        self._files = SandboxFiles(context.state / "sandboxes")
        self._launches = Launches(self._cgroups)
        self._sandboxes: dict[SandboxId, Sandbox] = {}
        self._containers: dict[ContainerId, Container] = {}
        self._events: asyncio.Queue[BackendEvent] = asyncio.Queue()
        self._watches: dict[ProcessId, asyncio.Task[None]] = {}
        self._threads = ThreadPoolExecutor(_THREADS, f"ns-{context.handler}")

    # Sandboxes

    async def create_sandbox(self, spec: SandboxSpec, /) -> None:
        """See `RuntimeBackend.create_sandbox`."""
        held = spec.namespaces.fds if spec.namespaces is not None else {}
        sandbox = Sandbox(spec.id, spec.cgroup, spec.directory / "shm", "pid" in held)
        try:
            await self._run(self._make_sandbox, sandbox)
        except BaseException:
            await asyncio.shield(self._run(self._unmake_sandbox, sandbox))
            raise
        self._sandboxes[spec.id] = sandbox
        if spec.namespaces is not None:
            self._watch_init(sandbox, spec.namespaces)

    def _make_sandbox(self, sandbox: Sandbox) -> None:
        self._files.write(sandbox)
        self._cgroups.create(sandbox.cgroup)

    def _unmake_sandbox(self, sandbox: Sandbox) -> None:
        SharedMemory.remove(sandbox.shm)
        if sandbox.cgroup:
            self._cgroups.remove(sandbox.cgroup)
            self._cgroups.remove_empty_parents(sandbox.cgroup, self._own_parent)
        self._files.remove(sandbox.id)

    async def stop_sandbox(self, sandbox_id: SandboxId, /) -> None:
        """See `RuntimeBackend.stop_sandbox`."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None:
            return
        self._unwatch(_init_of(sandbox_id))
        alive = [each for each in self._of(sandbox_id) if each.exit is None]
        for container in alive:
            # One that is just being made may not be in its cgroup yet.
            await self._signal(container, signals.SIGKILL)
        await self._run(self._cgroups.kill, sandbox.cgroup, signals.SIGKILL)
        for container in alive:
            await self._gone(container)

    async def remove_sandbox(self, sandbox_id: SandboxId, /) -> None:
        """See `RuntimeBackend.remove_sandbox`."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None:
            return
        for container in self._of(sandbox_id):
            await self.delete(container.id)
        await self._run(self._unmake_sandbox, sandbox)
        self._sandboxes.pop(sandbox_id, None)

    async def resize(self, sandbox_id: SandboxId, limits: PodResources, /) -> None:
        """See `Resizable.resize`."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None:
            raise NotFound(f"sandbox {sandbox_id}: not in handler {self._handler!r}")
        total = pod_total(limits.resources, limits.overhead)
        await self._run(self._launches.update, sandbox.cgroup, total)

    # Containers

    async def create(self, spec: ContainerSpec, /) -> None:
        """See `RuntimeBackend.create`: everything is done but the last operation."""
        if spec.sandbox.id not in self._sandboxes:
            raise NotFound(f"sandbox {spec.sandbox.id}: not in handler {self._handler!r}")
        target = self._target(spec)
        with Descriptors() as descriptors:
            try:
                plan = await self._run(self._launches.prepare, spec, descriptors, target)
                container = self._describe(spec)
                launched = await self._supervisor.launch(
                    container.process_id,
                    plan,
                    fds=descriptors.fds,
                    labels=container.labels(self._handler),
                    hold=True,
                )
            except BaseException:
                await asyncio.shield(self._run(self._cgroups.remove, spec.cgroup))
                raise
        _take(container, launched)
        self._containers[spec.id] = container
        self._watch(container)

    def _describe(self, spec: ContainerSpec) -> Container:
        pid = next((each for each in spec.config.linux.namespaces if each.type == "pid"), None)
        own = pid is not None and not pid.path
        return Container(spec.id, spec.sandbox.id, spec.cgroup, 0, 0, -1, own)

    def _target(self, spec: ContainerSpec) -> int:
        """Return the pidfd of the container whose processes this one joins; -1 if it joins none."""
        for each in spec.config.linux.namespaces:
            if each.type == "pid" and each.path.startswith("container:"):
                return self._alive(ContainerId(each.path.partition(":")[2])).pidfd
        return -1

    async def start(self, container_id: ContainerId, /) -> BackendStatus:
        """See `RuntimeBackend.start`."""
        container = self._known(container_id)
        try:
            await self._supervisor.release(container.process_id)
        except BackendError:
            # It never ran: there is no exit to come, and nothing to kill.
            self._unwatch(container.process_id)
            container.exit = ExitStatus(_NOT_EXECUTED, finished_at_ns=time.time_ns())
            raise
        container.started = True
        if container.exit is not None:  # its end was known before this answer
            self._tell_exit(container, container.exit)
        return container.status()

    async def kill(self, container_id: ContainerId, signal: int, /, *, whole: bool = False) -> None:
        """See `RuntimeBackend.kill`."""
        container = self._containers.get(container_id)
        if container is None:
            return
        if whole:
            await self._run(self._cgroups.kill, container.cgroup, signal)
        if container.exit is None and not (whole and container.started):
            await self._signal(container, signal)

    async def delete(self, container_id: ContainerId, /) -> None:
        """See `RuntimeBackend.delete`."""
        container = self._containers.get(container_id)
        if container is None:
            return
        if container.exit is None:
            await self._signal(container, signals.SIGKILL)
            await self._gone(container)
        await self._run(self._remove_cgroup, container)
        await self._supervisor.forget(container.process_id)
        self._containers.pop(container_id, None)
        if container.pidfd >= 0:
            os.close(container.pidfd)
            container.pidfd = -1

    def _remove_cgroup(self, container: Container) -> None:
        self._cgroups.kill(container.cgroup, signals.SIGKILL)
        self._cgroups.remove(container.cgroup)

    async def update(self, container_id: ContainerId, resources: Resources, /) -> None:
        """See `RuntimeBackend.update`."""
        container = self._known(container_id)
        await self._run(self._launches.update, container.cgroup, resources)

    async def status(self, container_id: ContainerId, /) -> BackendStatus:
        """See `RuntimeBackend.status`."""
        return self._known(container_id).status()

    def _of(self, sandbox_id: SandboxId) -> Sequence[Container]:
        return [each for each in self._containers.values() if each.sandbox_id == sandbox_id]

    async def list(self) -> Inventory:
        """See `RuntimeBackend.list`."""
        return Inventory(
            {each.id: not each.dead for each in self._sandboxes.values()},
            {each.id: each.status() for each in self._containers.values()},
        )

    async def events(self) -> AsyncIterator[BackendEvent]:
        """See `RuntimeBackend.events`."""
        while True:
            yield await self._events.get()

    async def close(self) -> None:
        """See `RuntimeBackend.close`."""
        watches = list(self._watches.values())
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        for container in self._containers.values():
            if container.pidfd >= 0:
                os.close(container.pidfd)
        self._containers.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)

    # Execs, counters

    async def exec(self, spec: ExecSpec, /) -> Session:
        """See `Execs.exec`."""
        container = self._alive(spec.container_id)
        group = f"{container.cgroup}/exec-{spec.id[:16]}"
        with Descriptors() as descriptors:
            try:
                plan = self._launches.prepare_exec(spec, container, group, descriptors)
                launched = await self._supervisor.launch(
                    ProcessId(spec.id),
                    plan,
                    fds=descriptors.fds,
                    labels={"handler": self._handler, "kind": "exec", "container": container.id},
                )
            except BaseException:
                self._cgroups.remove_quietly(group)
                raise
        return ExecSession(self._supervisor, self._cgroups, launched, group)

    async def stats(
        self, container_ids: Sequence[ContainerId], /
    ) -> Mapping[ContainerId, ContainerUsage]:
        """See `StatsSource.stats`."""
        alive = {
            each: self._containers[each].cgroup
            for each in container_ids
            if each in self._containers and self._containers[each].exit is None
        }
        return await self._run(self._read_all, alive)

    def _read_all(self, groups: Mapping[ContainerId, str]) -> dict[ContainerId, ContainerUsage]:
        return {each: usage.read(self._cgroups, path) for each, path in groups.items()}

    # What an earlier daemon left

    async def restore(self) -> None:
        """Take over sandboxes and containers that carry this handler's name."""
        live = {each.process_id: each for each in await self._supervisor.processes()}
        for sandbox in await self._run(lambda: list(self._files.read())):
            self._sandboxes[sandbox.id] = sandbox
            await self._restore_init(sandbox)
        for found in live.values():
            if found.labels.get("handler") == self._handler:
                await self._restore_process(found)

    async def _restore_init(self, sandbox: Sandbox) -> None:
        if not sandbox.has_init:
            return
        made = await self._supervisor.namespaces(sandbox.id)
        if made is None:
            sandbox.dead = True
            return
        try:
            self._watch_init(sandbox, made)
        finally:
            inits.release(made)

    async def _restore_process(self, found: LiveProcess) -> None:
        if found.labels["kind"] == "exec":
            # Whoever asked for it is gone with the last daemon, and so is its output.
            await self._end_exec(found)
            return
        started = found.exit is not None or self._launches.executes(found.pid)
        container = Container.restore(found, started=started)
        self._containers[container.id] = container
        if found.exit is not None:
            await self._note_exit(container, found.exit)
        else:
            self._watch(container)

    async def _end_exec(self, found: LiveProcess) -> None:
        try:
            if found.exit is None:
                await self._supervisor.kill(found.process_id, signals.SIGKILL)
                await self._supervisor.wait(found.process_id)
        except NotFound:
            _log.debug("exec %s is gone already", found.process_id)
        await self._supervisor.forget(found.process_id)

    # Watching

    def _watch(self, container: Container) -> None:
        self._spawn(container.process_id, self._await_exit(container))

    async def _await_exit(self, container: Container) -> None:
        status = await self._supervisor.wait(container.process_id)
        if not container.own_pids:
            await self._run(self._cgroups.kill, container.cgroup, signals.SIGKILL)
        await self._note_exit(container, status)
        if container.started:  # else `start` tells it, if the program ever ran
            self._tell_exit(container, status)

    def _tell_exit(self, container: Container, status: ExitStatus) -> None:
        self._events.put_nowait(ContainerExited(container.id, status, container.oom_killed))

    async def _note_exit(self, container: Container, status: ExitStatus) -> None:
        kills = await self._run(self._oom_kills, container.cgroup)
        container.oom_killed = kills > 0 and status.code != 0
        container.exit = status

    def _oom_kills(self, path: str) -> int:
        names = (path, *(f"{path}/{name}" for name in self._cgroups.children(path)))
        return sum(self._cgroups.oom_kills(name) for name in names)

    def _watch_init(self, sandbox: Sandbox, made: SandboxNamespaces) -> None:
        if sandbox.has_init:
            pidfd = inits.open_init(made)
            sandbox.dead = pidfd < 0
            self._spawn(_init_of(sandbox.id), self._await_init(sandbox, pidfd))

    async def _await_init(self, sandbox: Sandbox, pidfd: int) -> None:
        await inits.ended(pidfd)
        sandbox.dead = True
        reason = "the init of its process namespace was killed"
        self._events.put_nowait(SandboxDied(sandbox.id, reason))

    def _spawn(self, process_id: ProcessId, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"wait {process_id[:12]}")
        self._watches[process_id] = task
        task.add_done_callback(partial(self._ended, process_id))

    def _ended(self, process_id: ProcessId, task: asyncio.Task[None]) -> None:
        if self._watches.get(process_id) is task:
            del self._watches[process_id]
        if not task.cancelled() and task.exception() is not None:
            _log.error("process %s: waiting failed", process_id, exc_info=task.exception())

    def _unwatch(self, process_id: ProcessId) -> None:
        task = self._watches.get(process_id)
        if task is not None:
            task.cancel()

    async def _gone(self, container: Container) -> None:
        """Return when a killed container's exit is noted."""
        watch = self._watches.get(container.process_id)
        if watch is not None:
            await asyncio.shield(watch)
        if container.exit is None:
            raise BackendError(f"container {container.id}: its exit could not be learnt")

    # Small things

    async def _signal(self, container: Container, signal: int) -> None:
        try:
            await self._supervisor.kill(container.process_id, signal)
        except NotFound:
            _log.debug("container %s is gone already", container.id)

    def _known(self, container_id: ContainerId) -> Container:
        container = self._containers.get(container_id)
        if container is None:
            raise NotFound(f"container {container_id}: not in handler {self._handler!r}")
        return container

    def _alive(self, container_id: ContainerId) -> Container:
        container = self._known(container_id)
        if container.exit is not None or not container.started:
            raise BackendError(f"container {container_id}: it does not run")
        return container

    async def _run(self, work: Callable[..., _T], *arguments: object) -> _T:
        """Off the loop: file systems and cgroups may take their time."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, work, *arguments)


def _take(container: Container, launched: Launched) -> None:
    container.pid, container.pidfd = launched.pid, launched.pidfd
    container.start_time = launched.start_time


def _init_of(sandbox_id: SandboxId) -> ProcessId:
    return ProcessId(f"init-{sandbox_id}")
