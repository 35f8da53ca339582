"""CreateContainer: check, build the configuration, prepare the root file system, record."""

from __future__ import annotations

from dataclasses import replace

from polypod.lifecycle.checks import check_container
from polypod.lifecycle.containers import Containers
from polypod.lifecycle.facts import container_facts
from polypod.lifecycle.heart import Heart
from polypod.lifecycle.image_volumes import find_volumes, prepare_volumes
from polypod.lifecycle.log_paths import log_location
from polypod.lifecycle.objects import Container, Sandbox, sandbox_spec
from polypod.lifecycle.parts import Handler
from polypod.lifecycle.ports import BuiltConfig, ConfigRequest
from polypod.lifecycle.records import ContainerRecord
from polypod.lifecycle.rollback import Rollback
from polypod.lifecycle.states import ContainerEvent
from polypod.lifecycle.steps import bounded, step
from polypod.lifecycle.trees import remove_tree
from polypod.lifecycle.views import ContainerState, SandboxState
from polypod.plugin.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unsupported,
)
from polypod.plugin.ids import ContainerId, new_id
from polypod.plugin.images import Image
from polypod.plugin.requests import ContainerConfig, NamespaceMode
from polypod.plugin.rootfs import Rootfs
from polypod.spec.updates import adjusted_limits


class Creating:
    """Makes containers."""

    def __init__(self, heart: Heart, containers: Containers) -> None:
        self._heart = heart
        self._containers = containers

    async def create(self, sandbox_id: str, config: ContainerConfig) -> ContainerId:
        """Create a container, or return the one that the same request has made or is making.

        Raises:
            NotFound: no such sandbox, or the image is not here (it is never pulled).
            FailedPrecondition: the sandbox is not READY.
            AlreadyExists: another container of the sandbox has the same metadata.
            Unsupported: the handler cannot do what was asked.

        Spec:
            kubernetes/cri-api api.proto, RuntimeService.CreateContainer.
        """
        heart = self._heart
        sandbox = heart.sandboxes.require(sandbox_id)
        require_ready(sandbox)
        name = (sandbox.record.id, config.metadata)
        key = ("create", *name)
        holder = heart.container_names.holder(name)
        if holder is not None and not heart.joins.running(key):
            await self._yield_name(holder, config)
        container_id = await heart.joins.run(key, lambda: self._create_or_find(sandbox, config))
        container = heart.containers.exact(container_id)
        if container is None or container.record.config != config:
            raise AlreadyExists(
                f"container name {config.metadata.name} (attempt {config.metadata.attempt}) in sandbox "
                f"{sandbox.record.id} is reserved for container {container_id}, which was asked for "
                "with another configuration: remove that one or raise the attempt"
            )
        container.delivered = True
        return container_id

    async def _yield_name(self, holder: ContainerId, config: ContainerConfig) -> None:
        """Remove a finished container that nobody was told of, if it is not what is asked for now."""
        container = self._heart.containers.exact(holder)
        if container and not container.delivered and container.record.config != config:
            await self._containers.remove(holder)

    async def _create_or_find(self, sandbox: Sandbox, config: ContainerConfig) -> ContainerId:
        holder = self._heart.container_names.holder((sandbox.record.id, config.metadata))
        if holder is None:
            return await self._create(sandbox, config)
        container = self._heart.containers.exact(holder)
        if container is not None and container.record.state is not ContainerState.CREATED:
            raise AlreadyExists(
                f"container {holder} has the same metadata and is {container.record.state}: "
                "remove it first or raise the attempt"
            )
        return holder

    async def _create(self, sandbox: Sandbox, config: ContainerConfig) -> ContainerId:
        heart = self._heart
        handler = heart.handler_of(sandbox)
        check_container(handler, sandbox.record.config, config)
        self._check_target(sandbox, config)
        image = await _local_image(handler, config)
        record = replace(
            self._record(sandbox, config, image), image_volumes=await find_volumes(handler, config)
        )
        container = heart.adopt_container(record, sandbox)
        what = f"container {container.record.id}"
        undo = heart.rollback(f"create {what}")
        work = self._make(container, handler, image, undo)
        try:
            async with container.lock:
                await bounded(heart.clock, heart.settings.create_s, what, container.explain, work)
        except BaseException as error:
            self._failed(container, undo, error)
            raise
        heart.parts.hooks.notify_container_created(container_facts(heart, container))
        await heart.failpoints.hit("container.created")
        return container.record.id

    def _check_target(self, sandbox: Sandbox, config: ContainerConfig) -> None:
        """An ephemeral container joins the processes of a running container of its own pod, no other."""
        modes = config.security.namespaces
        if modes.pid is not NamespaceMode.TARGET:
            return
        target = self._heart.containers.require(modes.target_id)
        if target.sandbox is not sandbox or target.record.state is not ContainerState.RUNNING:
            raise InvalidArgument(
                f"namespace_options.target_id {modes.target_id!r}: a running container of sandbox "
                f"{sandbox.record.id} was expected"
            )

    async def _make(
        self, container: Container, handler: Handler, image: Image, undo: Rollback
    ) -> None:
        heart, hit = self._heart, self._heart.failpoints.hit
        what, explain = f"container {container.record.id}", container.explain
        async with undo:
            await hit("container.reserved")
            heart.commit_container(container)
            await hit("container.recorded")
            with step(explain, what, "build the configuration"):
                built = await self._configure(container, handler, image)
                await hit("container.configured")
            with step(explain, what, "prepare the root file system"):
                await self._prepare(container, handler, undo)
                await hit("container.rootfs")
            require_ready(container.sandbox)
            heart.oci_configs.put(container.record.id, built.oci)
            container.oci = built.oci
            heart.move_container(
                container,
                ContainerEvent.CREATED,
                stop_signal=built.stop_signal,
                user=_user(built),
            )
            undo.commit()

    async def _configure(self, container: Container, handler: Handler, image: Image) -> BuiltConfig:
        heart, record = self._heart, container.record
        request = ConfigRequest(
            container_id=record.id,
            sandbox=sandbox_spec(container.sandbox),
            config=record.config,
            image=image,
            image_store=handler.image_store,
            cgroup=f"{container.sandbox.record.cgroup}/{record.id}",
        )
        built = await heart.parts.builder.container(request)
        sandbox = container.sandbox.record.config
        adjusted = await heart.parts.hooks.adjust(
            record.id, record.sandbox_id, sandbox, record.config, built.oci
        )
        if adjusted != built.oci:
            told = record.resources or record.config.resources
            limits = adjusted_limits(told, built.oci, adjusted)
            heart.commit_container(container, resources=limits)
        return replace(built, oci=adjusted)

    async def _prepare(self, container: Container, handler: Handler, undo: Rollback) -> None:
        container_id = container.record.id
        undo.push("remove files", lambda: remove_tree(container.directory))
        container.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        undo.push("release the root file system", lambda: handler.image_store.release(container_id))
        container.rootfs = await prepare_rootfs(handler, container)
        container.volumes = await prepare_volumes(handler, container, undo)

    def _failed(self, container: Container, undo: Rollback, error: BaseException) -> None:
        heart = self._heart
        if not undo.failures:
            heart.forget_container(container)
            heart.parts.hooks.notify_container_removed(container.record.id)
            return
        stuck = "; ".join(f"{name}: {failure}" for name, failure in undo.failures)
        container.explain.note(f"undo failed: {stuck}")
        heart.move_container(
            container, ContainerEvent.STUCK, message=f"{error}; could not be undone: {stuck}"
        )

    def _record(self, sandbox: Sandbox, config: ContainerConfig, image: Image) -> ContainerRecord:
        heart = self._heart
        base, path = log_location(heart.parts.root, sandbox.record, config)
        return ContainerRecord(
            id=ContainerId(new_id()),
            sandbox_id=sandbox.record.id,
            config=config,
            created_at_ns=heart.clock.now_ns(),
            image_id=image.id,
            image_ref=image.repo_digests[0] if image.repo_digests else image.id,
            log_path=str(path),
            log_base=str(base),
            stop_signal=config.stop_signal,
            resources=config.resources,
        )


