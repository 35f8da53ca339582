"""A runtime type whose containers are simulated: everything a backend does, no privilege, no kernel.

It is what tests of lifecycle run on, what a plugin author can read as the shortest complete backend, and
a server that can be tried without root. Programs are those of `polypod.testing.programs`.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from polypod.plugin.errors import (
    BackendError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from polypod.plugin.ids import ContainerId, SandboxId
from polypod.plugin.requests import Resources
from polypod.plugin.rootfs import RootfsForm
from polypod.plugin.runtime import (
    BackendEvent,
    BackendState,
    BackendStatus,
    ContainerDetail,
    ContainerSpec,
    ContainerUsage,
    ExecSpec,
    Feature,
    Inventory,
    MetricGroup,
    PodResources,
    RuntimeBackend,
    RuntimeContext,
    RuntimeType,
    SandboxSpec,
)
from polypod.plugin.services import ExitStatus, Session
from polypod.testing import sim_checkpoint
from polypod.testing.faults import parse_rule
from polypod.testing.process import Group, Process, Start
from polypod.testing.programs import execute, why_not
from polypod.testing.streams import Streams
from polypod.testing.world import SimContainer, World

FEATURES = frozenset(Feature) - {
    Feature.TARGET_PID,
    Feature.USER_NAMESPACES,
    Feature.BIDIRECTIONAL_MOUNTS,
    Feature.APPARMOR,
    Feature.SELINUX,
}
"""What a simulation can be asked for without telling a lie that matters; it isolates nothing at all."""


_SOURCE = "simulation"


class SimulatorBackend:
    """Implements `RuntimeBackend`, `Execs`, `Resizable`, `Checkpointable` and `StatsSource` over a `World`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._events = world.listen()
        self._closed = False

    # Sandboxes

    async def create_sandbox(self, spec: SandboxSpec, /) -> None:
        """See `polypod.plugin.runtime.RuntimeBackend`; so do all the others."""
        await self._begin("create_sandbox", spec.config.annotations)
        self.world.add_sandbox(spec)

    async def stop_sandbox(self, sandbox_id: SandboxId, /) -> None:
        """End everything in it."""
        await self._begin("stop_sandbox")
        await self.world.stop_sandbox(sandbox_id)

    async def remove_sandbox(self, sandbox_id: SandboxId, /) -> None:
        """Forget it."""
        await self._begin("remove_sandbox")
        await self.world.remove_sandbox(sandbox_id)

    # Containers

    async def create(self, spec: ContainerSpec, /) -> None:
        """Take the streams and note the program."""
        await self._begin("create", spec.request.annotations)
        if not spec.config.process.args:
            raise InvalidArgument(f"container {spec.id}: there is no program to run")
        self.world.add_container(spec)

    async def start(self, container_id: ContainerId, /) -> BackendStatus:
        """Run the program."""
        await self._begin("start")
        container = self.world.container(container_id)
        reason = why_not(container.start.args) if container.start else ""
        if reason:
            raise BackendError(f"container {container_id}: {reason}")
        self.world.run(container)
        return container.status

    async def kill(self, container_id: ContainerId, signal: int, /, *, whole: bool = False) -> None:
        """Deliver a signal."""
        await self._begin("kill")
        container = self.world.containers.get(container_id)
        if container is not None:
            self.world.kill(container, signal, whole=whole)

    async def delete(self, container_id: ContainerId, /) -> None:
        """Forget a container that does not run."""
        await self._begin("delete")
        container = self.world.containers.get(container_id)
        if container is not None:
            self.world.delete(container)

    async def update(self, container_id: ContainerId, resources: Resources, /) -> None:
        """Change the memory limit, the only one that the simulation knows."""
        await self._begin("update")
        container = self.world.container(container_id)
        if container.group is None or container.state is BackendState.STOPPED:
            raise FailedPrecondition(f"container {container_id} is stopped: it has no limits")
        limit = resources.memory_limit_in_bytes
        if 0 < limit < container.group.memory_bytes:
            raise FailedPrecondition(
                f"container {container_id}: {container.group.memory_bytes} bytes are in use, so memory "
                f"cannot be limited to {limit}"
            )
        if limit:
            container.group.memory_limit_bytes = max(limit, 0)

    async def resize(self, sandbox_id: SandboxId, limits: PodResources, /) -> None:
        """Note what the whole sandbox may take; nothing simulated exceeds it."""
        await self._begin("resize")
        self.world.sandbox(sandbox_id).limits = limits

    async def status(self, container_id: ContainerId, /) -> BackendStatus:
        """Return the state."""
        await self._begin("status")
        return self.world.container(container_id).status

    async def list(self) -> Inventory:
        """Return everything."""
        await self._begin("list")
        return Inventory(
            {each.id: each.healthy for each in self.world.sandboxes.values()},
            {each.id: each.status for each in self.world.containers.values()},
        )

    async def events(self) -> AsyncIterator[BackendEvent]:
        """Yield what happened since this backend was opened, each once."""
        while True:
            await self.world.faults.hit("events")
            yield await self._events.get()

    async def close(self) -> None:
        """Stop listening; the programs go on."""
        self._closed = True
        self.world.forget(self._events)

    # Optional powers

    async def exec(self, spec: ExecSpec, /) -> Session:
        """Run a further program."""
        await self._begin("exec")
        container = self.world.container(spec.container_id)
        group = container.group
        if container.state is not BackendState.RUNNING or group is None:
            raise FailedPrecondition(
                f"container {spec.container_id} is {container.state.value}, not running: "
                f"exec {spec.id} is not possible"
            )
        process = spec.process
        reason = why_not(process.args) if process.args else "there is no program to run"
        if reason:
            raise BackendError(f"exec {spec.id} in container {spec.container_id}: {reason}")
        start = Start(process.args, process.env, process.cwd, process.user)
        running = Process(group, start, Streams.adopt(spec.stdio))
        running.spawn(execute)
        return SimulatedSession(running)

    async def freeze(self, container_ids: Sequence[ContainerId], /) -> None:
        """Let programs stand still between two commands."""
        await self._begin("freeze")
        groups = [self._running(each) for each in container_ids]
        for group in groups:
            group.frozen = group.frozen or asyncio.Event()

    async def thaw(self, container_ids: Sequence[ContainerId], /) -> None:
        """Let them go on."""
        await self._begin("thaw")
        for each in container_ids:
            container = self.world.containers.get(each)
            group = container.group if container else None
            if group is not None and group.frozen is not None:
                frozen, group.frozen = group.frozen, None
                frozen.set()

    async def capture(self, container_id: ContainerId, directory: Path, /) -> None:
        """Write down where a program stands."""
        await self._begin("capture")
        sim_checkpoint.write(self.world.container(container_id), directory)

    async def restore(self, spec: ContainerSpec, directory: Path, /) -> None:
        """Create a container whose program goes on from there."""
        await self._begin("restore", spec.request.annotations)
        captured = sim_checkpoint.read(directory, spec.config.process.args)
        self.world.add_container(spec)
        self.world.container(spec.id).captured = captured

    def _running(self, container_id: ContainerId) -> Group:
        container = self.world.container(container_id)
        if container.state is not BackendState.RUNNING or container.group is None:
            raise FailedPrecondition(f"container {container_id} is {container.state.value}")
        return container.group

    async def stats(
        self, container_ids: Sequence[ContainerId], /
    ) -> Mapping[ContainerId, ContainerUsage]:
        """Return the counters of those that run."""
        await self._begin("stats")
        found = (self.world.containers.get(each) for each in container_ids)
        now = self.world.clock.now_ns()
        return {
            each.id: _usage(each, now)
            for each in found
            if each is not None and each.state is BackendState.RUNNING
        }

    async def details(
        self, container_ids: Sequence[ContainerId], groups: frozenset[MetricGroup], /
    ) -> Mapping[ContainerId, ContainerDetail]:
        """Return how many programs those that run have."""
        await self._begin("details")
        found = (self.world.containers.get(each) for each in container_ids)
        now = self.world.clock.now_ns()
        running = (each for each in found if each and each.state is BackendState.RUNNING)
        counted = MetricGroup.PROCESS in groups
        return {
            each.id: ContainerDetail(now, processes=len(each.group.processes) if counted else None)
            for each in running
            if each.group is not None
        }

    async def sandbox_stats(
        self, sandbox_ids: Sequence[SandboxId], /
    ) -> Mapping[SandboxId, ContainerUsage]:
        """Return what a sandbox's containers have used together, ended ones too."""
        await self._begin("sandbox_stats")
        now = self.world.clock.now_ns()
        return {
            each: _pod_usage(self.world.inside(each), now)
            for each in sandbox_ids
            if each in self.world.sandboxes
        }

    async def _begin(self, method: str, annotations: Mapping[str, str] | None = None) -> None:
        if self._closed:
            raise Unavailable(f"{method}: the simulator was closed")
        await self.world.faults.hit(method, annotations)


