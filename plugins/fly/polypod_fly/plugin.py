"""``fly``: a root directory of its own and nothing else. No isolation: the baseline of every comparison.

The whole plugin is this file and `polypod_fly.host`; README.md walks through it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal as signals
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from polypod.plan.operations import Plan
from polypod.plugin import (
    BackendError,
    BackendEvent,
    BackendState,
    BackendStatus,
    BlockRootfs,
    ContainerExited,
    ContainerId,
    ContainerSpec,
    DirectoryRootfs,
    ExecSpec,
    ExitStatus,
    Feature,
    Hooks,
    InvalidArgument,
    Inventory,
    LiveProcess,
    NotFound,
    OverlayRootfs,
    ProcessId,
    Resources,
    Rootfs,
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
from polypod.spec.compile import ExecSources, MountSource, Sources, compile_container, compile_exec
from polypod_fly.host import FlySession, Group, Opened

HOST_TREES = ("/proc", "/sys", "/dev")
"""Bound from the host as they are: a program in here sees what a program on the host sees."""


class FlyPlugin(Hooks):
    """The entry point: offers one runtime type."""

    @override
    @hookimpl
    def polypod_runtime_types(self) -> Sequence[RuntimeType]:
        """Offer ``fly``."""
        return (
            RuntimeType(
                name="fly",
                summary="chroot only: no isolation at all, the baseline of every comparison",
                open=open_backend,
                rootfs_forms=(RootfsForm.OVERLAY, RootfsForm.DIRECTORY),
                features=frozenset(
                    [
                        *(Feature.HOST_NETWORK, Feature.HOST_PID, Feature.HOST_IPC),
                        *(Feature.PRIVILEGED, Feature.HOST_PATH_MOUNTS, Feature.TTY),
                    ]
                ),
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
    for found in await context.supervisor.processes():
        if found.labels.get("handler") == context.handler:
            await backend.restore(found)
    backend.listen()
    return backend


@dataclass(slots=True)
class Container:
    """One container; its process carries its id."""

    id: ContainerId
    sandbox_id: SandboxId
    group: Group
    pid: int
    started: bool = False
    exit: ExitStatus | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def status(self) -> BackendStatus:
        """Return the contract's view."""
        living = BackendState.RUNNING if self.started else BackendState.CREATED
        state = BackendState.STOPPED if self.exit is not None else living
        pid = self.pid if self.exit is None else None
        return BackendStatus(self.id, self.sandbox_id, state, pid, self.exit)


