"""Images as volumes: found before a container is recorded, prepared with its root, given back with it.

Each holds its image in the store as a root file system does, under a name made of the container's id.

Spec:
    kubernetes/cri-api api.proto, Mount.image and .image_sub_path; the kubelet looks for errors that begin
    with ``ImageVolumeMountFailed``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from polypod.lifecycle.objects import Container
from polypod.lifecycle.parts import Handler
from polypod.lifecycle.records import ImageVolumeRecord
from polypod.lifecycle.rollback import Rollback
from polypod.plugin.errors import InvalidArgument, NotFound, PolypodError, Unsupported
from polypod.plugin.ids import ContainerId
from polypod.plugin.images import Looks
from polypod.plugin.requests import ContainerConfig, Mount
from polypod.plugin.rootfs import RootfsForm
from polypod.plugin.runtime import ImageVolume
from polypod.spec.paths import container_path

_PREFIX = "ImageVolumeMountFailed"
_SEPARATOR = "."


async def find_volumes(handler: Handler, config: ContainerConfig) -> tuple[ImageVolumeRecord, ...]:
    """Return the images that a request mounts; none is ever pulled.

    Raises:
        NotFound: one is not here, or has nothing at the sub-path.
        InvalidArgument: a sub-path climbs.
        Unsupported: the image store cannot look into images.
    """
    asked = [mount for mount in config.mounts if mount.image is not None and mount.image.image]
    return tuple([await _find(handler, mount) for mount in asked])


async def _find(handler: Handler, mount: Mount) -> ImageVolumeRecord:
    store, name = handler.image_store, mount.image.image if mount.image is not None else ""
    where = f"{_PREFIX}: mount {mount.container_path}: image {name}"
    try:
        image = await store.find(name)
    except PolypodError as error:
        raise type(error)(f"{where}: {error}") from error
    if image is None:
        raise NotFound(f"{where} is not here: pull it before CreateContainer")
    if mount.image_sub_path:
        if ".." in mount.image_sub_path.split("/"):
            raise InvalidArgument(f"{where}: image_sub_path must not climb with '..'")
        if not isinstance(store, Looks):
            raise Unsupported(f"{where}: this image store knows no image_sub_path")
        if not await store.has(image.id, mount.image_sub_path):
            raise NotFound(f"{where} has no {mount.image_sub_path!r}, the image_sub_path")
    return ImageVolumeRecord(mount.container_path, image.id, mount.image_sub_path)


async def prepare_volumes(
    handler: Handler, container: Container, undo: Rollback | None = None
) -> dict[str, ImageVolume]:
    """Return destination → volume; the same ones again after a restart."""
    found: dict[str, ImageVolume] = {}
    for number, volume in enumerate(container.record.image_volumes):
        name = _name(container.record.id, number)
        if undo is not None:
            undo.push(f"release volume {volume.path}", _releaser(handler, name))
        rootfs = await handler.image_store.prepare(name, volume.image_id, RootfsForm.OVERLAY)
        where = container_path(volume.path, "mounts.container_path")
        found[where] = ImageVolume(rootfs, volume.sub_path)
    return found


async def release_volumes(handler: Handler, container: Container) -> None:
    """Give the images back. Idempotent."""
    for number, _volume in enumerate(container.record.image_volumes):
        await handler.image_store.release(_name(container.record.id, number))


def holder(prepared: ContainerId) -> ContainerId:
    """Return the container that something prepared in an image store belongs to."""
    return ContainerId(prepared.partition(_SEPARATOR)[0])


def _name(container_id: ContainerId, number: int) -> ContainerId:
    return ContainerId(f"{container_id}{_SEPARATOR}{number}")


def _releaser(handler: Handler, name: ContainerId) -> Callable[[], Awaitable[None]]:
    return lambda: handler.image_store.release(name)
