"""The backend: sandboxes and containers through an OCI runtime's command line.

The runtime makes and confines; its detached process is the keeper's, which tells the exit. What core and
the runtime each must not know of the other meets in `polypod_oci.calls`.
"""

from __future__ import annotations

import asyncio
import logging
import signal as signals
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from functools import partial

from polypod.plugin import (
    AlreadyExists,
    BackendError,
    BackendEvent,
    BackendState,
    BackendStatus,
    ContainerExited,
    ContainerId,
    ContainerSpec,
    ContainerUsage,
    ExecSpec,
    ExitStatus,
    FailedPrecondition,
    Feature,
    Inventory,
    LiveProcess,
    NotFound,
    ProcessId,
    Resources,
    RuntimeContext,
    SandboxId,
    SandboxSpec,
    Session,
)
from polypod_oci.calls import Calls
from polypod_oci.cgroups import Cgroups
from polypod_oci.inventory import Bundle, Container, take_process
from polypod_oci.options import read_options
from polypod_oci.sandboxes import Sandboxes
from polypod_oci.sessions import ExecSession
from polypod_oci.tool import Tool
from polypod_oci.usage import read_usage

_log = logging.getLogger(__name__)


async def open_backend(context: RuntimeContext) -> OciBackend:
    """Ask the runtime what it can do, and find what an earlier daemon left alive.

    Raises:
        InvalidArgument: the handler's options are wrong.
        Unsupported: the binary is not there.
    """
    tool = Tool(read_options(context), context.supervisor, context.handler)
    cgroups = Cgroups()
    bundles = context.state / "bundles"
    calls = Calls(tool, await tool.facts(), context.supervisor, cgroups, bundles)
    backend = OciBackend(context, calls, cgroups)
    await backend.restore()
    return backend


