"""The content store as the contract has it: joins catalog, blobs, layers and containers' directories.

The event loop does what is quick (look-ups in memory, one rename); all that reads, hashes, unpacks or waits for
the disk runs in this store's own threads. Unpacking goes through `unpack.unpack_layer`, which takes plain
values and paths: the place where a confined process can take over.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import secrets
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock
from typing import Any, Final, TypeVar

from polypod.plugin.errors import FailedPrecondition, InvalidArgument, NotFound, Unsupported
from polypod.plugin.ids import ContainerId, ImageId
from polypod.plugin.images import FilesystemUsage, Image, ImageContext, Progress
from polypod.plugin.requests import Auth
from polypod.plugin.rootfs import DirectoryRootfs, OverlayRootfs, Rootfs, RootfsForm
from polypod_image.blobs import Blobs
from polypod_image.catalog import DIGEST, SOURCE, TAG, Catalog, StoredImage
from polypod_image.containers import (
    ContainerDirectories,
    Holding,
    check_filesystem,
    prepare_directory,
)
from polypod_image.copying import copy_merged
from polypod_image.finding import find
from polypod_image.importing import Arrived, Importer, base_name
from polypod_image.layers import Layers
from polypod_image.merged import MergedView, read_file
from polypod_image.meter import Meter
from polypod_image.options import StoreOptions
from polypod_image.pins import Pins
from polypod_image.places import Places
from polypod_image.platforms import host_platform
from polypod_image.references import Reference, parse_reference, with_digest
from polypod_image.sampling import Sampler
from polypod_image.sources import (
    KNOWN,
    LocalSource,
    Transport,
    detect,
    locate,
    open_archive,
    transport_of,
)
from polypod_image.streams import Source
from polypod_image.trash import Trash

log = logging.getLogger(__name__)
T = TypeVar("T")

FORMS: Final = (RootfsForm.OVERLAY, RootfsForm.DIRECTORY)
_THREADS: Final = 4
_KEPT_FILES: Final = 512
_KEPT_FILE_BYTES: Final = 64 << 10


class ContentStore:
    """Implements `polypod.plugin.images.ImageStore`."""

    def __init__(self, context: ImageContext, options: StoreOptions) -> None:
        """Prepare; `open` begins."""
        self._options = options
        self._places = Places(context.root)
        self._pool = ThreadPoolExecutor(_THREADS, "image")
        self._stopping = Event()
        self._pins = Pins()
        self._committing = Lock()
        """An image enters the catalog, or a collection looks at all of it: never both."""
        self._removing: set[ImageId] = set()
        self._trash = Trash(self._places.trash)
        self._containers = ContainerDirectories(self._places, self._trash)
        self._blobs = Blobs(self._places, options.limits.free_bytes)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._roots: dict[ImageId, tuple[tuple[Path, ...], tuple[int, int, int]]] = {}
        self._files: OrderedDict[tuple[ImageId, str], bytes | None] = OrderedDict()
        self._copies: dict[ContainerId, asyncio.Lock] = {}
        self._catalog: Catalog
        self._layers: Layers
        self._sampler: Sampler
        self._lock = -1

    # Opening and closing

    async def open(self) -> None:
        """Open what is there; what a former process left unfinished is discarded.

        Raises:
            FailedPrecondition: another process uses this root.
            BackendError: the file system cannot hold a store.
        """
        try:
            await self._run(self._open)
        except BaseException:
            self._pool.shutdown(wait=False)
            if self._lock >= 0:
                os.close(self._lock)
            raise
        self._sampler = Sampler(
            self._places, self._options.usage_interval_s, lambda: list(self._containers.held)
        )
        self._sampler.start()
        if self._layers.unsynced():
            self._behind(self._run(self._layers.sync), "sync of layers")

    def _open(self) -> None:
        self._places.make()
        self._lock = _locked(self._places.lock)
        check_filesystem(self._places.root)
        for each in self._places.work.iterdir():
            self._trash.throw(each)
        self._catalog = Catalog(self._places.catalog)
        self._layers = Layers(
            self._places, self._catalog, self._trash, self._options.limits, self._stopping
        )
        self._containers.open()
        self._layers.clean()
        self._drop_broken()
        self._collect()
        self._trash.start()

    def _drop_broken(self) -> None:
        """Forget images whose blobs are gone; a retired one needs no blobs, only its layers."""
        here = self._blobs.sizes()
        for image in self._catalog.images.values():
            missing = [digest for digest, _ in image.blobs if digest not in here]
            if missing and not image.retired:
                log.error("image %s is dropped: its blob %s is missing", image.id, missing[0])
                self._catalog.retire(image.id)

    async def close(self) -> None:
        """Stop background work; what was not finished is discarded by the next `open`."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._sampler.close()
        await self._run(self._containers.close)
        await self._run(self._trash.close)
        self._pool.shutdown()
        self._catalog.close()
        os.close(self._lock)

    # Looking

    async def list(self) -> Sequence[Image]:
        """Return all images, newest first."""
        return tuple(self._catalog.shown.values())

    async def find(self, reference: str, /) -> Image | None:
        """Return the image that a reference means."""
        return find(self._catalog, reference)

    async def filesystem_usage(self) -> FilesystemUsage:
        """Return what blobs and layers take; writable layers count elsewhere."""
        sizes, layers = await self._run(self._blobs.sizes), self._catalog.layers.values()
        used = sum(-(-size // 4096) * 4096 for size in sizes.values())
        return FilesystemUsage(
            time.time_ns(),
            self._places.root,
            used + sum(each.bytes for each in layers),
            len(sizes) + sum(each.inodes for each in layers),
        )

    async def image_file(self, image_id: ImageId, path: str, limit: int, /) -> bytes | None:
        """Return a small regular file of the image."""
        image = self._image(image_id)
        if "\0" in path:
            raise InvalidArgument(f"{path[:200]!r} is no path")
        key = (image_id, path)
        if key in self._files:
            data = self._files[key]
        else:
            data = await self._run(self._read_file, image, path, limit)
            if data is None or len(data) <= _KEPT_FILE_BYTES:
                self._files[key] = data
                while len(self._files) > _KEPT_FILES:
                    self._files.popitem(last=False)
        if data is not None and len(data) > limit:
            raise _too_large(image_id, path, limit)
        return data

    def _read_file(self, image: StoredImage, path: str, limit: int) -> bytes | None:
        with self._pins.lease() as lease:
            layers = self._layers.ensure(lease, image)
            node = MergedView(_topmost_first(layers)).resolve(os.fsencode(path)) if layers else None
            if node is None:
                return None
            try:
                return read_file(node, limit)
            except ValueError:
                raise _too_large(image.id, path, limit) from None

    # Bringing in

    async def pull(
        self, reference: str, /, *, auth: Auth | None = None, progress: Progress | None = None
    ) -> Image:
        """Import what ``oci:PATH`` and its like lead to; there is no registry client here."""
        del auth
        transport = transport_of(reference)
        if transport is None:
            wanted = parse_reference(reference)
            raise Unsupported(
                f"{wanted}: this version pulls only {KNOWN}; `polypod image load PATH` imports archives"
            )
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
        task = self._spawn(self._run(self._import_now, source, names, alias, told))
        try:
            return await asyncio.shield(task)
        finally:
            if task.done():
                self._after_import(task)
            else:
                task.add_done_callback(self._after_import)

    def _after_import(self, task: asyncio.Task[Sequence[Image]]) -> None:
        if self._stopping.is_set() or task.cancelled():
            return
        if task.exception() is not None:
            self._behind(self._run(self._collect), "collection")
        elif self._layers.unsynced():
            self._behind(self._run(self._layers.sync), "sync of layers")

    def _import_now(
        self,
        source: LocalSource,
        names: tuple[Reference, ...],
        alias: str,
        progress: Progress | None,
    ) -> Sequence[Image]:
        archive, kind = open_archive(source, self._unpacked)
        try:
            with self._pins.lease() as lease:
                importer = Importer(
                    archive,
                    self._blobs,
                    lease,
                    host_platform(),
                    base_name(source.path),
                    progress,
                    self._options.limits.layer_bytes,
                )
                docker = kind is Transport.DOCKER_ARCHIVE
                arrived = (importer.docker if docker else importer.oci)(source.wanted)
                if (names or alias) and len(arrived) > 1:
                    some = ", ".join(str(name) for each in arrived for name in each.names)
                    raise InvalidArgument(
                        f"{source.path}: it has {len(arrived)} images ({some}); "
                        "one name cannot be given to all: choose one"
                    )
                for each in arrived:
                    self._layers.ensure(lease, each.image)
                with self._committing:
                    return [self._commit(each, names or each.names, alias) for each in arrived]
        finally:
            archive.close()

    def _commit(self, arrived: Arrived, names: Sequence[Reference], alias: str) -> Image:
        found: dict[str, str] = {alias: SOURCE} if alias else {}
        for each in names:
            if each.tagged:
                found[each.tagged] = TAG
            found[with_digest(each, arrived.image.manifest_digest)] = DIGEST
        self._catalog.add(arrived.image, found)
        return self._catalog.shown[arrived.image.id]

    def _unpacked(self, source: Source) -> Path:
        """Write a source into a temporary file, within the limits of a layer."""
        path = self._places.work / f"archive-{secrets.token_hex(12)}"
        meter = Meter(str(self._places.work), self._options.limits, self._stopping)
        try:
            with path.open("xb") as file:
                while piece := source():
                    meter.update(piece)
                    file.write(piece)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

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
        self._behind(self._run(self._collect), "collection")

    def _collect(self) -> None:
        """Throw away what no image, no container and no running import needs."""
        with self._committing:
            self._collect_now()

    def _collect_now(self) -> None:
        # In this order: who was prepared before the image was retired is seen as its user.
        retired = [image.id for image in self._catalog.images.values() if image.retired]
        used_by = {each.image_id for each in list(self._containers.held.values())}
        for image_id in retired:
            if image_id not in used_by:
                self._catalog.forget_retired(image_id)
        images = self._catalog.images.values()
        blobs = {digest for image in images if not image.retired for digest, _ in image.blobs}
        chains = {chain_id for image in images for chain_id in image.chain}
        for digest in self._blobs.sizes():
            if digest not in blobs:
                self._pins.collect(self._places.blob(digest), self._trash.throw)
        gone = [
            chain_id
            for chain_id in self._catalog.layers
            if chain_id not in chains
            and self._pins.collect(self._places.layer(chain_id), self._trash.throw)
        ]
        self._catalog.forget_layers(gone)

    # Root file systems

    async def prepare(
        self, container_id: ContainerId, image_id: ImageId, form: RootfsForm, /
    ) -> Rootfs:
        """Make a writable rootfs for a container."""
        if form not in FORMS:
            raise Unsupported(f"the content store makes {' and '.join(FORMS)}, not the form {form}")
        held = self._containers.held.get(container_id)
        if held is not None:
            image_id, form = held.image_id, held.form
        image = self._image(image_id) if held is None else self._catalog.images.get(image_id)
        if image is None:
            raise NotFound(f"container {container_id}: its image {image_id} is not in the store")
        if form is RootfsForm.DIRECTORY:
            return DirectoryRootfs(await self._directory(container_id, image))
        known = self._roots.get(image_id)
        if known is None:
            known = await self._run(self._root_of, image)
            if held is None:
                self._image(image_id)  # it may be gone by now
            self._roots[image_id] = known
        lowers, root = known
        place = self._containers.take(container_id, Holding(image_id, form), root)
        return OverlayRootfs(lowers, place / "fs", place / "work", self._options.overlay_options)

    def _root_of(self, image: StoredImage) -> tuple[tuple[Path, ...], tuple[int, int, int]]:
        with self._pins.lease() as lease:
            layers = self._layers.ensure(lease, image)
        if not layers:
            raise Unsupported(f"image {image.id} has no layers: there is nothing to run in it")
        # A layer that is opaque as a whole ends the stack: overlayfs does not look for that mark.
        visible = MergedView(_topmost_first(layers)).layers
        status = os.lstat(visible[0])
        root = (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
        return tuple(Path(os.fsdecode(each)) for each in visible), root

    async def _directory(self, container_id: ContainerId, image: StoredImage) -> Path:
        place = self._places.container(container_id)
        async with self._copies.setdefault(container_id, asyncio.Lock()):
            if container_id not in self._containers.held:
                made = await self._run(self._copy, image)
                self._image(
                    image.id
                )  # it may be gone by now; what was made is found at the next open
                holding = Holding(image.id, RootfsForm.DIRECTORY)
                self._containers.adopt(container_id, holding, made)
        self._copies.pop(container_id, None)
        return place / "fs"

    def _copy(self, image: StoredImage) -> Path:
        meter = Meter(str(self._places.work), self._options.limits, self._stopping)
        with self._pins.lease() as lease:
            layers = self._layers.ensure(lease, image)
            view = MergedView(_topmost_first(layers))
            return prepare_directory(
                self._places.work, lambda target: copy_merged(view, target, meter)
            )

    async def release(self, container_id: ContainerId, /) -> None:
        """Give back a container's rootfs."""
        image_id = self._containers.give_back(container_id)
        self._sampler.forget(container_id)
        image = self._catalog.images.get(image_id) if image_id else None
        if image is not None and image.retired:
            self._behind(self._run(self._collect), "collection")

    async def prepared(self) -> Sequence[ContainerId]:
        """Return the containers that have a rootfs."""
        return list(self._containers.held)

    async def writable_usage(self, container_id: ContainerId, /) -> FilesystemUsage | None:
        """Return the last sample of the writable layer."""
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


def _locked(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise FailedPrecondition(
            f"{path.parent}: another server uses this image store; give this one its own server.root"
        ) from None
    return descriptor


def _in_loop(progress: Progress | None) -> Progress | None:
    """Return the callback so that a thread may call it: it runs in the event loop."""
    if progress is None:
        return None
    loop, told = asyncio.get_running_loop(), progress

    def tell(step: Any) -> None:  # noqa: ANN401 - passed on
        with suppress(RuntimeError):  # the loop is gone, nobody listens
            loop.call_soon_threadsafe(told, step)

    return tell


def _topmost_first(layers: Sequence[Path]) -> Sequence[bytes]:
    return [os.fsencode(each) for each in reversed(layers)]


def _too_large(image_id: ImageId, path: str, limit: int) -> InvalidArgument:
    return InvalidArgument(f"image {image_id}: {path[:200]} is larger than {limit} bytes")
