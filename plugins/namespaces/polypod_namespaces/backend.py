"""The backend: sandboxes and containers as namespaces and cgroups, made through the supervisor.

It opens what a launch needs and compiles the plan (`polypod_namespaces.launching`); the supervisor runs it.
What every backend on a host does alike lies in `polypod.backend`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from polypod.backend.cgroups import Cgroups, discover
from polypod.backend.containers import Container, Containers, end_process, executes
from polypod.backend.descriptors import Descriptors
from polypod.backend.sandboxes import Sandboxes
from polypod.backend.sessions import launch_exec
from polypod.backend.users import Stage, why_not
from polypod.plugin.errors import BackendError, InvalidArgument
from polypod.plugin.ids import ContainerId, SandboxId
from polypod.plugin.oci import OciIdMapping
from polypod.plugin.requests import Resources
from polypod.plugin.runtime import (
    BackendEvent,
    BackendStatus,
    ContainerDetail,
    ContainerSpec,
    ContainerUsage,
    ExecSpec,
    Feature,
    Inventory,
    MetricGroup,
    PodResources,
    RuntimeContext,
    SandboxSpec,
)
from polypod.plugin.services import IdMaps, LiveProcess, Session
from polypod.spec.updates import pod_total
from polypod_namespaces.launching import Launches, joined_kinds, other_maps
from polypod_namespaces.plugin import FEATURES

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_THREADS = 8


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
    backend.users_problem = await _why_no_user_namespaces(context, backend.stage)
    if backend.users_problem:
        _log.warning(
            "handler %s: no pods with user namespaces: %s", context.handler, backend.users_problem
        )
    return backend


async def _why_no_user_namespaces(context: RuntimeContext, stage: Stage) -> str:
    """Try what a pod with a user namespace takes; return why it cannot be had, or an empty text."""
    ids = (OciIdMapping(0, 1 << 16, 1 << 16),)
    try:
        users = await context.supervisor.map_ids(IdMaps(ids, ids))
    except BackendError as error:
        return str(error)
    try:
        return await asyncio.to_thread(why_not, context.root, users, stage)
    finally:
        os.close(users)


class NamespacesBackend:
    """Implements `RuntimeBackend`, `Narrowed`, `Execs`, `Resizable` and `StatsSource`."""

    def __init__(self, context: RuntimeContext) -> None:
        self._handler = context.handler
        self._supervisor = context.supervisor
        self._cgroups = Cgroups(discover())
        self.stage = Stage(context.state / "stage")
        self._launches = Launches(self._cgroups, self.stage)
        self._threads = ThreadPoolExecutor(_THREADS, f"ns-{context.handler}")
        self.users_problem = ""
        """Why this host cannot have pods with user namespaces; empty if it can."""
        self._containers = Containers(context, self._cgroups, self._run)
        self._sandboxes = Sandboxes(context, self._cgroups, self._containers, self._run)

    @property
    def features(self) -> frozenset[Feature]:
        """See `Narrowed.features`: what this host can."""
        missing = {Feature.USER_NAMESPACES} if self.users_problem else set()
        return FEATURES - missing

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

    async def resize(self, sandbox_id: SandboxId, limits: PodResources, /) -> None:
        """See `Resizable.resize`."""
        sandbox = self._sandboxes.known(sandbox_id)
        total = pod_total(limits.resources, limits.overhead)
        await self._run(self._launches.update, sandbox.cgroup, total)

    # Containers

    async def create(self, spec: ContainerSpec, /) -> None:
        """See `RuntimeBackend.create`: everything is done but the last operation."""
        self._sandboxes.known(spec.sandbox.id)
        target = self._target(spec)
        container = Container.of(spec)
        with Descriptors() as descriptors:
            try:
                maps = await self._other_maps(spec, descriptors)
                plan = await self._run(self._launches.prepare, spec, descriptors, target, maps)
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
        self._containers.add(container, launched)

    async def _other_maps(self, spec: ContainerSpec, descriptors: Descriptors) -> dict[IdMaps, int]:
        found: dict[IdMaps, int] = {}
        for each in other_maps(spec.config):
            found[each] = await self._supervisor.map_ids(each)
            descriptors.take(found[each])
        return found

    def _target(self, spec: ContainerSpec) -> int:
        """Return the pidfd of the container whose processes this one joins; -1 if it joins none."""
        for each in spec.config.linux.namespaces:
            if each.type == "pid" and each.path.startswith("container:"):
                return self._containers.alive(ContainerId(each.path.partition(":")[2])).pidfd
        return -1

    async def start(self, container_id: ContainerId, /) -> BackendStatus:
        """See `RuntimeBackend.start`."""
        container = self._containers.known(container_id)
        try:
            await self._supervisor.release(container.process_id)
        except BackendError:
            self._containers.mark_failed(container)
            raise
        return self._containers.mark_started(container)

    async def kill(self, container_id: ContainerId, signal: int, /, *, whole: bool = False) -> None:
        """See `RuntimeBackend.kill`."""
        await self._containers.kill(container_id, signal, whole=whole)

    async def delete(self, container_id: ContainerId, /) -> None:
        """See `RuntimeBackend.delete`."""
        container = self._containers.get(container_id)
        if container is None:
            return
        await self._containers.end(container)
        await self._run(self._cgroups.end, container.cgroup)
        await self._containers.forget(container)

    async def update(self, container_id: ContainerId, resources: Resources, /) -> None:
        """See `RuntimeBackend.update`."""
        container = self._containers.known(container_id)
        await self._run(self._launches.update, container.cgroup, resources)

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
        self._threads.shutdown(wait=False, cancel_futures=True)

    # Execs, counters

    async def exec(self, spec: ExecSpec, /) -> Session:
        """See `Execs.exec`."""
        container = self._containers.alive(spec.container_id)
        return await launch_exec(
            self._supervisor,
            self._cgroups,
            self._handler,
            container,
            spec,
            kinds=joined_kinds(spec.config),
            seccomp=spec.config.linux.seccomp,
            watched=self._containers.is_watched(container),
        )

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

    async def restore(self) -> None:
        """Take over sandboxes and containers that carry this handler's name."""
        live = await self._supervisor.processes()
        await self._sandboxes.restore()
        for found in live:
            if found.labels.get("handler") == self._handler:
                await self._restore_process(found)

    async def _restore_process(self, found: LiveProcess) -> None:
        if found.labels["kind"] == "exec":
            # Whoever asked for it is gone with the last daemon, and so is its output.
            await end_process(self._supervisor, found.process_id)
        else:
            started = executes(found.pid)
            await self._containers.take_over(Container.of_labels(found), found, started=started)

    async def _run(self, work: Callable[..., _T], /, *arguments: object) -> _T:
        """Off the loop: file systems and cgroups may take their time."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, work, *arguments)
