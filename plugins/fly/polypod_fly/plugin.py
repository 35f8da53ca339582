"""``fly``: a root directory of its own and nothing else. README.md walks through this file, the whole plugin."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from polypod.backend.cgroups import Cgroups, discover
from polypod.backend.containers import Container, Containers, end_process, executes
from polypod.backend.descriptors import Descriptors
from polypod.backend.mounts import open_binds, open_rootfs
from polypod.backend.sandboxes import Sandboxes
from polypod.backend.sessions import launch_exec
from polypod.plan.operations import Plan
from polypod.plugin import (
    BackendError,
    BackendEvent,
    BackendStatus,
    ContainerId,
    ContainerSpec,
    ExecSpec,
    Feature,
    Hooks,
    InvalidArgument,
    Inventory,
    Resources,
    RootfsForm,
    RuntimeBackend,
    RuntimeContext,
    RuntimeType,
    SandboxId,
    SandboxSpec,
    Session,
    Unsupported,
    hookimpl,
    override,
)
from polypod.plugin.oci import Linux, Namespace, OciMount
from polypod.spec.compile import Sources, compile_container

HOST_TREES = ("/proc", "/sys", "/dev")
"""Bound from the host as they are: a program in here sees what a program on the host sees."""


class FlyPlugin(Hooks):
    """The entry point: offers one runtime type."""

    @override
    @hookimpl
    def polypod_runtime_types(self) -> Sequence[RuntimeType]:
        """Offer ``fly``."""
        host = (Feature.HOST_NETWORK, Feature.HOST_PID, Feature.HOST_IPC, Feature.PRIVILEGED)
        return (
            RuntimeType(
                name="fly",
                summary="chroot only: no isolation at all, the baseline of every comparison",
                open=open_backend,
                rootfs_forms=(RootfsForm.OVERLAY, RootfsForm.DIRECTORY, RootfsForm.EROFS),
                features=frozenset([*host, Feature.HOST_PATH_MOUNTS, Feature.TTY]),
                unusable="" if os.geteuid() == 0 else "needs root: a root directory is changed",
                exceptions={
                    "check_hostname": "a pod has the host's name: there is no uts namespace",
                    "check_update_keeps_the_container_running": "there are no limits to change",
                },
            ),
        )


plugin = FlyPlugin()


async def open_backend(context: RuntimeContext) -> RuntimeBackend:
    """Open one handler, and take over what an earlier daemon left running."""
    if context.options:
        raise InvalidArgument(f"handlers.{context.handler}.options: the type fly has none")
    backend = FlyBackend(context)
    await backend.restore()
    return backend


class FlyBackend:
    """Implements `RuntimeBackend` and `Execs`."""

    def __init__(self, context: RuntimeContext) -> None:
        self._handler = context.handler
        self._supervisor = context.supervisor
        # One hierarchy is enough to know who belongs to a container.
        self._cgroups = Cgroups(discover().only_tracking())
        self._containers = Containers(context, self._cgroups)
        self._sandboxes = Sandboxes(context, self._cgroups, self._containers)

    async def restore(self) -> None:
        """Take over by the labels of processes; an earlier daemon's exec is of no use to anybody."""
        await self._sandboxes.restore()
        for found in await self._supervisor.processes():
            if found.labels.get("handler") != self._handler:
                continue
            if found.labels["kind"] == "exec":
                await end_process(self._supervisor, found.process_id)
            else:
                container, started = Container.of_labels(found), executes(found.pid)
                await self._containers.take_over(container, found, started=started)

    async def create_sandbox(self, spec: SandboxSpec, /) -> None:
        """See `RuntimeBackend.create_sandbox`: a name and a cgroup."""
        await self._sandboxes.create(spec)

    async def stop_sandbox(self, sandbox_id: SandboxId, /) -> None:
        """See `RuntimeBackend.stop_sandbox`."""
        await self._sandboxes.stop(sandbox_id)

    async def remove_sandbox(self, sandbox_id: SandboxId, /) -> None:
        """See `RuntimeBackend.remove_sandbox`."""
        await self._sandboxes.remove(sandbox_id, self.delete)

    async def create(self, spec: ContainerSpec, /) -> None:
        """See `RuntimeBackend.create`: everything but the last step, execve."""
        self._sandboxes.known(spec.sandbox.id)
        # Its processes are the host's: nothing ends them with the first one but we.
        container = replace(Container.of(spec), own_pids=False)
        labels = container.labels(self._handler)
        with Descriptors() as opened:
            try:
                plan = await asyncio.to_thread(self._plan, spec, opened)
                launched = await self._supervisor.launch(
                    container.process_id, plan, fds=opened.fds, labels=labels, hold=True
                )
            except BaseException:
                await asyncio.shield(asyncio.to_thread(self._cgroups.end, spec.cgroup))
                raise
        self._containers.add(container, launched)

    def _plan(self, spec: ContainerSpec, opened: Descriptors) -> Plan:
        """Compile what core asks for, less everything that would isolate."""
        shared = [OciMount(path, "bind", path, ("rbind",)) for path in HOST_TREES]
        shm = str(spec.sandbox.directory / "shm")  # a pod has none of its own: it is the host's
        volumes = [m for m in spec.config.mounts if "rbind" in m.options and m.source != shm]
        mounts = (*shared, *volumes)
        self._cgroups.create(spec.cgroup)
        sources = Sources(
            root=opened.take(open_rootfs(spec.rootfs)),
            streams=opened.streams(spec.stdio),
            cgroups=tuple(map(opened.take, self._cgroups.join_descriptors(spec.cgroup))),
            mounts=open_binds(mounts, opened),
        )
        linux = Linux(namespaces=(Namespace("mount"),))
        return compile_container(replace(spec.config, mounts=mounts, linux=linux), sources)

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
        if container := self._containers.get(container_id):
            await self._containers.end(container)
            await asyncio.to_thread(self._cgroups.end, container.cgroup)
            await self._containers.forget(container)

    async def update(self, container_id: ContainerId, resources: Resources, /) -> None:
        """See `RuntimeBackend.update`."""
        self._containers.known(container_id)
        raise Unsupported(f"container {container_id}: fly has no limits: {resources}")

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

    async def exec(self, spec: ExecSpec, /) -> Session:
        """See `Execs.exec`: the container's root, in a child cgroup by which it can be ended."""
        container = self._containers.alive(spec.container_id)
        tools = (self._supervisor, self._cgroups, self._handler)
        return await launch_exec(*tools, container, spec, kinds=("mount",), seccomp=None)
