"""UpdateContainerResources and UpdatePodSandboxResources: new limits in force and on record, or the old ones."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from polypod.lifecycle.facts import container_facts, sandbox_facts
from polypod.lifecycle.heart import Heart
from polypod.lifecycle.objects import Container, Sandbox
from polypod.lifecycle.parts import Handler
from polypod.lifecycle.starting import oci_config
from polypod.lifecycle.steps import step
from polypod.lifecycle.views import ContainerState, SandboxState
from polypod.plugin.errors import FailedPrecondition, InvalidArgument, Unsupported
from polypod.plugin.requests import Resources
from polypod.plugin.runtime import Feature, PodResources, Resizable
from polypod.spec.resources import merge_resources
from polypod.spec.updates import effective_update, way_back

_CHANGEABLE = (ContainerState.CREATED, ContainerState.RUNNING)


class Updating:
    """Changes limits."""

    def __init__(self, heart: Heart) -> None:
        self._heart = heart
        self._numbers = itertools.count()

    async def container(
        self, container_id: str, update: Resources, annotations: Mapping[str, str] | None = None
    ) -> None:
        """Change a container's limits, all or none.

        Args:
            container_id: id or unique prefix.
            update: 0 and ``""`` keep what is.
            annotations: kept with the record and shown in the verbose status. None of them changes
                what the host does (E10).

        Raises:
            NotFound: no such container.
            FailedPrecondition: it is neither created nor running.
            InvalidArgument: the limits contradict each other, or those that hold.
            Unsupported: the handler sets no limits, or not this one.
            BackendError: the kernel refused; the old values hold.

        Spec:
            kubernetes/cri-api api.proto, RuntimeService.UpdateContainerResources. The kubelet takes a
            resize as done when ContainerStatus.resources says so.
        """
        container = self._heart.containers.require(container_id)
        # A client that hangs up leaves the work to end: half an update is worse than one too many.
        key = ("update container", container.record.id, next(self._numbers))
        await self._heart.joins.run(key, lambda: self._locked(container, update, annotations or {}))

    async def _locked(
        self, container: Container, update: Resources, annotations: Mapping[str, str]
    ) -> None:
        async with container.lock:
            self._require_changeable(container)
            handler = self._heart.handler_of(container.sandbox)
            _require_limits(handler, f"container {container.record.id}")
            with step(container.explain, f"container {container.record.id}", "update limits"):
                facts = container_facts(self._heart, container)
                wanted = await self._heart.parts.hooks.adjust_update(facts, update)
                await self._update(container, handler, wanted, annotations)
        facts = container_facts(self._heart, container)
        self._heart.parts.hooks.notify_container_updated(facts)

    def _require_changeable(self, container: Container) -> None:
        state = container.record.state
        if state not in _CHANGEABLE or container.removing:
            raise FailedPrecondition(
                f"container {container.record.id} is "
                f"{'being removed' if container.removing else state}: limits can be changed of one "
                "that is created or running"
            )

    async def _update(
        self,
        container: Container,
        handler: Handler,
        update: Resources,
        annotations: Mapping[str, str],
    ) -> None:
        heart, record = self._heart, container.record
        old = record.resources or record.config.resources
        merged = merge_resources(old, update)
        change = effective_update(update, merged)
        # What cannot be meant is refused here, before the backend writes anything.
        config = heart.parts.builder.limits(oci_config(heart, container), change)
        running = record.state is ContainerState.RUNNING
        undo = heart.rollback(f"update container {record.id}")
        async with undo:
            if running and change != Resources():
                back = way_back(old, change)
                undo.push(
                    "put the old limits back", lambda: handler.backend.update(record.id, back)
                )
                await handler.backend.update(record.id, change)
            await heart.failpoints.hit("container.update.applied")
            heart.oci_configs.put(record.id, config)
            container.oci = config
            heart.commit_container(
                container,
                resources=merged,
                update_annotations={**record.update_annotations, **annotations},
            )
            undo.commit()

    async def sandbox(
        self, sandbox_id: str, overhead: Resources | None, resources: Resources | None
    ) -> None:
        """Change what a whole pod may take: its containers' part and what running it costs.

        Raises:
            NotFound: no such sandbox.
            FailedPrecondition: it is not READY.
            InvalidArgument: the limits contradict each other.
            Unsupported: the handler's sandboxes have no limits that can be changed.
            BackendError: the kernel refused; the old values hold.

        Spec:
            kubernetes/cri-api api.proto, RuntimeService.UpdatePodSandboxResources: called after the
            kubelet has changed the pod's own cgroup; best effort.
        """
        sandbox = self._heart.sandboxes.require(sandbox_id)
        if resources is None and overhead is None:
            raise InvalidArgument("neither resources nor overhead is given: there is nothing to do")
        key = ("resize sandbox", sandbox.record.id, next(self._numbers))
        await self._heart.joins.run(key, lambda: self._resize(sandbox, overhead, resources))

    async def _resize(
        self, sandbox: Sandbox, overhead: Resources | None, resources: Resources | None
    ) -> None:
        async with sandbox.lock:
            backend = self._resizable(sandbox)
            old = pod_resources(sandbox)
            new = PodResources(_merged(old.resources, resources), _merged(old.overhead, overhead))
            with step(sandbox.explain, f"sandbox {sandbox.record.id}", "update limits"):
                await self._heart.parts.hooks.before_sandbox_resize(sandbox_facts(sandbox), new)
                await self._apply(sandbox, backend, old, new)
        self._heart.parts.hooks.notify_sandbox_resized(sandbox_facts(sandbox))

    async def _apply(
        self, sandbox: Sandbox, backend: Resizable, old: PodResources, new: PodResources
    ) -> None:
        heart, sandbox_id = self._heart, sandbox.record.id
        undo = heart.rollback(f"resize sandbox {sandbox_id}")
        async with undo:
            undo.push("put the old limits back", lambda: backend.resize(sandbox_id, old))
            await backend.resize(sandbox_id, new)
            await heart.failpoints.hit("sandbox.update.applied")
            heart.commit_sandbox(sandbox, resources=new.resources, overhead=new.overhead)
            undo.commit()

    def _resizable(self, sandbox: Sandbox) -> Resizable:
        record = sandbox.record
        if record.state is not SandboxState.READY or sandbox.stopping:
            state = "being stopped" if sandbox.stopping else record.state
            raise FailedPrecondition(f"sandbox {record.id} is {state}, not ready")
        handler = self._heart.handler_of(sandbox)
        _require_limits(handler, f"sandbox {record.id}")
        if not isinstance(handler.backend, Resizable):
            raise Unsupported(
                f"sandbox {record.id}: handler {handler.name!r} (type {handler.type.name}) fixes what a "
                "pod may take when it is run"
            )
        return handler.backend


def pod_resources(sandbox: Sandbox) -> PodResources:
    """Return what holds for a pod now: the last update, else the request."""
    record = sandbox.record
    return PodResources(
        record.resources if record.resources is not None else record.config.resources,
        record.overhead if record.overhead is not None else record.config.overhead,
    )


def _merged(old: Resources | None, update: Resources | None) -> Resources | None:
    if update is None:
        return old
    return update if old is None else merge_resources(old, update)


def _require_limits(handler: Handler, who: str) -> None:
    if Feature.RESOURCES not in handler.type.features:
        raise Unsupported(
            f"{who}: runtime handler {handler.name!r} (type {handler.type.name}, feature "
            f"{Feature.RESOURCES}) sets no limits: choose another handler or leave them out"
        )