class SimulatedSession:
    """A running exec. Implements `polypod.plugin.services.Session`."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def wait(self) -> ExitStatus:
        """Return how it ended, once it has."""
        await self._process.ended.wait()
        return self._process.status or ExitStatus(None)

    async def kill(self, signal: int, /) -> None:
        """Signal it and everything it started."""
        for each in self._process.family():
            each.deliver(signal)
        await asyncio.sleep(0)

    async def resize(self, *, width: int, height: int) -> None:
        """Set the size of its terminal. FailedPrecondition: it has none."""
        streams = self._process.streams
        if not streams.terminal or streams.stdin is None:
            raise FailedPrecondition("the exec has no terminal, or has ended")
        size = struct.pack("HHHH", height, width, 0, 0)
        fcntl.ioctl(streams.stdin, termios.TIOCSWINSZ, size)


def _usage(container: SimContainer, now_ns: int) -> ContainerUsage:
    group = container.group
    if group is None:
        raise NotFound(f"container {container.id} was read from disk: it has no counters")
    memory = group.memory_bytes
    limit = group.memory_limit_bytes
    return ContainerUsage(
        timestamp_ns=now_ns,
        cpu_usage_core_ns=group.cpu_ns,
        memory_usage_bytes=memory,
        memory_working_set_bytes=memory,
        memory_rss_bytes=memory,
        memory_available_bytes=max(0, limit - memory) if limit else None,
        processes=len(group.processes),
        source=_SOURCE,
    )


def _pod_usage(containers: Sequence[SimContainer], now_ns: int) -> ContainerUsage:
    groups = [each.group for each in containers if each.group is not None]
    memory = sum(each.memory_bytes for each in groups)
    return ContainerUsage(
        timestamp_ns=now_ns,
        cpu_usage_core_ns=sum(each.cpu_ns for each in groups),
        memory_usage_bytes=memory,
        memory_working_set_bytes=memory,
        memory_rss_bytes=memory,
        processes=sum(len(each.processes) for each in groups),
        source=_SOURCE,
    )


def simulator_type(
    world: World | None = None,
    *,
    features: frozenset[Feature] = FEATURES,
    sandbox_namespaces: frozenset[str] = frozenset(),
) -> RuntimeType:
    """Return a runtime type.

    Args:
        world: where its containers live; None makes one for each handler's state directory.
        features: what it declares.
        sandbox_namespaces: kinds that core shall make; with `FakeSupervisor` any, without root none.
    """
    return RuntimeType(
        name="simulator",
        summary="no isolation at all: containers are simulated, for tests and demonstrations",
        open=_opener(world),
        rootfs_forms=(RootfsForm.DIRECTORY, RootfsForm.OVERLAY),
        features=features,
        sandbox_namespaces=sandbox_namespaces,
    )


def _opener(world: World | None) -> Callable[[RuntimeContext], Awaitable[RuntimeBackend]]:
    worlds: dict[str, World] = {}

    async def open_(context: RuntimeContext) -> RuntimeBackend:
        """Open a handler. Options: ``faults = {METHOD = RULE}``, as `polypod.testing.faults` has it."""
        place = world or worlds.get(str(context.state))
        if place is None:
            place = worlds[str(context.state)] = World(context.state)
        for key, value in context.options.items():
            if key != "faults" or not isinstance(value, Mapping):
                raise InvalidArgument(
                    f"handler {context.handler!r}: option {key!r} is unknown; the simulator has "
                    "faults, a table of METHOD = RULE"
                )
            for method, rule in value.items():
                place.faults.add(str(method), parse_rule(str(rule)))
        return SimulatorBackend(place)

    return open_
