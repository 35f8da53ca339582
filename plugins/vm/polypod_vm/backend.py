"""The backend: a pod is a machine; its containers are launched inside by the same plans as on a host."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal as signals
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from polypod.backend import usage as host_usage
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
    Inventory,
    NotFound,
    PolypodError,
    Resources,
    RuntimeContext,
    SandboxDied,
    SandboxId,
    SandboxSpec,
    Session,
    Unavailable,
    new_id,
)
from polypod_vm import guests, launching
from polypod_vm.domain import Domain
from polypod_vm.guests import Guests
from polypod_vm.hypervisor import Hypervisor
from polypod_vm.inventory import Container, exit_status, restored, usage, uuid_of
from polypod_vm.link import Message
from polypod_vm.machine import Machine, Places, domain_name, read_note
from polypod_vm.options import VmOptions, parse
from polypod_vm.placing import PodCgroups
from polypod_vm.service import Service
from polypod_vm.sessions import ExecSession

_log = logging.getLogger(__name__)
_EXITS_S: Final = 15.0
_LIBVIRTS_OWN: Final = Path("/run/libvirt/qemu")
"""Where a libvirt that is not ours, run by root, notes who QEMU is."""
_NOT_EXECUTED: Final = 127
"""What shells answer for a program that could not be executed."""


async def open_backend(context: RuntimeContext) -> VmBackend:
    """Open the backend and find the machines that an earlier daemon left.

    Raises:
        InvalidArgument: an option is wrong.
    """
    backend = VmBackend(context, parse(context.handler, context.options))
    await backend.restore()
    return backend


class VmBackend:
    """Implements `RuntimeBackend`, `Execs`, `StatsSource` and `Forwards`."""

    def __init__(self, context: RuntimeContext, options: VmOptions) -> None:
        self._handler = context.handler
        self._supervisor = context.supervisor
        self._options = options
        self._guests = Guests(context.root, options)
        self._cgroups = PodCgroups(context.cgroup_parent)
        self._service: Service | None = None
        self._stopped = False
        if options.uri:
            self._hypervisor = Hypervisor(options.uri)
            self._machines_directory = context.state / "vms"
        else:
            self._service = Service(
                context.handler, context.state, context.root, context.supervisor
            )
            self._hypervisor = self._service.hypervisor()
            self._machines_directory = self._service.run / "vms"
        self._machines: dict[SandboxId, Machine] = {}
        self._containers: dict[ContainerId, Container] = {}
        self._execs: dict[str, ExecSession] = {}
        self._events: asyncio.Queue[BackendEvent] = asyncio.Queue()
        self._exited = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    # Sandboxes

    async def create_sandbox(self, spec: SandboxSpec, /) -> None:
        """See `RuntimeBackend.create_sandbox`."""
        if spec.id in self._machines:
            raise AlreadyExists(f"sandbox {spec.id} has a VM already")
        await self._have_libvirt()
        image = await self._guests.image()
        accel = await self._guests.accel(image.digest, self._probe)
        machine = self._machine(spec.id)
        memory, vcpus = (
            guests.memory_mib(spec.config, self._options),
            guests.vcpus(spec.config, self._options),
        )
        domain = await self._domain(spec.id, accel, memory, vcpus)
        await machine.boot(spec, domain, self._options.boot_s)
        self._machines[spec.id] = machine

    async def _have_libvirt(self) -> None:
        if self._service is not None:
            self._stopped = False
            await self._service.ensure(self._hypervisor)
        else:
            await self._hypervisor.open()

    async def _probe(self) -> bool:
        name = SandboxId("0" * 64)
        domain = await self._domain(name, "kvm", self._options.memory_mib, 1)
        return await self._machine(name).probe(domain, guests.KVM_PROBE_S)

    def _places(self, sandbox_id: SandboxId) -> Places:
        name, directory = domain_name(sandbox_id), self._machines_directory / sandbox_id[:24]
        if self._service is None:
            return Places(directory, directory, _LIBVIRTS_OWN / f"{name}.pid")
        inside, log = self._service.inside(directory), self._service.emulator_log(name)
        return Places(directory, inside, self._service.run / "qemu" / f"{name}.pid", log)

    async def _domain(self, sandbox_id: SandboxId, accel: str, memory: int, vcpus: int) -> Domain:
        image, places = await self._guests.image(), self._places(sandbox_id)
        return Domain(
            name=domain_name(sandbox_id),
            uuid=uuid_of(sandbox_id),
            accel=accel,
            memory_mib=memory,
            vcpus=vcpus,
            kernel=image.kernel,
            initramfs=image.initramfs,
            command_line=image.command_line,
            channel=places.inside / "channel",
            console=places.inside / "console",
            emulator=Path(guests.emulator() or "qemu-system-x86_64"),
        )

    def _machine(self, sandbox_id: SandboxId) -> Machine:
        return Machine(
            sandbox_id,
            self._places(sandbox_id),
            self._supervisor,
            self._hypervisor,
            self._cgroups,
            on_event=partial(self._guest_event, sandbox_id),
            on_dead=partial(self._machine_died, sandbox_id),
        )

    async def stop_sandbox(self, sandbox_id: SandboxId, /) -> None:
        """See `RuntimeBackend.stop_sandbox`: the machine goes with what ran in it."""
        machine = self._machines.get(sandbox_id)
        if machine is None or machine.note.stopped:
            return
        alive = [each for each in self._of(sandbox_id) if each.exit is None]
        try:
            for container in alive:
                await self._signal(container, signals.SIGKILL, whole=True)
            for container in alive:
                await self._gone(container)
        except (PolypodError, TimeoutError) as error:
            # They end with the machine; what their codes were nobody knows then.
            _log.warning("sandbox %s: %s", sandbox_id, error)
        machine.note.stopped = True
        machine.write_note()
        await self._end(machine)
        await self._all_exited(sandbox_id)

    async def _end(self, machine: Machine) -> None:
        """End a machine; a libvirtd that was killed is started again for it, and finds it."""
        await self._have_libvirt()
        await machine.end()

    async def remove_sandbox(self, sandbox_id: SandboxId, /) -> None:
        """See `RuntimeBackend.remove_sandbox`."""
        machine = self._machines.get(sandbox_id)
        if machine is None:
            return
        await self.stop_sandbox(sandbox_id)
        for container in self._of(sandbox_id):
            self._containers.pop(container.id, None)
        await machine.remove()
        self._machines.pop(sandbox_id, None)

    # Containers

    async def create(self, spec: ContainerSpec, /) -> None:
        """See `RuntimeBackend.create`."""
        machine = self._alive_machine(spec.sandbox.id)
        if spec.id in self._containers:
            raise AlreadyExists(f"container {spec.id} exists")
        image = launching.block_image(spec.rootfs)
        request = launching.launch_request(spec, image)
        await self._have_libvirt()
        await machine.attach(image)
        mode = spec.request.security.namespaces.pid
        container = Container(spec.id, spec.sandbox.id, mode)
        # Known before it runs: its exit may be told before the launch is answered.
        self._containers[spec.id] = container
        machine.expect(spec.id)
        try:
            await machine.call(request, launching.streams_of(spec.stdio))
        except BaseException:
            self._containers.pop(spec.id, None)
            machine.forget(spec.id)
            self._behind(self._discard(machine, spec.id))
            raise

    async def start(self, container_id: ContainerId, /) -> BackendStatus:
        """See `RuntimeBackend.start`."""
        container = self._known(container_id)
        machine = self._alive_machine(container.sandbox_id)
        if container.started:
            raise BackendError(f"container {container_id}: it was started already")
        try:
            await machine.call({"op": "release", "process": container_id})
        except BackendError:
            # It never ran: there is no exit to come, and nothing to kill.
            container.exit = ExitStatus(_NOT_EXECUTED, finished_at_ns=time.time_ns())
            raise
        container.started = True
        if container.exit is not None:
            # It was faster than the answer to its own start.
            self._tell_exit(container, container.exit)
        return BackendStatus(container.id, container.sandbox_id, BackendState.RUNNING)

    async def kill(self, container_id: ContainerId, signal: int, /, *, whole: bool = False) -> None:
        """See `RuntimeBackend.kill`."""
        container = self._containers.get(container_id)
        if container is None or self._machines[container.sandbox_id].dead:
            return
        if container.exit is None or whole:
            await self._signal(container, signal, whole=whole)

    async def _signal(self, container: Container, signal: int, *, whole: bool) -> None:
        request = {"op": "kill", "process": container.id, "signal": signal, "whole": whole}
        await self._machines[container.sandbox_id].call(request)

    async def delete(self, container_id: ContainerId, /) -> None:
        """See `RuntimeBackend.delete`."""
        container = self._containers.get(container_id)
        if container is None:
            return
        machine = self._machines[container.sandbox_id]
        if not machine.dead:
            if container.exit is None:
                await self._signal(container, signals.SIGKILL, whole=True)
                await self._gone(container)
            await machine.call({"op": "delete", "process": container_id})
            machine.forget(container_id)
        self._containers.pop(container_id, None)

    async def update(self, container_id: ContainerId, resources: Resources, /) -> None:
        """See `RuntimeBackend.update`."""
        container = self._known(container_id)
        machine = self._alive_machine(container.sandbox_id)
        await machine.call(launching.update_request(container_id, resources))

    async def status(self, container_id: ContainerId, /) -> BackendStatus:
        """See `RuntimeBackend.status`."""
        return self._known(container_id).status()

    async def list(self) -> Inventory:
        """See `RuntimeBackend.list`."""
        return Inventory(
            {name: not machine.dead for name, machine in self._machines.items()},
            {each.id: each.status() for each in self._containers.values()},
        )

    async def events(self) -> AsyncIterator[BackendEvent]:
        """See `RuntimeBackend.events`."""
        while True:
            yield await self._events.get()

    async def close(self) -> None:
        """See `RuntimeBackend.close`; a libvirtd of ours goes when no machine needs it."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for machine in self._machines.values():
            machine.close()
        await self._hypervisor.close()
        if self._service is not None:
            if not self._machines:
                await self.destroy()
            self._service.close()
        self._machines.clear()
        self._containers.clear()
        self._service = None

    async def destroy(self) -> None:
        """End the libvirtd of ours; no machine needs it any more."""
        if self._service is None or self._stopped:
            return
        await self._service.stop()
        self._stopped = True

    # Execs, counters

    async def exec(self, spec: ExecSpec, /) -> Session:
        """See `Execs.exec`."""
        container = self._known(spec.container_id)
        if container.exit is not None or not container.started:
            raise BackendError(f"container {spec.container_id}: it does not run")
        machine = self._alive_machine(container.sandbox_id)
        session = ExecSession(machine, spec.id)
        self._execs[spec.id] = session
        try:
            request = launching.exec_request(spec, container.pid_mode)
            await machine.call(request, launching.streams_of(spec.stdio))
        except BaseException:
            self._execs.pop(spec.id, None)
            self._behind(self._discard(machine, spec.id))
            raise
        return session

    async def stats(
        self, container_ids: Sequence[ContainerId], /
    ) -> Mapping[ContainerId, ContainerUsage]:
        """See `StatsSource.stats`: counted by the guest's own cgroups."""
        wanted: dict[SandboxId, list[ContainerId]] = {}
        for each in container_ids:
            container = self._containers.get(each)
            if container is not None and container.exit is None:
                wanted.setdefault(container.sandbox_id, []).append(each)
        asked = [self._stats(self._machines[name], ids) for name, ids in wanted.items()]
        found: dict[ContainerId, ContainerUsage] = {}
        for answer in await asyncio.gather(*asked):
            found.update(answer)
        return found

    async def sandbox_stats(
        self, sandbox_ids: Sequence[SandboxId], /
    ) -> Mapping[SandboxId, ContainerUsage]:
        """See `SandboxStatsSource.sandbox_stats`: what QEMU and relay cost this host, by their cgroups."""
        known = ((each, self._machines.get(each)) for each in sandbox_ids)
        groups = {each: found.note.cgroup for each, found in known if found and not found.dead}
        return await asyncio.to_thread(host_usage.read_all, self._cgroups.cgroups, groups)

    @staticmethod
    async def _stats(
        machine: Machine, ids: Sequence[ContainerId]
    ) -> dict[ContainerId, ContainerUsage]:
        try:
            answer = await machine.call({"op": "stats", "processes": ids})
        except Unavailable:
            return {}
        return {name: usage(answer[name]) for name in ids if name in answer}

    async def forward(self, sandbox_id: SandboxId, port: int, /) -> int:
        """See `Forwards.forward`: the connection is made in the guest, and comes over the channel."""
        machine = self._alive_machine(sandbox_id)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            request = {"op": "forward", "process": f"forward-{new_id()}", "port": port}
            try:
                await machine.call(request, {"connection": theirs.fileno()})
            except PolypodError as error:
                raise BackendError(f"sandbox {sandbox_id}: port {port}: {error}") from error
            return ours.detach()

    # What the guests tell

    def _guest_event(self, sandbox_id: SandboxId, message: Message) -> None:
        """A guest may lie, but only about what runs in it."""
        if message["event"] != "exit":
            return
        name = str(message["process"])
        session = self._execs.get(name)
        if session is not None and session.machine.id == sandbox_id:
            del self._execs[name]
            session.ended(exit_status(message))
            return
        container = self._containers.get(ContainerId(name))
        if container is not None and container.sandbox_id == sandbox_id:
            self._note_exit(container, exit_status(message), oom_killed=bool(message["oom"]))

    def _note_exit(self, container: Container, status: ExitStatus, *, oom_killed: bool) -> None:
        if container.exit is not None:
            return
        container.exit, container.oom_killed = status, oom_killed
        if container.started:
            self._tell_exit(container, status)
        self._behind(self._wake())

    def _tell_exit(self, container: Container, status: ExitStatus) -> None:
        self._events.put_nowait(ContainerExited(container.id, status, container.oom_killed))

    async def _wake(self) -> None:
        async with self._exited:
            self._exited.notify_all()

    def _machine_died(self, sandbox_id: SandboxId, why: str) -> None:
        machine = self._machines.get(sandbox_id)
        if machine is None:
            return
        self._behind(self._bury(machine, why))

    async def _bury(self, machine: Machine, why: str) -> None:
        """A machine ended by itself or was ended by somebody else."""
        await self._all_exited(machine.id)
        tail = machine.console_tail()
        self._events.put_nowait(
            SandboxDied(machine.id, f"{why}; end of its console: {tail or 'empty'}")
        )
        await self._end(machine)

    async def _all_exited(self, sandbox_id: SandboxId) -> None:
        """What still ran in a machine that has ended is gone, and nobody can know how."""
        now = time.time_ns()
        for container in self._of(sandbox_id):
            self._note_exit(container, ExitStatus(None, finished_at_ns=now), oom_killed=False)
        for name, session in list(self._execs.items()):
            if session.machine.id == sandbox_id:
                del self._execs[name]
                session.ended(ExitStatus(None, finished_at_ns=now))

    # What an earlier daemon left

    async def restore(self) -> None:
        """Take over the machines whose notes are there."""
        if not self._machines_directory.is_dir():
            return
        for directory in sorted(self._machines_directory.iterdir()):
            found = read_note(directory / "note.json")
            if found is None:
                # The daemon ended before anything was made.
                await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
                continue
            sandbox_id, note = found
            machine = self._machine(sandbox_id)
            machine.note = note
            self._machines[sandbox_id] = machine
            if note.stopped:
                machine.dead = "it was stopped"
            else:
                await self._adopt(machine)

    async def _adopt(self, machine: Machine) -> None:
        try:
            rows = await machine.adopt()
        except PolypodError as error:
            machine.dead = str(error)
            _log.warning("sandbox %s: its VM is gone: %s", machine.id, error)
            self._behind(self._end(machine))
            return
        for name, row in rows.items():
            if row["kind"] == "exec":
                # Whoever asked for it is gone with the last daemon, and so is its output.
                self._behind(self._discard(machine, name))
                continue
            if name in machine.note.containers:
                self._containers[ContainerId(name)] = restored(
                    machine.id, machine.note.pid_mode, name, row
                )

    async def _discard(self, machine: Machine, name: str) -> None:
        try:
            await machine.call({"op": "kill", "process": name, "signal": 9, "whole": True})
            await machine.call({"op": "delete", "process": name})
        except PolypodError as error:
            _log.debug("process %s is gone already: %s", name, error)

    # Small things

    def _behind(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("behind an answer: %s", task.exception(), exc_info=task.exception())

    async def _gone(self, container: Container) -> None:
        async with asyncio.timeout(_EXITS_S), self._exited:
            await self._exited.wait_for(lambda: container.exit is not None)

    def _of(self, sandbox_id: SandboxId) -> Sequence[Container]:
        return [each for each in self._containers.values() if each.sandbox_id == sandbox_id]

    def _known(self, container_id: ContainerId) -> Container:
        container = self._containers.get(container_id)
        if container is None:
            raise NotFound(f"container {container_id}: not in handler {self._handler!r}")
        return container

    def _alive_machine(self, sandbox_id: SandboxId) -> Machine:
        machine = self._machines.get(sandbox_id)
        if machine is None:
            raise NotFound(f"sandbox {sandbox_id}: not in handler {self._handler!r}")
        if machine.dead:
            raise BackendError(f"sandbox {sandbox_id}: its VM is gone: {machine.dead}")
        return machine
