"""The backend: sandboxes and containers through an OCI runtime's command line.

The runtime makes and confines; its detached process is the keeper's, which tells the exit. What core and
the runtime each must not know of the other meets in `polypod_oci.calls`.
"""

from __future__ import annotations

import asyncio
import logging
import signal as signals
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from typing_extensions import override

from polypod.backend import limits
from polypod.backend.cgroups import Cgroups, discover
from polypod.backend.containers import Container, Containers, end_process
from polypod.backend.sandboxes import Sandboxes
from polypod.backend.sessions import ExecSession
from polypod.plugin import (
    AlreadyExists,
    BackendError,
    BackendEvent,
    BackendState,
    BackendStatus,
    ContainerDetail,
    ContainerId,
    ContainerSpec,
    ContainerUsage,
    ExecSpec,
    FailedPrecondition,
    Feature,
    Inventory,
    Launched,
    LiveProcess,
    MetricGroup,
    PodResources,
    ProcessId,
    Resources,
    RuntimeContext,
    SandboxId,
    SandboxSpec,
    Session,
)
from polypod.spec.updates import pod_total
from polypod_oci.calls import Calls
from polypod_oci.criu import Criu, can_checkpoint
from polypod_oci.inventory import Bundle
from polypod_oci.options import read_options
from polypod_oci.tool import Tool

_log = logging.getLogger(__name__)


async def open_backend(context: RuntimeContext) -> OciBackend:
    """Ask the runtime what it can do, and find what an earlier daemon left alive.

    Raises:
        InvalidArgument: the handler's options are wrong.
        Unsupported: the binary is not there.
    """
    tool = Tool(read_options(context), context.supervisor, context.handler)
    # On a hybrid host some runtimes use both.
    cgroups = Cgroups(discover().with_unified())
    bundles = context.state / "bundles"
    calls = Calls(tool, await tool.facts(), context.supervisor, cgroups, bundles)
    kind = CheckpointingBackend if await can_checkpoint(tool) else OciBackend
    backend = kind(context, calls, cgroups)
    await backend.recover()
    return backend


class OciBackend:
    """Implements `RuntimeBackend`, `Narrowed`, `Execs`, `Resizable` and the sources of counters."""

    def __init__(self, context: RuntimeContext, calls: Calls, cgroups: Cgroups) -> None:
        self._handler = context.handler
        self._supervisor = context.supervisor
        self._calls = calls
        self._cgroups = cgroups
        self._containers = Containers(context, cgroups)
        self._sandboxes = Sandboxes(context, cgroups, self._containers)
        self._starting: set[ContainerId] = set()

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
        await self._sandboxes.stop(sandbox_id)

    async def remove_sandbox(self, sandbox_id: SandboxId, /) -> None:
        """See `RuntimeBackend.remove_sandbox`."""
        await self._sandboxes.remove(sandbox_id, self.delete)

    # Containers

    async def create(self, spec: ContainerSpec, /) -> None:
        """See `RuntimeBackend.create`."""
        await self._make(spec, self._calls.create)

    async def _make(self, spec: ContainerSpec, command: Callable[..., Awaitable[Launched]]) -> None:
        """Make a bundle, and from it a process by one of the runtime's commands."""
        self._sandboxes.known(spec.sandbox.id)
        if self._containers.get(spec.id) is not None:
            raise AlreadyExists(f"container {spec.id}: exists in handler {self._handler!r}")
        container = Container.of(spec)
        target = self._target(spec)
        try:
            bundle = await asyncio.to_thread(self._calls.prepare, spec, container, target)
            labels = container.labels(self._handler)
            launched = await command(bundle, spec.stdio, container.process_id, labels)
        except BaseException:
            await asyncio.shield(self._undo_create(container))
            raise
        self._containers.add(container, launched)

    async def _undo_create(self, container: Container) -> None:
        await self._calls.discard(container.id)
        await self._supervisor.forget(container.process_id)

    def _target(self, spec: ContainerSpec) -> int:
        """Return the pid of the container whose processes this one joins; 0 if it joins none."""
        for each in spec.config.linux.namespaces:
            if each.type == "pid" and each.path.startswith("container:"):
                return self._containers.alive(ContainerId(each.path.partition(":")[2])).pid
        return 0

    async def start(self, container_id: ContainerId, /) -> BackendStatus:
        """See `RuntimeBackend.start`."""
        container = self._containers.known(container_id)
        if container.started or container.exit is not None or container_id in self._starting:
            raise FailedPrecondition(f"container {container_id}: it was started already")
        self._starting.add(container_id)
        try:
            await self._calls.start(container_id)
        finally:
            self._starting.discard(container_id)
        self._containers.mark_started(container)
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
        await self._containers.end(container)
        await self._calls.discard(container_id)
        await self._containers.forget(container)

    async def update(self, container_id: ContainerId, resources: Resources, /) -> None:
        """See `RuntimeBackend.update`."""
        container = self._containers.known(container_id)
        await self._calls.update(container, resources)
        if resources.oom_score_adj:
            # It is no limit of a cgroup: a runtime sets it at the start and has no command for later.
            pids = self._cgroups.processes(container.cgroup)
            await asyncio.to_thread(limits.set_scores, pids, resources.oom_score_adj)

    async def resize(self, sandbox_id: SandboxId, limits_: PodResources, /) -> None:
        """See `Resizable.resize`: the sandbox's cgroup is ours, the runtime knows nothing of it."""
        cgroup = self._sandboxes.known(sandbox_id).cgroup
        total = pod_total(limits_.resources, limits_.overhead)
        await asyncio.to_thread(limits.update, self._cgroups, cgroup, total)

    async def status(self, container_id: ContainerId, /) -> BackendStatus:
        """See `RuntimeBackend.status`."""
        return self._containers.known(container_id).status()

    async def list(self) -> Inventory:
        """See `RuntimeBackend.list`."""
        return Inventory(self._sandboxes.health(), self._containers.statuses())

    def events(self) -> AsyncIterator[BackendEvent]:
        """See `RuntimeBackend.events`."""
        return self._containers.events()

    async def close(self) -> None:
        """See `RuntimeBackend.close`."""
        await self._sandboxes.close()
        await self._containers.close()

    # Execs, counters

    async def exec(self, spec: ExecSpec, /) -> Session:
        """See `Execs.exec`."""
        container = self._containers.alive(spec.container_id)
        labels = {"handler": self._handler, "kind": "exec", "container": container.id}
        launched, group = await self._calls.exec(spec, container, labels)
        return ExecSession(self._supervisor, self._cgroups, launched, group)

    async def stats(
        self, container_ids: Sequence[ContainerId], /
    ) -> Mapping[ContainerId, ContainerUsage]:
        """See `StatsSource.stats`."""
        return await self._containers.stats(container_ids)

    async def sandbox_stats(
        self, sandbox_ids: Sequence[SandboxId], /
    ) -> Mapping[SandboxId, ContainerUsage]:
        """See `SandboxStatsSource.sandbox_stats`."""
        return await self._sandboxes.stats(sandbox_ids)

    async def details(
        self, container_ids: Sequence[ContainerId], groups: frozenset[MetricGroup], /
    ) -> Mapping[ContainerId, ContainerDetail]:
        """See `MetricsSource.details`."""
        return await self._containers.details(container_ids, groups)

    # What an earlier daemon left

    async def recover(self) -> None:
        """Take over what carries this handler's name; remove what was only half made."""
        live = {each.process_id: each for each in await self._supervisor.processes()}
        for found in live.values():
            if found.labels.get("handler") == self._handler and found.labels["kind"] != "container":
                # Whoever asked for it is gone with the last daemon.
                await end_process(self._supervisor, found.process_id)
        await self._sandboxes.restore()
        for bundle in self._calls.bundles():
            await self._recover_container(bundle, live.get(ProcessId(bundle.path.name)))

    async def _recover_container(self, bundle: Bundle, found: LiveProcess | None) -> None:
        container = bundle.read()
        if found is None:
            _log.warning("container %s was only half made: removed", container.id)
            await self._calls.discard(container.id)
            return
        started = found.exit is not None or await self._calls.was_started(container.id)
        await self._containers.take_over(container, found, started=started)


