"""From records to resources and back, before the first call is answered.

Records are read first; then every backend, the supervisor, the network and the image stores are asked
what they hold. What is on record is compared with what there is; what is there without a record is
given back. One object that cannot be recovered costs that object, not the start.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass

from polypod.lifecycle.containers import Containers
from polypod.lifecycle.events import Events
from polypod.lifecycle.heart import Heart
from polypod.lifecycle.image_volumes import holder
from polypod.lifecycle.objects import Container, Sandbox
from polypod.lifecycle.parts import Handler
from polypod.lifecycle.records import ContainerRecord
from polypod.lifecycle.states import ContainerEvent, SandboxEvent
from polypod.lifecycle.teardown import Teardown
from polypod.lifecycle.trees import remove_tree
from polypod.lifecycle.views import ContainerState, SandboxState
from polypod.plugin.runtime import BackendState, BackendStatus, ContainerExited, Inventory
from polypod.plugin.services import ExitStatus

log = logging.getLogger(__name__)

_EMPTY = Inventory({}, {})


@dataclass(frozen=True, slots=True)
class Recovered:
    """What recovery found, for the log and for tests."""

    sandboxes: int
    containers: int
    rolled_back: tuple[str, ...]
    orphans: tuple[str, ...]


class Recovery:
    """Runs once, before the server answers anything but Unavailable."""

    def __init__(
        self, heart: Heart, containers: Containers, teardown: Teardown, events: Events
    ) -> None:
        self._heart = heart
        self._containers = containers
        self._teardown = teardown
        self._events = events
        self._rolled_back: list[str] = []
        self._orphans: list[str] = []

    async def run(self) -> Recovered:
        """Recover everything; what fails is logged and left for StopPodSandbox to repeat."""
        heart = self._heart
        self._load()
        inventories = {name: await self._inventory(h) for name, h in heart.parts.handlers.items()}
        await self._adopt_namespaces()
        for sandbox in list(heart.sandboxes):
            inventory = inventories.get(sandbox.record.chosen_handler, _EMPTY)
            await self._guard(f"sandbox {sandbox.record.id}", self._sandbox(sandbox, inventory))
        for name, inventory in inventories.items():
            await self._backend_orphans(heart.parts.handlers[name], inventory)
        await self._other_orphans()
        self._publish()
        return Recovered(
            len(heart.sandboxes),
            len(heart.containers),
            tuple(self._rolled_back),
            tuple(self._orphans),
        )

    # Records → memory

    def _load(self) -> None:
        heart = self._heart
        sandboxes = heart.sandbox_records.load().values()
        for record in sorted(sandboxes, key=lambda r: (r.created_at_ns, r.id)):
            heart.adopt_sandbox(record).delivered = True
        containers = heart.container_records.load().values()
        for each in sorted(containers, key=lambda r: (r.created_at_ns, r.id)):
            self._load_container(each)

    def _load_container(self, record: ContainerRecord) -> None:
        """A container whose sandbox has no record is not taken in: it becomes an orphan."""
        heart = self._heart
        sandbox = heart.sandboxes.exact(record.sandbox_id)
        if sandbox is None:
            heart.container_records.delete(record.id)
            heart.oci_configs.delete(record.id)
            self._orphans.append(f"record of container {record.id}")
            return
        container = heart.adopt_container(record, sandbox)
        container.delivered = True
        if record.state is ContainerState.EXITED:
            container.exited.set()

    # Records → resources

    async def _sandbox(self, sandbox: Sandbox, inventory: Inventory) -> None:
        if self._heart.parts.database.rebooted:
            await self._rebooted(sandbox)
            return
        if sandbox.record.state is SandboxState.CREATING:
            await self._roll_back(sandbox)
            return
        self._events.compare(sandbox, inventory)
        if sandbox.record.state is SandboxState.READY and self._namespaces_lost(sandbox):
            self._teardown.died(sandbox, "its namespaces are gone")
        for container in tuple(sandbox.containers.values()):
            await self._guard(
                f"container {container.record.id}", self._container(container, inventory)
            )

    async def _container(self, container: Container, inventory: Inventory) -> None:
        status = inventory.containers.get(container.record.id)
        if container.record.state is ContainerState.CREATING:
            await self._drop_half_made(container)
        elif container.record.state is ContainerState.CREATED and status is not None:
            await self._half_started(container, status)
        else:
            await self._events.compare_container(container, inventory)

    async def _drop_half_made(self, container: Container) -> None:
        """Undo a half-made container; if that fails it is UNKNOWN, so listed and removable."""
        message = "the server ended while making it"
        self._heart.move_container(container, ContainerEvent.STUCK, message=message)
        await self._containers.remove(container.record.id)
        self._rolled_back.append(f"container {container.record.id}")

    async def _half_started(self, container: Container, status: BackendStatus) -> None:
        """The last daemon ended between the backend's create and the record of the start."""
        heart = self._heart
        if status.state is BackendState.CREATED:
            await heart.handler_of(container.sandbox).backend.delete(container.record.id)
            await heart.parts.logs.close(container.record.id)
            self._rolled_back.append(f"start of container {container.record.id}")
            return
        heart.move_container(
            container,
            ContainerEvent.STARTED,
            started_at_ns=heart.clock.now_ns(),
            pid=status.pid,
        )
        if status.state is BackendState.STOPPED:
            ended = status.exit or ExitStatus(None, finished_at_ns=heart.clock.now_ns())
            exited = ContainerExited(container.record.id, ended, status.oom_killed)
            await self._containers.exited(exited)

    async def _roll_back(self, sandbox: Sandbox) -> None:
        """Undo a half-made sandbox: nobody was told its id."""
        heart, record = self._heart, sandbox.record
        heart.move_sandbox(sandbox, SandboxEvent.STUCK, message="the server ended while making it")
        await self._teardown.remove(record.id)
        self._rolled_back.append(f"sandbox {record.id}")

    async def _rebooted(self, sandbox: Sandbox) -> None:
        """Nothing of it lives after a reboot but its records and its lease (F6)."""
        heart, record = self._heart, sandbox.record
        if record.state is SandboxState.CREATING:
            heart.move_sandbox(sandbox, SandboxEvent.STUCK, message="the host rebooted")
            await self._teardown.remove(record.id)
            self._rolled_back.append(f"sandbox {record.id}")
            return
        self._teardown.died(sandbox, "the host rebooted")
        for container in tuple(sandbox.containers.values()):
            if container.record.state is ContainerState.RUNNING:
                await self._containers.lost(container, "the host rebooted")
            elif container.record.state is ContainerState.CREATING:
                await self._drop_half_made(container)
        await self._teardown.detach(sandbox)

    # Resources → records

    async def _inventory(self, handler: Handler) -> Inventory:
        """Ask a backend; one that does not answer must not make its pods look dead: the start fails."""
        return await handler.backend.list()

    async def _adopt_namespaces(self) -> None:
        heart = self._heart
        for sandbox_id in await heart.parts.supervisor.list_namespaces():
            sandbox = heart.sandboxes.exact(sandbox_id)
            if sandbox is not None:
                sandbox.namespaces = await heart.parts.supervisor.namespaces(sandbox_id)
            else:
                drop = heart.parts.supervisor.drop_namespaces(sandbox_id)
                await self._orphan(f"namespaces of sandbox {sandbox_id}", drop)

    def _namespaces_lost(self, sandbox: Sandbox) -> bool:
        held = sandbox.namespaces.fds if sandbox.namespaces is not None else {}
        return not held.keys() >= set(sandbox.record.namespaces)

    async def _backend_orphans(self, handler: Handler, inventory: Inventory) -> None:
        heart, backend = self._heart, handler.backend
        for container_id in inventory.containers:
            if heart.containers.exact(container_id) is None:
                kill = backend.kill(container_id, signal.SIGKILL, whole=True)
                await self._orphan(f"container {container_id}", kill)
                await self._guard(f"container {container_id}", backend.delete(container_id))
        for sandbox_id in inventory.sandboxes:
            if heart.sandboxes.exact(sandbox_id) is None:
                stop = backend.stop_sandbox(sandbox_id)
                await self._orphan(f"sandbox {sandbox_id}", stop)
                await self._guard(f"sandbox {sandbox_id}", backend.remove_sandbox(sandbox_id))

    async def _other_orphans(self) -> None:
        heart, parts = self._heart, self._heart.parts
        for sandbox_id in await parts.network.attached():
            if heart.sandboxes.exact(sandbox_id) is None:
                detach = parts.network.detach(sandbox_id, None)
                await self._orphan(f"lease of sandbox {sandbox_id}", detach)
        stores = {id(each.image_store): each.image_store for each in parts.handlers.values()}
        for store in stores.values():
            for container_id in await store.prepared():
                if heart.containers.exact(holder(container_id)) is None:
                    release = store.release(container_id)
                    await self._orphan(f"root file system of container {container_id}", release)
        self._directories("sandboxes", (each.record.id for each in heart.sandboxes))
        self._directories("containers", (each.record.id for each in heart.containers))

    def _directories(self, kind: str, known: Iterable[str]) -> None:
        """Remove the directories of objects that have no record."""
        parent = self._heart.parts.state / kind
        keep = set(known)
        for each in parent.iterdir() if parent.is_dir() else ():
            if each.name not in keep:
                self._orphans.append(f"directory {each.name}")
                try:
                    remove_tree(each)
                except OSError as error:
                    log.warning("orphan left path=%s error=%s", each, error)

    def _publish(self) -> None:
        """Make the published state files agree with the records."""
        heart = self._heart
        for container_id in heart.state_files.published():
            if heart.containers.exact(container_id) is None:
                heart.state_files.withdraw(container_id)
        for container in heart.containers:
            heart.state_files.publish(container.view, container.directory)

    async def _orphan(self, what: str, removal: Awaitable[None]) -> None:
        log.warning("orphan removed: %s", what)
        self._orphans.append(what)
        await self._guard(what, removal)

    async def _guard(self, what: str, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception:
            log.exception("recovery of %s failed; it stays listed and removable", what)
