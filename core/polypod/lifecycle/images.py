"""The image service: one identity for each image, whatever store holds it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from polypod.lifecycle.heart import Heart
from polypod.plugin.errors import InvalidArgument
from polypod.plugin.ids import ImageId
from polypod.plugin.images import ARRIVING, FilesystemUsage, Image, ImageStore, PullProgress
from polypod.plugin.requests import Auth


class Images:
    """Lists, finds, pulls and removes images."""

    def __init__(self, heart: Heart) -> None:
        self._heart = heart
        self._pulling: dict[str, dict[str, PullProgress]] = {}

    async def list(self, reference: str) -> Sequence[Image]:
        """Return all images, or the one that the reference names; one entry per id."""
        if reference:
            found = await self.find(reference)
            return [] if found is None else [found]
        seen: dict[ImageId, Image] = {}
        for store in self._stores():
            for image in await store.list():
                seen.setdefault(image.id, image)
        return list(seen.values())

    async def find(self, reference: str) -> Image | None:
        """Return an image by id, prefix, tag or digest, or None.

        Raises:
            InvalidArgument: empty, not a reference, or ambiguous.
        """
        if not reference:
            raise InvalidArgument("image.image must not be empty")
        for store in self._stores():
            found = await store.find(reference)
            if found is not None:
                return found
        return None

    async def pull(self, reference: str, auth: Auth | None) -> Image:
        """Pull into the default store; equal pulls with equal credentials are one.

        A caller that hangs up lets go of its share; the last one ends the pull.
        """
        if not reference:
            raise InvalidArgument("image.image must not be empty")
        store = self._heart.parts.image_store
        key = ("pull", reference, auth)

        async def work() -> Image:
            steps = self._pulling.setdefault(reference, {})
            received: dict[str, int] = {}

            def progress(step: PullProgress) -> None:
                steps[step.what] = step
                if step.stage in ARRIVING:
                    received[step.what] = step.done_bytes

            with self._timed(received):
                try:
                    return await store.pull(reference, auth=auth, progress=progress)
                finally:
                    self._pulling.pop(reference, None)

        return await self._heart.joins.share(key, work)

    @contextmanager
    def _timed(self, received: Mapping[str, int]) -> Iterator[None]:
        """Tell how a pull went, if anybody wants to know."""
        telemetry, clock = self._heart.parts.telemetry, self._heart.clock
        if telemetry is None:
            yield
            return
        begun, error = clock.monotonic(), ""
        try:
            yield
        except BaseException as failure:
            error = type(failure).__name__
            raise
        finally:
            telemetry.pulled(sum(received.values()), clock.monotonic() - begun, error)

    def progress(self, reference: str) -> Sequence[PullProgress]:
        """Return how far a pull under this very reference is: the last step of each part."""
        return list(self._pulling.get(reference, {}).values())

    async def remove(self, reference: str) -> None:
        """Remove an image with all its names from every store; an unknown one counts as removed.

        Spec:
            kubernetes/cri-api api.proto, ImageService.RemoveImage: idempotent.
        """
        if not reference:
            raise InvalidArgument("image.image must not be empty")
        for store in self._stores():
            found = await store.find(reference)
            if found is not None:
                await store.remove(found.id)

    async def filesystems(self) -> tuple[FilesystemUsage, FilesystemUsage]:
        """Return what the default store's images take, and what containers have written over them.

        The kubelet reads the first entry of each list alone. Both lie on one file system; what is written
        is the sum of the last samples, as old as the oldest of them.
        """
        store = self._heart.parts.image_store
        images = await store.filesystem_usage()
        samples = [await store.writable_usage(each) for each in await store.prepared()]
        known = [each for each in samples if each is not None]
        written = FilesystemUsage(
            timestamp_ns=min((each.timestamp_ns for each in known), default=images.timestamp_ns),
            mountpoint=images.mountpoint,
            used_bytes=sum(each.used_bytes for each in known),
            inodes_used=sum(each.inodes_used for each in known),
        )
        return images, written

    def _stores(self) -> Sequence[ImageStore]:
        parts = self._heart.parts
        stores = {id(parts.image_store): parts.image_store}
        stores.update((id(each.image_store), each.image_store) for each in parts.handlers.values())
        return list(stores.values())