class CheckpointingBackend(OciBackend):
    """Implements `Checkpointable` too: a runtime that has the commands ``checkpoint`` and ``restore``."""

    def __init__(self, context: RuntimeContext, calls: Calls, cgroups: Cgroups) -> None:
        super().__init__(context, calls, cgroups)
        self._criu = Criu(calls)
        self._resumed: set[ContainerId] = set()
        """Restored, which is running already: `start` has nothing to do."""

    async def freeze(self, container_ids: Sequence[ContainerId], /) -> None:
        """See `Checkpointable.freeze`."""
        try:
            for each in container_ids:
                self._containers.alive(each)
                self._calls.bundle(each).mark_frozen(frozen=True)
                await self._calls.tool.run("pause", each)
        except BaseException:
            await asyncio.shield(self.thaw(container_ids))
            raise

    async def thaw(self, container_ids: Sequence[ContainerId], /) -> None:
        """See `Checkpointable.thaw`."""
        for each in container_ids:
            bundle, container = self._calls.bundle(each), self._containers.get(each)
            if container is None or not bundle.is_marked_frozen():
                continue
            if not container.is_dead() and await self._calls.is_paused(each):
                await self._calls.tool.run("resume", each)
            bundle.mark_frozen(frozen=False)

    @override
    async def recover(self) -> None:
        """Take over what is alive; what stands still since an earlier daemon died goes on."""
        await super().recover()
        await self.thaw(list(self._containers.statuses()))

    async def capture(self, container_id: ContainerId, directory: Path, /) -> None:
        """See `Checkpointable.capture`."""
        self._containers.alive(container_id)
        await self._criu.checkpoint(container_id, directory)

    async def restore(self, spec: ContainerSpec, directory: Path, /) -> None:
        """See `Checkpointable.restore`. The runtime knows no "created" of what it restores: it runs at once."""
        await self._make(spec, partial(self._criu.restore, directory))
        self._resumed.add(spec.id)

    @override
    async def start(self, container_id: ContainerId, /) -> BackendStatus:
        """See `RuntimeBackend.start`."""
        if container_id not in self._resumed:
            return await super().start(container_id)
        self._resumed.discard(container_id)
        self._calls.bundle(container_id).mark_started()
        return self._containers.mark_started(self._containers.known(container_id))
