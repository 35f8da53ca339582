"""All NRI plugins together: who is told what, in which order, and what comes of their answers."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from polypod.plugin import (
    FailedPrecondition,
    OciConfig,
    PodResources,
    PolypodError,
    Resources,
    SandboxId,
)
from polypod.plugin.ids import ContainerId
from polypod.plugin.observer import ContainerFacts, ObserverServices, SandboxFacts
from polypod_nri import describing, limits, syncing, wire
from polypod_nri.adjusting import Adjusted
from polypod_nri.connection import Gone, Refused
from polypod_nri.peer import Peer
from polypod_nri.settings import Settings
from polypod_nri.updates import Updates
from polypod_nri.wire import api

log = logging.getLogger(__name__)

_OURS: contextvars.ContextVar[bool] = contextvars.ContextVar("polypod_nri_asks", default=False)
"""Set in updates that a plugin has asked for: plugins are not asked what they think of them."""
_SHARE = 0.9
"""Of the time that core gives a hook, what plugins may use up together."""
M = TypeVar("M", bound=wire.Message)


class Relay:
    """Tells plugins, and does what they ask for."""

    def __init__(self, services: ObserverServices, settings: Settings) -> None:
        self._services = services
        self._settings = settings
        self._peers: list[Peer] = []
        self._sandboxes: dict[SandboxId, SandboxFacts] = {}
        """Last seen; what is being made, and is not listed, too."""
        self._containers: dict[ContainerId, ContainerFacts] = {}
        self._making: set[str] = set()
        """Ids that plugins were told of and that are not listed yet."""
        self._tasks: set[asyncio.Task[None]] = set()
        for sandbox in services.snapshot().sandboxes:
            self._sandboxes[sandbox.id] = sandbox
        for container in services.snapshot().containers:
            self._containers[container.id] = container

    # Plugins come and go

    def join(self, peer: Peer) -> None:
        """Take a configured plugin in: from this step on it is told everything.

        What there is now is told by Synchronize, what comes later by its own call: nothing twice, nothing
        not at all. That holds because both are decided in this one step of the loop.
        """
        seen = self._services.snapshot()
        making = self._making
        sandboxes = (*seen.sandboxes, *(s for s in self._sandboxes.values() if s.id in making))
        containers = (*seen.containers, *(c for c in self._containers.values() if c.id in making))
        self._peers.append(peer)
        self._peers.sort(key=lambda each: (each.index, each.name))

        async def synchronize(joined: Peer) -> None:
            updates = await syncing.synchronize(joined, sandboxes, containers)
            self._spawn(self._apply_all(updates, joined.title))
            log.info("NRI plugin connected name=%s", joined.title)

        peer.join(synchronize)

    def leave(self, peer: Peer) -> None:
        """Take a closed plugin out."""
        if peer in self._peers:
            self._peers.remove(peer)

    async def close(self) -> None:
        """End what runs beside calls."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Before the fact

    async def run_sandbox(self, facts: SandboxFacts) -> None:
        """A sandbox is made. Raises FailedPrecondition: a plugin refuses it."""
        self._sandboxes[facts.id] = facts
        self._making.add(facts.id)
        request = api.RunPodSandboxRequest(pod=describing.sandbox(facts))
        await self._ask_all("RunPodSandbox", request, api.RunPodSandboxResponse)

    async def stop_sandbox(self, facts: SandboxFacts) -> None:
        """A sandbox is about to be stopped: all are told. Raises FailedPrecondition as the first one says."""
        self._sandboxes[facts.id] = facts
        request = api.StopPodSandboxRequest(pod=describing.sandbox(facts))
        await self._ask_all(
            "StopPodSandbox", request, api.StopPodSandboxResponse, whatever_they_say=True
        )

    async def resize_sandbox(self, facts: SandboxFacts, wanted: PodResources) -> None:
        """Limits of a pod are about to change. Raises FailedPrecondition: a plugin refuses."""
        request = api.UpdatePodSandboxRequest(pod=describing.sandbox(facts))
        request.overhead_linux_resources.CopyFrom(limits.from_cri(wanted.overhead))
        request.linux_resources.CopyFrom(limits.from_cri(wanted.resources))
        await self._ask_all("UpdatePodSandbox", request, api.UpdatePodSandboxResponse)

    async def create_container(self, facts: ContainerFacts, config: OciConfig) -> OciConfig:
        """Return a new container's config as the plugins want it.

        Raises:
            FailedPrecondition: one refuses it, two contradict each other, or one that is required is not
                there.
        """
        facts = replace(facts, config=config)
        self._containers[facts.id] = facts
        self._making.add(facts.id)
        peers = self._listening("CreateContainer")
        validators = self._listening("ValidateContainerAdjustment")
        self._require()
        pod = self._pod(facts.sandbox_id)
        adjusted, updates = Adjusted(config), Updates()
        deadline = self._deadline()
        for peer in peers:
            now = replace(facts, config=adjusted.config)
            request = api.CreateContainerRequest(pod=pod, container=describing.container(now))
            answer = await self._answer(
                peer, "CreateContainer", request, api.CreateContainerResponse, deadline
            )
            if answer is not None:
                adjusted.apply(answer.adjust, peer.title)
                await self._add_cdi_devices(adjusted, peer.title)
                updates.add(answer.update, peer.title)
                self._evict(answer.evict, peer.title)
        if validators:
            await self._validate(validators, facts, adjusted, updates, deadline)
        self._containers[facts.id] = replace(facts, config=adjusted.config)
        await self._apply_before(updates, deadline)
        return adjusted.config

    async def _add_cdi_devices(self, adjusted: Adjusted, title: str) -> None:
        names = adjusted.take_cdi_devices()
        if not names:
            return
        try:
            adjusted.config = await self._services.cdi_devices(adjusted.config, names)
        except PolypodError as error:
            raise FailedPrecondition(f"NRI plugin {title}: {error}") from error

    async def start_container(self, facts: ContainerFacts) -> None:
        """A container is about to start. Raises FailedPrecondition: a plugin refuses."""
        self._containers[facts.id] = facts
        request = api.StartContainerRequest(**self._about(facts))
        await self._ask_all("StartContainer", request, api.StartContainerResponse)

    async def update_container(self, facts: ContainerFacts, wanted: Resources) -> Resources | None:
        """Return new limits as the plugins want them, or None to leave them.

        Raises:
            FailedPrecondition: one refuses them, or two contradict each other.
        """
        peers = [] if _OURS.get() else self._listening("UpdateContainer")
        if not peers:
            return None
        updates, deadline = Updates(), self._deadline()
        request = api.UpdateContainerRequest(**self._about(facts))
        request.linux_resources.CopyFrom(limits.from_cri(wanted))
        for peer in peers:
            answer = await self._answer(
                peer, "UpdateContainer", request, api.UpdateContainerResponse, deadline
            )
            if answer is not None:
                updates.add(answer.update, peer.title)
                self._evict(answer.evict, peer.title)
        own = updates.take(facts.id)
        self._spawn(self._apply_all(updates.all(), updates.title))
        if own is None:
            return None
        return updates.merged(wanted, own)

    # After the fact

    def sandbox_ready(self, sandbox_id: SandboxId) -> None:
        """A sandbox is listed now."""
        self._making.discard(sandbox_id)

    def sandbox_resized(self, facts: SandboxFacts) -> None:
        """Limits of a pod have changed."""
        self._sandboxes[facts.id] = facts
        request = api.PostUpdatePodSandboxRequest(pod=describing.sandbox(facts))
        self._tell("PostUpdatePodSandbox", request, api.PostUpdatePodSandboxResponse)

    def sandbox_removed(self, sandbox_id: SandboxId) -> None:
        """A sandbox is gone; one that no plugin was told of is none to tell of."""
        self._making.discard(sandbox_id)
        facts = self._sandboxes.pop(sandbox_id, None)
        if facts is not None:
            gone = describing.sandbox(replace(facts, ips=(), namespaces={}))
            request = api.RemovePodSandboxRequest(pod=gone)
            self._tell("RemovePodSandbox", request, api.RemovePodSandboxResponse)

    def container_created(self, facts: ContainerFacts) -> None:
        """A container is listed now."""
        self._containers[facts.id] = facts
        self._making.discard(facts.id)
        request = api.PostCreateContainerRequest(**self._about(facts))
        self._tell("PostCreateContainer", request, api.PostCreateContainerResponse)

    def container_started(self, container_id: ContainerId) -> None:
        """A container's program executes."""
        facts = self._current(container_id)
        if facts is not None:
            request = api.PostStartContainerRequest(**self._about(facts))
            self._tell("PostStartContainer", request, api.PostStartContainerResponse)

    def container_updated(self, facts: ContainerFacts) -> None:
        """A container's limits have changed."""
        self._containers[facts.id] = facts
        if not _OURS.get():
            request = api.PostUpdateContainerRequest(**self._about(facts))
            self._tell("PostUpdateContainer", request, api.PostUpdateContainerResponse)

    def container_exited(self, container_id: ContainerId) -> None:
        """A container's program is gone; plugins may change others then."""
        facts = self._current(container_id)
        if facts is None:
            return
        request = api.StopContainerRequest(**self._about(facts))
        for peer in self._listening("StopContainer"):
            done = peer.ask("StopContainer", request, api.StopContainerResponse)
            self._spawn(self._after_stop(peer, done))

    def container_removed(self, container_id: ContainerId) -> None:
        """A container is gone; one that no plugin was told of is none to tell of."""
        self._making.discard(container_id)
        facts = self._containers.pop(container_id, None)
        if facts is not None:
            request = api.RemoveContainerRequest(**self._about(replace(facts, pid=None)))
            self._tell("RemoveContainer", request, api.RemoveContainerResponse)

    # What plugins ask for

    async def asked(self, peer: Peer, request: api.UpdateContainersRequest) -> wire.Message:
        """Answer UpdateContainers."""
        failed = await self._apply(request.update, peer.title)
        self._evict(request.evict, peer.title)
        return api.UpdateContainersResponse(failed=failed)

    async def _apply(
        self, updates: Sequence[api.ContainerUpdate], title: str
    ) -> list[api.ContainerUpdate]:
        """Change containers; return those that could not be changed."""
        failed = []
        _OURS.set(True)
        for update in updates:
            try:
                wanted = limits.to_cri(limits.fields(update.linux.resources))
                await self._services.update(ContainerId(update.container_id), wanted)
            except (PolypodError, OSError, limits.CannotUpdate) as error:
                log.log(
                    logging.INFO if update.ignore_failure else logging.WARNING,
                    "NRI plugin %s: container %s not updated: %s",
                    title,
                    update.container_id,
                    error,
                )
                if not update.ignore_failure:
                    failed.append(update)
        return failed

    async def _apply_all(self, updates: Sequence[api.ContainerUpdate], title: str) -> None:
        await self._apply(updates, title)

    async def _apply_before(self, updates: Updates, deadline: float) -> None:
        """Change others before a container is made; what takes too long goes on beside it."""
        if updates.all():
            task = self._spawn(self._apply_all(updates.all(), updates.title))
            await asyncio.wait({task}, timeout=max(0.0, deadline - _now()))

    def _evict(self, wanted: Sequence[api.ContainerEviction], title: str) -> None:
        for each in wanted:
            facts = self._services.container(ContainerId(each.container_id))
            if facts is None:
                log.warning(
                    "NRI plugin %s: container %s is not there to be evicted",
                    title,
                    each.container_id,
                )
            else:
                reason = f"NRI plugin {title}: {each.reason or 'no reason given'}"
                self._spawn(self._evict_one(facts.sandbox_id, reason))

    async def _evict_one(self, sandbox_id: SandboxId, reason: str) -> None:
        try:
            await self._services.evict(sandbox_id, reason)
            log.info("sandbox evicted id=%s reason=%s", sandbox_id, reason)
        except PolypodError as error:
            log.warning("sandbox %s not evicted for %s: %s", sandbox_id, reason, error)

    async def _after_stop(
        self, peer: Peer, done: asyncio.Future[api.StopContainerResponse | None]
    ) -> None:
        try:
            answer = await done
        except Refused as error:
            log.warning("NRI plugin %s: StopContainer: %s", peer.title, error)
        except Gone:
            return
        else:
            if answer is not None:
                await self._apply(answer.update, peer.title)

    # Calls

    def _listening(self, method: str) -> list[Peer]:
        return [peer for peer in self._peers if peer.alive and peer.wants(method)]

    def _deadline(self) -> float:
        return _now() + _SHARE * self._services.hook_timeout_s

    async def _ask_all(
        self,
        method: str,
        request: wire.Message,
        kind: type[M],
        *,
        whatever_they_say: bool = False,
    ) -> None:
        refusals = []
        deadline = self._deadline()
        for peer in self._listening(method):
            try:
                await self._answer(peer, method, request, kind, deadline)
            except FailedPrecondition as refusal:
                if not whatever_they_say:
                    raise
                refusals.append(refusal)
        if refusals:
            raise refusals[0]

    async def _answer(
        self, peer: Peer, method: str, request: wire.Message, kind: type[M], deadline: float
    ) -> M | None:
        """Return a plugin's answer, or None where it is gone.

        Raises:
            FailedPrecondition: it answers with an error.
        """
        done = peer.ask(method, request, kind)
        try:
            return await asyncio.wait_for(done, max(0.01, deadline - _now()))
        except Refused as error:
            raise FailedPrecondition(f"NRI plugin {peer.title}: {method}: {error}") from error
        except TimeoutError:
            peer.abandon(f"{method} was not answered in what plugins.hook_timeout_s leaves for it")
        except Gone:
            log.warning("NRI plugin %s left out of %s: %s", peer.title, method, peer.reason)
        return None

    def _tell(self, method: str, request: wire.Message, kind: type[M]) -> None:
        for peer in self._listening(method):
            done = peer.ask(method, request, kind)
            done.add_done_callback(lambda done, peer=peer: _heard(peer, method, done))  # type: ignore[misc]

    async def _validate(
        self,
        validators: Sequence[Peer],
        facts: ContainerFacts,
        adjusted: Adjusted,
        updates: Updates,
        deadline: float,
    ) -> None:
        request = api.ValidateContainerAdjustmentRequest(
            **self._about(facts),
            adjust=adjusted.total,
            update=updates.all(),
            owners=adjusted.owners.message(facts.id),
            plugins=[api.PluginInstance(name=each.name, index=each.index) for each in self._peers],
        )
        for peer in validators:
            answer = await self._answer(
                peer,
                "ValidateContainerAdjustment",
                request,
                api.ValidateContainerAdjustmentResponse,
                deadline,
            )
            if answer is not None and answer.reject:
                raise FailedPrecondition(
                    f"NRI plugin {peer.title} rejects what plugins made of the container: "
                    f"{answer.reason or 'no reason given'}"
                )

    # Facts

    def _require(self) -> None:
        there = {name for peer in self._peers if peer.alive for name in (peer.name, peer.title)}
        for name in self._settings.required:
            if name not in there:
                raise FailedPrecondition(
                    f"NRI plugin {name!r} is required (plugins.nri.required) and not connected"
                )

    def _current(self, container_id: ContainerId) -> ContainerFacts | None:
        facts = self._services.container(container_id)
        if facts is not None and container_id in self._containers:
            self._containers[container_id] = facts
        return facts

    def _pod(self, sandbox_id: SandboxId) -> api.PodSandbox:
        facts = self._services.sandbox(sandbox_id) or self._sandboxes.get(sandbox_id)
        return api.PodSandbox(id=sandbox_id) if facts is None else describing.sandbox(facts)

    def _about(self, facts: ContainerFacts) -> dict[str, Any]:
        return {"pod": self._pod(facts.sandbox_id), "container": describing.container(facts)}

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _heard(peer: Peer, method: str, done: asyncio.Future[wire.Message | None]) -> None:
    if not done.cancelled() and isinstance(error := done.exception(), Refused):
        log.warning("NRI plugin %s: %s: %s", peer.title, method, error)


def _now() -> float:
    return asyncio.get_running_loop().time()