class OciBackend:
    """Implements `RuntimeBackend`, `Narrowed`, `Execs` and `StatsSource`."""

    def __init__(self, context: RuntimeContext, calls: Calls, cgroups: Cgroups) -> None:
        self._handler = context.handler
        self._supervisor = context.supervisor
        self._calls = calls
        self._cgroups = cgroups
        self._events: asyncio.Queue[BackendEvent] = asyncio.Queue()
        self._sandboxes = Sandboxes(
            context.state / "sandboxes", cgroups, context.cgroup_parent, self._events.put_nowait
        )
        self._containers: dict[ContainerId, Container] = {}
        self._watches: dict[ProcessId, asyncio.Task[None]] = {}

    @property
    def features(self) -> frozenset[Feature]:
        """See `Narrowed.features`: what this binary says of itself."""
        return self._calls.features

    # Sandboxes

    async def create_sandbox(self, spec: SandboxSpec, /) -> None:
        """See `RuntimeBackend.create_sandbox`."""
        await self._sandboxes.create(spec)

    async def stop_sandbox(self, sandbox_id: SandboxId, /) -> None:
        """See `RuntimeBackend.stop_sandbox`."""
        sandbox = self._sandboxes.known.get(sandbox_id)
        if sandbox is None:
            return
        self._sandboxes.unwatch(sandbox_id)
        alive = [each for each in self._of(sandbox_id) if each.exit is None]
        for container in alive:
            await self._end(container)
        await asyncio.to_thread(self._cgroups.kill, sandbox.cgroup, signals.SIGKILL)
        for container in alive:
            await self._gone(container)

    async def remove_sandbox(self, sandbox_id: SandboxId, /) -> None:
        """See `RuntimeBackend.remove_sandbox`."""
        sandbox = self._sandboxes.known.get(sandbox_id)
        if sandbox is None:
            return
        for container in self._of(sandbox_id):
            await self.delete(container.id)
        await self._sandboxes.remove(sandbox)

    # Containers

    async def create(self, spec: ContainerSpec, /) -> None:
        """See `RuntimeBackend.create`."""
        if spec.sandbox.id not in self._sandboxes.known:
            raise NotFound(f"sandbox {spec.sandbox.id}: not in handler {self._handler!r}")
        if spec.id in self._containers:
            raise AlreadyExists(f"container {spec.id}: exists in handler {self._handler!r}")
        container = _describe(spec)
        target = self._target(spec)
        try:
            bundle = await asyncio.to_thread(self._calls.prepare, spec, container, target)
            labels = {"handler": self._handler, "kind": "container", "sandbox": spec.sandbox.id}
            launched = await self._calls.create(bundle, spec.stdio, container.process_id, labels)
        except BaseException:
            await asyncio.shield(self._undo_create(container))
            raise
        container.pid, container.pidfd = launched.pid, launched.pidfd
        self._containers[spec.id] = container
        self._watch(container)

    async def _undo_create(self, container: Container) -> None:
        await self._calls.discard(container.id)
        await self._supervisor.forget(container.process_id)

    def _target(self, spec: ContainerSpec) -> int:
        """Return the pid of the container whose processes this one joins; 0 if it joins none."""
        for each in spec.config.linux.namespaces:
            if each.type == "pid" and each.path.startswith("container:"):
                return self._alive(ContainerId(each.path.partition(":")[2])).pid
        return 0

    async def start(self, container_id: ContainerId, /) -> BackendStatus:
        """See `RuntimeBackend.start`."""
        container = self._known(container_id)
        async with container.starting:
            if container.started or container.exit is not None:
                raise FailedPrecondition(f"container {container_id}: it was started already")
            await self._calls.start(container_id)
            container.started = True
        return BackendStatus(
            container_id, container.sandbox_id, BackendState.RUNNING, container.pid
        )

    async def kill(self, container_id: ContainerId, signal: int, /, *, whole: bool = False) -> None:
        """See `RuntimeBackend.kill`."""
        container = self._containers.get(container_id)
        if container is None:
            return
        if not container.is_dead():
            try:
                await self._calls.kill(container_id, signal, whole=whole)
            except BackendError:
                if not container.is_dead():
                    raise
        if whole and signal == signals.SIGKILL:
            # What runtimes leave of a container whose first process is gone.
            await asyncio.to_thread(self._cgroups.kill, container.cgroup, signal)

    async def delete(self, container_id: ContainerId, /) -> None:
        """See `RuntimeBackend.delete`."""
        container = self._containers.get(container_id)
        if container is None:
            return
        if container.exit is None:
            await self._end(container)
            await self._gone(container)
        await self._calls.discard(container_id)
        await self._supervisor.forget(container.process_id)
        self._containers.pop(container_id, None)
        container.close()

    async def update(self, container_id: ContainerId, resources: Resources, /) -> None:
        """See `RuntimeBackend.update`."""
        await self._calls.update(self._known(container_id), resources)

    async def status(self, container_id: ContainerId, /) -> BackendStatus:
        """See `RuntimeBackend.status`."""
        return self._known(container_id).status()

    async def list(self) -> Inventory:
        """See `RuntimeBackend.list`."""
        return Inventory(
            {each.id: not each.dead for each in self._sandboxes.known.values()},
            {each.id: each.status() for each in self._containers.values()},
        )

    async def events(self) -> AsyncIterator[BackendEvent]:
        """See `RuntimeBackend.events`."""
        while True:
            yield await self._events.get()

    async def close(self) -> None:
        """See `RuntimeBackend.close`."""
        await self._sandboxes.close()
        watches = [*self._watches.values()]
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        for container in self._containers.values():
            container.close()
        self._containers.clear()

    # Execs, counters

    async def exec(self, spec: ExecSpec, /) -> Session:
        """See `Execs.exec`."""
        container = self._alive(spec.container_id)
        labels = {"handler": self._handler, "kind": "exec", "container": container.id}
        launched, group = await self._calls.exec(spec, container, labels)
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
        return await asyncio.to_thread(self._read_all, alive)

    def _read_all(self, groups: Mapping[ContainerId, str]) -> dict[ContainerId, ContainerUsage]:
        return {each: read_usage(self._cgroups, path) for each, path in groups.items()}

    # What an earlier daemon left

    async def restore(self) -> None:
        """Take over what carries this handler's name; remove what was only half made."""
        live = {each.process_id: each for each in await self._supervisor.processes()}
        for found in live.values():
            if found.labels.get("handler") == self._handler and found.labels["kind"] != "container":
                # Whoever asked for it is gone with the last daemon.
                await self._calls.tool.end(found.process_id)
        await self._sandboxes.restore(self._supervisor)
        for bundle in self._calls.bundles():
            await self._restore_container(bundle, live.get(ProcessId(bundle.path.name)))

    async def _restore_container(self, bundle: Bundle, found: LiveProcess | None) -> None:
        container = bundle.read()
        if found is None:
            _log.warning("container %s was only half made: removed", container.id)
            await self._calls.discard(container.id)
            return
        take_process(container, found)
        self._containers[container.id] = container
        if found.exit is None:
            container.started = await self._calls.was_started(container.id)
            self._watch(container)
        else:
            container.started = True
            await self._note_exit(container, found.exit)

    # Watching

    def _watch(self, container: Container) -> None:
        self._spawn(container.process_id, self._await_exit(container))

    async def _await_exit(self, container: Container) -> None:
        status = await self._supervisor.wait(container.process_id)
        if not container.own_pids:
            await asyncio.to_thread(self._cgroups.kill, container.cgroup, signals.SIGKILL)
        async with container.starting:
            await self._note_exit(container, status)
        if container.started:
            exited = ContainerExited(container.id, status, container.oom_killed)
            self._events.put_nowait(exited)

    async def _note_exit(self, container: Container, status: ExitStatus) -> None:
        kills = await asyncio.to_thread(self._cgroups.oom_kills, container.cgroup)
        container.oom_killed = kills > 0 and status.code != 0
        container.exit = status

    def _spawn(self, process_id: ProcessId, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"wait {process_id[:12]}")
        self._watches[process_id] = task
        task.add_done_callback(partial(self._ended, process_id))

    def _ended(self, process_id: ProcessId, task: asyncio.Task[None]) -> None:
        if self._watches.get(process_id) is task:
            del self._watches[process_id]
        if not task.cancelled() and task.exception() is not None:
            _log.error("process %s: waiting failed", process_id, exc_info=task.exception())

    async def _gone(self, container: Container) -> None:
        """Return when a killed container's exit is noted."""
        watch = self._watches.get(container.process_id)
        if watch is not None:
            await asyncio.shield(watch)
        if container.exit is None:
            raise BackendError(f"container {container.id}: its exit could not be learnt")

    # Small things

    async def _end(self, container: Container) -> None:
        """Kill the first process without asking the runtime, which may hang or be gone."""
        try:
            await self._supervisor.kill(container.process_id, signals.SIGKILL)
        except NotFound:
            _log.debug("container %s is gone already", container.id)

    def _of(self, sandbox_id: SandboxId) -> Sequence[Container]:
        return [each for each in self._containers.values() if each.sandbox_id == sandbox_id]

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


def _describe(spec: ContainerSpec) -> Container:
    pid = next((each for each in spec.config.linux.namespaces if each.type == "pid"), None)
    own = pid is not None and not pid.path
    return Container(spec.id, spec.sandbox.id, spec.cgroup, own)