def require_ready(sandbox: Sandbox) -> None:
    """Check that containers may be made and started in a sandbox.

    Raises:
        FailedPrecondition: it is not READY, or is being stopped.
    """
    state = "being stopped" if sandbox.stopping else sandbox.record.state
    if state is not SandboxState.READY:
        raise FailedPrecondition(
            f"sandbox {sandbox.record.id} is {state}, not ready: run a new one"
        )


async def prepare_rootfs(handler: Handler, container: Container) -> Rootfs:
    """Return the container's root file system in the best form that both sides know.

    Raises:
        Unsupported: the store can make none of the forms that the type accepts.
    """
    refusals: list[str] = []
    for form in handler.type.rootfs_forms:
        try:
            return await handler.image_store.prepare(
                container.record.id, container.record.image_id, form
            )
        except Unsupported as error:
            refusals.append(f"{form}: {error}")
    raise Unsupported(
        f"runtime handler {handler.name!r} accepts no root file system that its image store can make "
        f"({'; '.join(refusals) or 'the type accepts none'})"
    )


async def _local_image(handler: Handler, config: ContainerConfig) -> Image:
    image = await handler.image_store.find(config.image.image)
    if image is None:
        raise NotFound(f"image {config.image.image!r} is not here: pull it before CreateContainer")
    return image


def _user(built: BuiltConfig) -> tuple[int, int, tuple[int, ...]]:
    user = built.oci.process.user
    return user.uid, user.gid, user.additional_gids