class FlyBackend:
    """Implements `RuntimeBackend` and `Execs`."""

    def __init__(self, context: RuntimeContext) -> None:
        self._handler = context.handler
        self._supervisor = context.supervisor
        self._notes = (
            context.state
        )  # one empty file for each sandbox, one for each started container
        self._containers: dict[ContainerId, Container] = {}
        self._events: asyncio.Queue[BackendEvent] = asyncio.Queue()
        self._listener: asyncio.Task[None] | None = None

    def _note(self, kind: str, name: str) -> Path:
        return self._notes / f"{kind}-{name}"

    # Sandboxes are nothing but a name here.

    async def create_sandbox(self, spec: SandboxSpec, /) -> None:
        """See `RuntimeBackend.create_sandbox`."""
        self._note("sandbox", spec.id).write_text(spec.cgroup)

    async def stop_sandbox(self, sandbox_id: SandboxId, /) -> None:
        """See `RuntimeBackend.stop_sandbox`."""
        for each in list(self._containers.values()):
            if each.sandbox_id == sandbox_id:
                await self._end(each)

    async def remove_sandbox(self, sandbox_id: SandboxId, /) -> None:
        """See `RuntimeBackend.remove_sandbox`."""
        note = self._note("sandbox", sandbox_id)
        for each in list(self._containers.values()):
            if each.sandbox_id == sandbox_id:
                await self.delete(each.id)
        if note.exists():
            Group(note.read_text()).remove()
            note.unlink()

    # Containers

    async def create(self, spec: ContainerSpec, /) -> None:
        """See `RuntimeBackend.create`: everything but the last step, execve."""
        if not self._note("sandbox", spec.sandbox.id).exists():
            raise NotFound(f"sandbox {spec.sandbox.id}: not in handler {self._handler!r}")
        group = Group(spec.cgroup)
        labels = {"handler": self._handler, "sandbox": spec.sandbox.id, "cgroup": spec.cgroup}
        with group.undone_on_error(), Opened() as opened:
            launched = await self._supervisor.launch(
                ProcessId(spec.id),
                _plan(spec, group, opened),
                fds=opened.fds,
                labels=labels,
                hold=True,
            )
        os.close(launched.pidfd)
        self._containers[spec.id] = Container(spec.id, spec.sandbox.id, group, launched.pid)

    async def start(self, container_id: ContainerId, /) -> BackendStatus:
        """See `RuntimeBackend.start`."""
        container = self._known(container_id)
        container.started = True
        try:
            await self._supervisor.release(ProcessId(container_id))
        except BackendError:
            # It never ran: no exit will be told.
            container.exit = ExitStatus(127)
            container.ended.set()
            raise
        self._note("started", container_id).touch()
        return replace(container.status(), state=BackendState.RUNNING)

    async def kill(self, container_id: ContainerId, signal: int, /, *, whole: bool = False) -> None:
        """See `RuntimeBackend.kill`."""
        container = self._containers.get(container_id)
        if container is None:
            return
        if whole:
            container.group.kill(signal)
        elif container.exit is None:
            with contextlib.suppress(NotFound):  # it has just gone: no error
                await self._supervisor.kill(ProcessId(container_id), signal)

    async def _end(self, container: Container) -> None:
        container.group.kill(signals.SIGKILL)
        await container.ended.wait()

    async def delete(self, container_id: ContainerId, /) -> None:
        """See `RuntimeBackend.delete`."""
        container = self._containers.get(container_id)
        if container is None:
            return
        await self._end(container)
        container.group.remove()
        await self._supervisor.forget(ProcessId(container_id))
        self._note("started", container_id).unlink(missing_ok=True)
        self._containers.pop(container_id, None)

    async def update(self, container_id: ContainerId, resources: Resources, /) -> None:
        """See `RuntimeBackend.update`."""
        self._known(container_id)
        raise Unsupported(f"container {container_id}: fly has no limits: {resources}")

    async def status(self, container_id: ContainerId, /) -> BackendStatus:
        """See `RuntimeBackend.status`."""
        return self._known(container_id).status()

    async def list(self) -> Inventory:
        """See `RuntimeBackend.list`."""
        names = (path.name.partition("-")[2] for path in self._notes.glob("sandbox-*"))
        containers = {each.id: each.status() for each in self._containers.values()}
        return Inventory({SandboxId(name): True for name in names}, containers)

    async def events(self) -> AsyncIterator[BackendEvent]:
        """See `RuntimeBackend.events`."""
        while True:
            yield await self._events.get()

    async def close(self) -> None:
        """See `RuntimeBackend.close`."""
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)

    async def exec(self, spec: ExecSpec, /) -> Session:
        """See `Execs.exec`: the container's root, in a child cgroup by which it can be ended."""
        container = self._known(spec.container_id)
        if container.exit is not None or not container.started:
            raise BackendError(f"container {container.id}: it does not run")
        group = container.group.child(spec.id)
        labels = {"handler": self._handler, "exec": container.id}
        with group.undone_on_error(), Opened() as opened:
            sources = ExecSources(
                pidfd=opened.take(os.pidfd_open(container.pid)),
                kinds=("mount",),
                streams=opened.streams(spec.stdio),
                cgroups=(opened.take(group.open()),),
            )
            plan = compile_exec(spec.process, None, sources)
            launched = await self._supervisor.launch(
                ProcessId(spec.id), plan, fds=opened.fds, labels=labels
            )
        return FlySession(self._supervisor, launched, group)

    def _known(self, container_id: ContainerId) -> Container:
        if container_id not in self._containers:
            raise NotFound(f"container {container_id}: not in handler {self._handler!r}")
        return self._containers[container_id]

    # What happens without being asked

    async def restore(self, found: LiveProcess) -> None:
        """Take over a process that an earlier daemon launched; an exec is of no use to anybody."""
        if "exec" in found.labels:
            with contextlib.suppress(NotFound):
                await self._supervisor.kill(found.process_id, signals.SIGKILL)
            await self._supervisor.wait(found.process_id)
            await self._supervisor.forget(found.process_id)
            return
        container_id, labels = ContainerId(found.process_id), found.labels
        container = Container(
            container_id, SandboxId(labels["sandbox"]), Group(labels["cgroup"]), found.pid
        )
        container.started = self._note("started", container_id).exists()
        self._containers[container_id] = container
        if found.exit is not None:
            container.exit = found.exit
            container.ended.set()

    def listen(self) -> None:
        """Begin to take note of exits."""
        self._listener = asyncio.get_running_loop().create_task(self._listen())

    async def _listen(self) -> None:
        async for told in self._supervisor.exits():
            container = self._containers.get(ContainerId(told.process_id))
            if container is not None and container.exit is None:
                container.exit = told.status
                container.ended.set()
                self._events.put_nowait(ContainerExited(container.id, told.status))


def _plan(spec: ContainerSpec, group: Group, opened: Opened) -> Plan:
    """Compile what core asks for, less everything that would isolate."""
    shared = [OciMount(path, "bind", path, ("rbind",)) for path in HOST_TREES]
    asked = [each for each in spec.config.mounts if "rbind" in each.options]
    shm = str(spec.sandbox.directory / "shm")  # a pod has none of its own: it is the host's
    kept = [each for each in asked if each.source != shm]
    config = replace(
        spec.config,
        mounts=(*shared, *kept),
        linux=Linux(namespaces=(Namespace("mount"),)),
    )
    sources = Sources(
        root=_root(spec.rootfs, opened),
        streams=opened.streams(spec.stdio),
        cgroups=(opened.take(group.open()),),
        mounts={
            each.destination: MountSource(
                opened.tree(Path(each.source), each.options), Path(each.source).is_dir()
            )
            for each in (*shared, *kept)
        },
    )
    return compile_container(config, sources)


def _root(rootfs: Rootfs, opened: Opened) -> str:
    match rootfs:
        case OverlayRootfs():
            return opened.overlay(rootfs)
        case DirectoryRootfs(path):
            return opened.tree(path)
        case BlockRootfs(path):
            raise Unsupported(f"{path}: fly has no use for a block image")
