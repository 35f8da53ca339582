"""One pull: resolve, choose for this host, fetch and unpack in step, commit under the original name.

Layers arrive several at a time; each is unpacked as soon as it and those below it are there.

Spec:
    distribution-spec "Pull"; image-spec image-index.md, manifest.md. Reliability I5, I6.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from polypod.plugin.errors import InvalidArgument, Unsupported
from polypod.plugin.ids import ImageId
from polypod.plugin.images import Image, Progress, PullProgress
from polypod_image import jsondoc, mediatypes
from polypod_image.catalog import DIGEST, TAG, StoredImage
from polypod_image.documents import (
    ConfigDocument,
    Descriptor,
    Manifest,
    parse_config,
    parse_index,
    parse_manifest,
)
from polypod_image.inventory import Inventory
from polypod_image.pins import Lease
from polypod_image.platforms import choose, host_platform
from polypod_image.references import Reference, with_digest
from polypod_image.registry.client import Document, RegistryClient
from polypod_image.registry.fetching import Fetcher
from polypod_image.registry.landing import in_thread
from polypod_image.registry.settings import PullOptions

T = TypeVar("T")
_WRITERS: Final = 4
_OLD_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v1+"


class Workshop:
    """What all pulls of a store share: the inventory and the threads."""

    def __init__(self, inventory: Inventory, options: PullOptions) -> None:
        """Prepare; threads begin with the first work."""
        self.inventory = inventory
        self.options = options
        self.writing = ThreadPoolExecutor(_WRITERS, "pull")
        self.unpacking = ThreadPoolExecutor(max(2, os.cpu_count() or 2), "unpack")
        self.fetcher = Fetcher(inventory, self.writing, options.attempts)

    def reload(self, options: PullOptions) -> None:
        """Take other options for the pulls that begin from now on."""
        self.options = options
        self.fetcher = Fetcher(self.inventory, self.writing, options.attempts)

    def close(self) -> None:
        """End the threads; nothing is under way any more."""
        self.writing.shutdown()
        self.unpacking.shutdown()


@dataclass(frozen=True, slots=True)
class _Found:
    """What a reference leads to: documents, verified."""

    top: Document
    """An index, or the manifest itself."""
    at: Descriptor
    """The manifest."""
    manifest: Manifest
    config: ConfigDocument
    raw_config: bytes
    documents: tuple[tuple[Descriptor, bytes], ...]
    """What the content store keeps beside the layers: config, manifest, index."""

    def image(self) -> StoredImage:
        """Return the image as the catalog takes it."""
        layers = self.manifest.layers
        kept = [each for each, _ in self.documents]
        sizes = {each.digest: each.size for each in (*layers, *kept)}
        return StoredImage(
            id=ImageId(self.manifest.config.digest),
            seq=0,
            manifest_digest=self.at.digest,
            size_bytes=sum(sizes.values()),
            blobs=(
                *((each.digest, each.media_type) for each in layers),
                *((each.digest, "") for each in kept),
            ),
            document=self.config,
            raw_config=self.raw_config,
        )


class Job:
    """One pull; `run` is called once."""

    def __init__(
        self,
        workshop: Workshop,
        client: RegistryClient,
        reference: Reference,
        lease: Lease,
        progress: Progress,
    ) -> None:
        """Prepare.

        Args:
            workshop: of the store.
            client: asks the registry.
            reference: what is pulled; its name is kept, whoever serves it.
            lease: holds what arrives until the image is committed.
            progress: told of each step.
        """
        self._workshop = workshop
        self._inventory = workshop.inventory
        self._client = client
        self._reference = reference
        self._lease = lease
        self._progress = progress
        self._slots = asyncio.Semaphore(workshop.options.parallel_layers)

    async def run(self) -> Image:
        """Pull; `Puller.pull` tells what is raised."""
        found = await self._find()
        image = found.image()
        for descriptor, data in found.documents:
            await self._thread(self._inventory.keep, self._lease, descriptor, data)
        await self._layers(found.manifest, image)
        names = {with_digest(self._reference, found.top.digest): DIGEST}
        if self._reference.digest is None:
            names[self._reference.tagged] = TAG
        made = await self._thread(self._inventory.commit, image, names)
        self._say(str(self._reference), "done", image.size_bytes, image.size_bytes)
        return made

    # Documents

    async def _find(self) -> _Found:
        reference = self._reference
        self._say(str(reference), "resolving", 0, 0)
        top = await self._top(reference.digest or reference.tag)
        documents = [(_descriptor(top), top.data)]
        inner = top
        if top.media_type in mediatypes.INDEXES:
            listed = parse_index(top.data, f"{reference}: index", top.media_type)
            at = choose(listed, host_platform(), str(reference))
            if at.media_type not in mediatypes.MANIFESTS:
                raise InvalidArgument(f"{reference}: {at.media_type!r} is no manifest of an image")
            inner = await self._inner(at)
            documents.insert(0, (_descriptor(inner), inner.data))
        manifest = self._manifest(inner)
        raw_config = await self._config(manifest.config)
        documents.insert(0, (manifest.config, raw_config))
        config = parse_config(raw_config, f"{reference}: config")
        if len(config.diff_ids) != len(manifest.layers):
            raise InvalidArgument(
                f"{reference}: {len(manifest.layers)} layers, but {len(config.diff_ids)} diff_ids"
            )
        return _Found(top, _descriptor(inner), manifest, config, raw_config, tuple(documents))

    def _manifest(self, document: Document) -> Manifest:
        what = f"{self._reference}: manifest"
        if document.media_type.startswith(_OLD_MANIFEST):
            raise Unsupported(f"{what}: of Docker's schema 1, which nobody serves any more")
        if document.media_type not in mediatypes.MANIFESTS:
            raise InvalidArgument(f"{what}: media type {document.media_type!r} is none of an image")
        return parse_manifest(document.data, what, document.media_type)

    async def _top(self, name: str) -> Document:
        """Return what a tag or digest names now; what is here already is asked for and not fetched.

        Even a digest that is here is asked for: whether this caller may have it is the registry's to say.
        """
        if self._reference.digest is not None or self._inventory.knows(self._reference.tagged):
            now = await self._client.head(name)
            if now is not None and now[1] in mediatypes.INDEXES | mediatypes.MANIFESTS:
                data = await self._here(now[0])
                if data is not None:
                    return Document(now[1], now[0], data)
        return await self._client.manifest(name)

    async def _inner(self, at: Descriptor) -> Document:
        data = await self._here(at.digest)
        if data is not None and len(data) == at.size:
            return Document(at.media_type, at.digest, data)
        return await self._client.manifest(at.digest, at)

    async def _config(self, at: Descriptor) -> bytes:
        data = await self._here(at.digest)
        if data is not None and len(data) == at.size:
            return data
        return await self._client.small_blob(at, "config")

    async def _here(self, digest: str) -> bytes | None:
        return await self._thread(self._inventory.document, self._lease, digest, jsondoc.MAX_BYTES)

    # Layers

    async def _layers(self, manifest: Manifest, image: StoredImage) -> None:
        """Fetch all layers and unpack them in their order.

        Raises:
            PolypodError: the first thing that went wrong; the others are stopped.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(
                    in_thread(self._workshop.unpacking, self._inventory.layers.expect, image)
                )
                arrivals = [group.create_task(self._fetch(each)) for each in manifest.layers]
                group.create_task(self._unpack(manifest, image, arrivals))
        except BaseExceptionGroup as failed:
            raise _first(failed) from None

    async def _fetch(self, layer: Descriptor) -> None:
        def tell(stage: str, done: int) -> None:
            self._say(layer.digest, stage, done, layer.size)

        async with self._slots:
            await self._workshop.fetcher.fetch(self._lease, self._client, layer, tell)

    async def _unpack(
        self, manifest: Manifest, image: StoredImage, arrivals: list[asyncio.Task[None]]
    ) -> None:
        for count, (layer, arrival) in enumerate(zip(manifest.layers, arrivals, strict=True), 1):
            await asyncio.shield(arrival)
            self._say(layer.digest, "unpacking", 0, layer.size)
            part = replace(
                image,
                blobs=image.blobs[:count],
                document=replace(image.document, diff_ids=image.document.diff_ids[:count]),
            )
            await in_thread(
                self._workshop.unpacking,
                self._inventory.layers.ensure,
                self._lease,
                part,
                self._unpacking(layer),
                abandon=self._lease.abandon,
            )
            self._say(layer.digest, "unpacked", layer.size, layer.size)

    def _unpacking(self, layer: Descriptor) -> Callable[[int], None]:
        """Return what a thread tells of the bytes that are unpacked."""
        loop = asyncio.get_running_loop()

        def tell(done: int) -> None:
            loop.call_soon_threadsafe(self._say, layer.digest, "unpacking", done, layer.size)

        return tell

    # Within

    def _say(self, what: str, stage: str, done: int, total: int) -> None:
        self._progress(PullProgress(what, stage, done, total))

    async def _thread(self, work: Callable[..., T], *arguments: object) -> T:
        return await in_thread(self._workshop.writing, work, *arguments)


def _descriptor(document: Document) -> Descriptor:
    return Descriptor(document.media_type, document.digest, len(document.data))


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first real error of a group; its others are what that one caused."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
