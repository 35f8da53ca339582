"""The content store as the contract has it: joins catalog, blobs, layers and containers' directories.

The event loop does what is quick (look-ups in memory, one rename); all that reads, hashes, unpacks or waits for
the disk runs in this store's own threads. What works on the content of layers runs in confined processes
(`unpackers`): neither a hostile layer nor a large one reaches the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from polypod.plugin.errors import InvalidArgument, NotFound, Unsupported
from polypod.plugin.ids import ContainerId, ImageId
from polypod.plugin.images import FilesystemUsage, Image, ImageContext, Progress
from polypod.plugin.requests import Auth
from polypod.plugin.rootfs import (
    BlockRootfs,
    DirectoryRootfs,
    ErofsRootfs,
    OverlayRootfs,
    Rootfs,
    RootfsForm,
)
from polypod_image import changes
from polypod_image.block import FSTYPE
from polypod_image.catalog import Catalog, StoredImage
from polypod_image.containers import ContainerDirectories, Holding
from polypod_image.finding import find
from polypod_image.inventory import Inventory, pinning_names, too_large
from polypod_image.options import StoreOptions, changed_keys, parse
from polypod_image.places import Places
from polypod_image.references import Reference, parse_reference
from polypod_image.sampling import Sampler
from polypod_image.sources import LocalSource, detect, locate, transport_of
from polypod_image.trash import Trash

if TYPE_CHECKING:
    from polypod_image.registry.pulling import Puller

log = logging.getLogger(__name__)
T = TypeVar("T")

FORMS: Final = (
    RootfsForm.OVERLAY,
    RootfsForm.DIRECTORY,
    RootfsForm.EROFS,
    RootfsForm.BLOCK,
)
_THREADS: Final = 4
_PLAIN_ROOT: Final = (0o755, 0, 0)
_KEPT_FILES: Final = 512
_KEPT_FILE_BYTES: Final = 64 << 10


class ContentStore:
    """Implements `polypod.plugin.images.ImageStore`."""

    def __init__(self, context: ImageContext, options: StoreOptions) -> None:
        """Prepare; `open` begins."""
        self._options = options
        self._places = Places(context.root)
        self._pool = ThreadPoolExecutor(_THREADS, "image")
        self._trash = Trash(self._places.trash)
        self._containers = ContainerDirectories(self._places, self._trash)
        self._sampler = Sampler(
            self._places, options.usage_interval_s, lambda: list(self._containers.held)
        )
        self._tasks: set[asyncio.Task[Any]] = set()
        self._removing: set[ImageId] = set()
        self._roots: dict[ImageId, tuple[tuple[Path, ...], tuple[int, int, int]]] = {}
        self._files: OrderedDict[tuple[ImageId, str], bytes | None] = OrderedDict()
        self._copies: dict[ContainerId, asyncio.Lock] = {}
        self._puller: Puller | None = None
        self._inventory: Inventory
        self._catalog: Catalog

    # Opening and closing

    async def open(self) -> None:
        """Open what is there; what a former process left unfinished is discarded.

        Raises:
            FailedPrecondition: another process uses this root.
            BackendError: the file system cannot hold a store.
        """
        try:
            self._inventory = await self._run(self._open)
        except BaseException:
            self._pool.shutdown(wait=False)
            raise
        self._catalog = self._inventory.catalog
        self._sampler.start()
        self._sync_behind()

    def check(self, options: Mapping[str, object], /) -> None:
        """Raise InvalidArgument if an ``[images]`` table is wrong."""
        parse(options)

    def reload(self, options: Mapping[str, object], /) -> Sequence[str]:
        """Take a changed ``[images]`` table; return the changed keys that need a new start."""
        wanted, before = parse(options), self._options
        self._options = replace(
            wanted,
            limits=before.limits,
            usage_interval_s=before.usage_interval_s,
            unpackers=before.unpackers,
        )
        self._catalog.pin(pinning_names(wanted.pinned))
        if self._puller is not None:
            self._puller.reload(wanted.pulls)
        return changed_keys(before, wanted)

    def _open(self) -> Inventory:
        self._places.make()
        inventory = Inventory(
            self._places,
            self._trash,
            self._options,
            lambda: [each.image_id for each in list(self._containers.held.values())],
        )
        self._containers.open()
        inventory.clean()
        self._trash.start()
        return inventory

    async def close(self) -> None:
        """Stop background work; what was not finished is discarded by the next `open`."""
        if self._inventory.stopping.is_set():
            return
        self._inventory.stopping.set()
        if self._puller is not None:
            await self._puller.close()
        while self._tasks:
            await asyncio.wait(self._tasks)
        for work in (self._sampler.close, self._containers.close, self._trash.close):
            await self._run(work)
        self._pool.shutdown()
        self._inventory.close()

    # Looking

    async def list(self) -> Sequence[Image]:
        """Return all images, newest first."""
        return tuple(self._catalog.shown.values())

    async def find(self, reference: str, /) -> Image | None:
        """Return the image that a reference means."""
        return find(self._catalog, reference)

    async def filesystem_usage(self) -> FilesystemUsage:
        """Return what blobs and layers take; writable layers count elsewhere."""
        return await self._run(self._inventory.usage)

    async def image_file(self, image_id: ImageId, path: str, limit: int, /) -> bytes | None:
        """Return a small regular file of the image."""
        image = self._image(image_id)
        if "\0" in path:
            raise InvalidArgument(f"{path[:200]!r} is no path")
        key = (image_id, path)
        if key in self._files:
            data = self._files[key]
        else:
            data = await self._run(self._inventory.read_file, image, path, limit)
            if data is None or len(data) <= _KEPT_FILE_BYTES:
                self._files[key] = data
                while len(self._files) > _KEPT_FILES:
                    self._files.popitem(last=False)
        if data is not None and len(data) > limit:
            raise too_large(image_id, path, limit)
        return data

    async def has(self, image_id: ImageId, path: str, /) -> bool:
        """Tell whether an image has a file or directory at a path."""
        image = self._image(image_id)
        if "\0" in path:
            raise InvalidArgument(f"{path[:200]!r} is no path")
        return await self._run(self._inventory.has, image, path)

    # Bringing in

    async def pull(
        self, reference: str, /, *, auth: Auth | None = None, progress: Progress | None = None
    ) -> Image:
        """Pull from a registry, or import what ``oci:PATH`` and its like lead to."""
        transport = transport_of(reference)
        if transport is None:
            return await self._registry().pull(parse_reference(reference), auth, progress)
        source = await self._run(locate, reference, transport, self._options.oci_dirs)
        images = await self._import(source, (), reference, progress)
        if len(images) > 1:
            names = ", ".join(tag for image in images for tag in image.repo_tags)
            raise InvalidArgument(f"{reference}: it has {len(images)} images; add :NAME ({names})")
        return images[0]

    async def load(
        self, source: Path, /, *, names: Sequence[str] = (), progress: Progress | None = None
    ) -> Sequence[Image]:
        """Import a layout directory or an archive file."""
        given = tuple(map(parse_reference, names))
        path = source.absolute()
        transport = await self._run(detect, path)
        return await self._import(LocalSource(transport, path, ""), given, "", progress)

    async def _import(
        self,
        source: LocalSource,
        names: tuple[Reference, ...],
        alias: str,
        progress: Progress | None,
    ) -> Sequence[Image]:
        """Import in a task of its own: who waits for it may go, the work is done all the same."""
        told = _in_loop(progress)
        task = self._spawn(self._run(self._inventory.bring, source, names, alias, told))
        try:
            return await asyncio.shield(task)
        finally:
            if task.done():
                self._after_import(task)
            else:
                task.add_done_callback(self._after_import)

    def _after_import(self, task: asyncio.Task[Sequence[Image]]) -> None:
        if self._inventory.stopping.is_set() or task.cancelled():
            return
        if task.exception() is not None:
            self._behind(self._run(self._inventory.collect), "collection")
        else:
            self._sync_behind()

    def _registry(self) -> Puller:
        """Return the registry client; a server that pulls nothing does not load it."""
        if self._puller is None:
            from polypod_image.registry.pulling import Puller

            self._puller = Puller(self._inventory, self._options.pulls, self._after_pull)
        return self._puller

    def _after_pull(self, *, whole: bool) -> None:
        if self._inventory.stopping.is_set():
            return
        if whole:
            self._sync_behind()
        else:
            self._behind(self._run(self._inventory.collect), "collection")

    def _sync_behind(self) -> None:
        if self._inventory.layers.unsynced():
            self._behind(self._run(self._inventory.layers.sync), "sync of layers")

    # Taking away

    async def remove(self, image_id: ImageId, /) -> None:
        """Remove an image with all its names; its space is freed behind the call."""
        if image_id not in self._catalog.shown:
            return
        self._removing.add(image_id)
        try:
            await self._run(self._catalog.retire, image_id)
        finally:
            self._removing.discard(image_id)
        self._roots.pop(image_id, None)
        for key in [key for key in self._files if key[0] == image_id]:
            del self._files[key]
        self._behind(self._run(self._inventory.collect), "collection")

    # Root file systems

    async def prepare(
        self, container_id: ContainerId, image_id: ImageId, form: RootfsForm, /
    ) -> Rootfs:
        """Make a writable rootfs for a container."""
        if form not in FORMS:
            raise Unsupported(f"the content store makes {', '.join(FORMS)}, not the form {form}")
        held = self._containers.held.get(container_id)
        if held is not None:
            image_id, form = held.image_id, held.form
        image = self._image(image_id) if held is None else self._catalog.images.get(image_id)
        if image is None:
            raise NotFound(f"container {container_id}: its image {image_id} is not in the store")
        if form is RootfsForm.DIRECTORY:
            return DirectoryRootfs(await self._directory(container_id, image))
        if form is RootfsForm.BLOCK:
            return await self._block(container_id, image)
        lowers, root = await self._root(image)
        block = None
        if form is RootfsForm.EROFS:
            block = await self._run(self._inventory.block_of, image)
        if held is None:
            self._image(image_id)  # it may be gone by now
        place = self._containers.take(container_id, Holding(image_id, form), root)
        self._sampler.begin(container_id)
        if block is not None:
            return ErofsRootfs(block, place / "fs", place / "work", self._options.overlay_options)
        return OverlayRootfs(lowers, place / "fs", place / "work", self._options.overlay_options)

    async def _root(self, image: StoredImage) -> tuple[tuple[Path, ...], tuple[int, int, int]]:
        """Return an image's layers, topmost first, and mode, owner and group of its root."""
        known = self._roots.get(image.id)
        if known is None:
            known = await self._run(self._inventory.root_of, image)
            if image.id in self._catalog.shown:  # it may be gone by now
                self._roots[image.id] = known
        return known

    async def _directory(self, container_id: ContainerId, image: StoredImage) -> Path:
        place = self._places.container(container_id)
        async with self._copies.setdefault(container_id, asyncio.Lock()):
            if container_id not in self._containers.held:
                made = await self._run(self._inventory.copy, image)
                self._image(
                    image.id
                )  # it may be gone by now; what was made is found at the next open
                holding = Holding(image.id, RootfsForm.DIRECTORY)
                self._containers.adopt(container_id, holding, made)
                self._behind(self._run(self._sampler.first, container_id), "count of files")
        self._copies.pop(container_id, None)
        return place / "fs"

    async def _block(self, container_id: ContainerId, image: StoredImage) -> BlockRootfs:
        """What is written goes where the backend keeps it; the directory only says who uses the image."""
        path = await self._run(self._inventory.block_of, image)
        if container_id not in self._containers.held:
            self._image(image.id)  # it may be gone by now
        self._containers.take(container_id, Holding(image.id, RootfsForm.BLOCK), _PLAIN_ROOT)
        return BlockRootfs(path, FSTYPE)

    async def export_changes(self, container_id: ContainerId, file: Path, /) -> None:
        """Write what a container has changed in its root as an uncompressed layer."""
        upper = self._upper(container_id)
        await self._run(changes.export, upper, file)

    async def apply_changes(self, container_id: ContainerId, file: Path, /) -> None:
        """Put such a layer into the root of a container that was never started."""
        upper = self._upper(container_id)
        image_id = self._containers.held[container_id].image_id
        lowers, _root = await self._root(self._catalog.images[image_id])
        await self._run(self._inventory.apply_changes, file, upper, lowers)

    def _upper(self, container_id: ContainerId) -> Path:
        """Return the directory that holds a container's changes and nothing else."""
        holding = self._containers.held.get(container_id)
        if holding is None:
            raise NotFound(f"container {container_id} has no root file system here")
        if holding.form not in (RootfsForm.OVERLAY, RootfsForm.EROFS):
            raise Unsupported(
                f"container {container_id}: its root has the form {holding.form}, in which changes "
                "cannot be told from the image; that is known of overlays"
            )
        return self._places.container(container_id) / "fs"

    async def release(self, container_id: ContainerId, /) -> None:
        """Give back a container's rootfs."""
        image_id = self._containers.give_back(container_id)
        self._sampler.forget(container_id)
        image = self._catalog.images.get(image_id) if image_id else None
        if image is not None and image.retired:
            self._behind(self._run(self._inventory.collect), "collection")

    async def prepared(self) -> Sequence[ContainerId]:
        """Return the containers that have a rootfs."""
        return list(self._containers.held)

    async def writable_usage(self, container_id: ContainerId, /) -> FilesystemUsage | None:
        """Return the last sample of the writable layer; the first is made with it."""
        return self._sampler.last(container_id)

    # Within

    def _image(self, image_id: ImageId) -> StoredImage:
        image = self._catalog.images.get(image_id)
        if image is None or image.retired or image_id in self._removing:
            raise NotFound(f"image {image_id} is not in the store")
        return image

    async def _run(self, work: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401 - the work's own
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _behind(self, work: Coroutine[Any, Any, None], what: str) -> None:
        def done(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                log.warning("image store: %s failed: %s", what, error)

        self._spawn(work).add_done_callback(done)


def _in_loop(progress: Progress | None) -> Progress | None:
    """Return the callback so that a thread may call it: it runs in the event loop."""
    if progress is None:
        return None
    loop, told = asyncio.get_running_loop(), progress

    def tell(step: Any) -> None:  # noqa: ANN401 - passed on
        with suppress(RuntimeError):  # the loop is gone, nobody listens
            loop.call_soon_threadsafe(told, step)

    return tell
