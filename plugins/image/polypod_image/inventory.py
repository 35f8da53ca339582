"""What of the store blocks: opening, importing, collecting, reading. Each method belongs in a thread.

The event loop's side is `store`; between the two there is nothing but calls with plain values.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from threading import Event, Lock
from typing import Final

from polypod.plugin.errors import (
    BackendError,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    Unsupported,
)
from polypod.plugin.ids import Digest, ImageId
from polypod.plugin.images import FilesystemUsage, Image, Progress
from polypod_image import changes
from polypod_image.blobs import Blobs
from polypod_image.block import ensure_block
from polypod_image.catalog import DIGEST, SOURCE, TAG, StoredImage
from polypod_image.containers import check_filesystem
from polypod_image.documents import Descriptor
from polypod_image.finding import find
from polypod_image.importing import Arrived, Importer, base_name
from polypod_image.inspection import extra_bytes, names_of, wrong_blobs
from polypod_image.layers import Layers
from polypod_image.locking import lock
from polypod_image.merged import MergedView, read_file
from polypod_image.meter import Meter, check_space
from polypod_image.options import StoreOptions
from polypod_image.pins import Lease, Pins
from polypod_image.places import Places, sync_directory
from polypod_image.platforms import host_platform
from polypod_image.rebuilding import Holdings, open_catalog
from polypod_image.references import Reference, candidates, with_digest
from polypod_image.sources import LocalSource, Transport, open_archive
from polypod_image.streams import Source
from polypod_image.trash import Trash
from polypod_image.unpackers import Unpackers

log = logging.getLogger(__name__)

_FULL: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM))


class Inventory:
    """Catalog, blobs and layers of one root."""

    def __init__(
        self,
        places: Places,
        trash: Trash,
        options: StoreOptions,
        users: Callable[[], Iterable[ImageId]],
    ) -> None:
        """Open what is there; `clean` comes next.

        Args:
            places: where.
            trash: takes what goes away.
            options: of the store.
            users: the images that containers use.

        Raises:
            FailedPrecondition: another process uses this root.
            BackendError: the file system cannot hold a store.
        """
        self.stopping = Event()
        self.places = self._places = places
        self._trash = trash
        self._limits = options.limits
        self._users = users
        self._pins = Pins()
        self._committing = Lock()
        """An image enters the catalog, or a collection looks at all of it: never both."""
        self._blobs = Blobs(places, self._limits.free_bytes)
        self._unpackers = Unpackers(places.work, self._limits, options.unpackers)
        self._lock = lock(places.lock)
        try:
            check_filesystem(places.root)
            for each in places.work.iterdir():
                trash.throw(each)
            held = Holdings(places, self._blobs, self._unpackers, self.stopping.is_set)
            self.catalog = open_catalog(held, pinning_names(options.pinned))
        except BaseException:
            self._unpackers.close()
            os.close(self._lock)
            raise
        self.layers = Layers(places, self.catalog, trash, self._unpackers, self.stopping.is_set)

    def clean(self) -> None:
        """Throw away what is unfinished, damaged or used by nobody; `users` must answer by now."""
        self.layers.clean()
        self._drop_broken()
        self.collect()

    def close(self) -> None:
        """Close it; nothing is under way any more."""
        self._unpackers.close()
        self.catalog.close()
        os.close(self._lock)

    def usage(self) -> FilesystemUsage:
        """Return what blobs and layers take."""
        sizes, layers = self._blobs.sizes(), self.catalog.layers.values()
        used = sum(-(-size // 4096) * 4096 for size in sizes.values())
        # Records and block images lie beside the trees.
        beside = sum(extra_bytes(self._places.layer(each)) for each in self.catalog.layers)
        return FilesystemUsage(
            time.time_ns(),
            self._places.root,
            used + beside + sum(each.bytes for each in layers),
            len(sizes) + sum(each.inodes for each in layers),
        )

    # Bringing in

    def bring(
        self,
        source: LocalSource,
        names: tuple[Reference, ...],
        alias: str,
        progress: Progress | None,
    ) -> Sequence[Image]:
        """Import the images of a source.

        Args:
            source: where from.
            names: what the one image shall be called; empty for what the source calls them.
            alias: a further name, which `find` knows and no list shows.
            progress: called with each step, in this thread.

        Raises:
            InvalidArgument: malformed, hostile, or several images for one name.
            NotFound: no such image, or none for this host.
            ResourceExhausted: no space.
            Unsupported: what this store cannot unpack.
        """
        try:
            return self._bring(source, names, alias, progress)
        except OSError as error:
            kind = ResourceExhausted if error.errno in _FULL else BackendError
            raise kind(f"{source.path}: {error.strerror or error}") from error

    def _bring(
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
                    self._limits.layer_bytes,
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
                    self.layers.ensure(lease, each.image)
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
        self.catalog.add(arrived.image, found)
        return self.catalog.shown[arrived.image.id]

    def _unpacked(self, source: Source) -> Path:
        """Write a source into a temporary file, within the limits of a layer."""
        path = self._places.work / f"archive-{secrets.token_hex(12)}"
        meter = Meter(str(self._places.work), self._limits, self._check_open)
        try:
            with path.open("xb") as file:
                while piece := source():
                    meter.update(piece)
                    file.write(piece)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    # Bringing in, piece by piece: what a pull from a registry uses

    @property
    def work(self) -> Path:
        """Where unfinished files lie; emptied at open."""
        return self._places.work

    def lease(self) -> Lease:
        """Return what holds blobs and layers until their image is committed."""
        return self._pins.lease()

    def hold_blob(self, lease: Lease, descriptor: Descriptor) -> bool:
        """Hold a blob; return whether it is here. If not, there is space for it.

        Raises:
            InvalidArgument: it is here with another size.
            ResourceExhausted: no space.
        """
        place = self._places.blob(descriptor.digest)
        if not lease.hold(place):
            check_space(str(self._places.root), self._limits.free_bytes, descriptor.size)
            return False
        found = place.stat().st_size
        if found != descriptor.size:
            raise InvalidArgument(
                f"blob {descriptor.digest}: {found} bytes, its descriptor says {descriptor.size}"
            )
        return True

    def land(self, fresh: Path, digest: Digest) -> None:
        """Give a file of `work` that is whole, verified and durable its name; it is held already."""
        place = self._places.blob(digest)
        fresh.rename(place)
        sync_directory(place.parent)

    def document(self, lease: Lease, digest: Digest, limit: int) -> bytes | None:
        """Hold a small blob and return it, None if it is not here."""
        return self._blobs.read(digest, limit) if lease.hold(self._places.blob(digest)) else None

    def keep(self, lease: Lease, descriptor: Descriptor, data: bytes) -> None:
        """Store a small blob."""
        pieces = iter((data, b""))
        self._blobs.put(lease, lambda: next(pieces), descriptor.digest, descriptor.size)

    def knows(self, name: str) -> bool:
        """Return whether an image has a name."""
        return name in self.catalog.names

    def named(self, reference: Reference) -> Image | None:
        """Return the image of a reference, None if it is not here."""
        return find(self.catalog, str(reference))

    def commit(self, image: StoredImage, names: Mapping[str, str]) -> Image:
        """Commit an image whose blobs are held and whose layers are unpacked (name → kind)."""
        with self._committing:
            self.catalog.add(image, names)
            found = self.catalog.shown.get(image.id)
        if found is None:
            raise Unavailable(f"image {image.id} was removed while it was pulled; try again")
        return found

    # Taking away

    def collect(self) -> None:
        """Throw away what no image, no container and no running import needs."""
        with self._committing:
            self._collect_now()

    def _collect_now(self) -> None:
        # In this order: who was prepared before the image was retired is seen as its user.
        retired = [image.id for image in self.catalog.images.values() if image.retired]
        used_by = set(self._users())
        for image_id in retired:
            if image_id not in used_by:
                self.catalog.forget_retired(image_id)
        images = self.catalog.images.values()
        blobs = {digest for image in images if not image.retired for digest, _ in image.blobs}
        chains = {chain_id for image in images for chain_id in image.chain}
        if not used_by <= {image.id for image in images}:
            # Somebody uses an image that a damaged catalog took along: any layer may be one of it.
            chains.update(self.catalog.layers)
        for digest in self._blobs.sizes():
            if digest not in blobs:
                self._pins.collect(self._places.blob(digest), self._trash.throw)
        gone = [
            chain_id
            for chain_id in self.catalog.layers
            if chain_id not in chains
            and self._pins.collect(self._places.layer(chain_id), self._trash.throw)
        ]
        self.catalog.forget_layers(gone)

    # Mending: nobody uses the store meanwhile

    def drop_blob(self, digest: Digest) -> None:
        """Throw a blob away."""
        self._trash.throw(self._places.blob(digest))

    def drop_layer(self, chain_id: Digest) -> None:
        """Throw an unpacked layer away with what lies beside it."""
        self.catalog.forget_layers([chain_id])
        self._trash.throw(self._places.layer(chain_id))

    def drop_beside(self, chain_id: Digest, name: str) -> None:
        """Throw a file beside an unpacked layer away."""
        self._trash.throw(self._places.layer(chain_id) / name)

    def unpack(self, image: StoredImage) -> None:
        """Unpack what is missing of an image, durably."""
        with self._pins.lease() as lease:
            self.layers.ensure(lease, image)
        self.layers.sync()

    # Using

    def read_file(self, image: StoredImage, path: str, limit: int) -> bytes | None:
        """Return a small regular file of an image, None for anything else."""
        with self._pins.lease() as lease:
            layers = self.layers.ensure(lease, image)
            node = MergedView(_topmost_first(layers)).resolve(os.fsencode(path)) if layers else None
            if node is None:
                return None
            try:
                return read_file(node, limit)
            except ValueError:
                raise too_large(image.id, path, limit) from None

    def has(self, image: StoredImage, path: str) -> bool:
        """Tell whether an image has something at a path."""
        with self._pins.lease() as lease:
            layers = self.layers.ensure(lease, image)
            view = MergedView(_topmost_first(layers)) if layers else None
            return view is not None and view.resolve(os.fsencode(path)) is not None

    def root_of(self, image: StoredImage) -> tuple[tuple[Path, ...], tuple[int, int, int]]:
        """Return an image's layers, topmost first, and mode, owner and group of its root."""
        with self._pins.lease() as lease:
            layers = self.layers.ensure(lease, image)
        if not layers:
            raise Unsupported(f"image {image.id} has no layers: there is nothing to run in it")
        # A layer that is opaque as a whole ends the stack: overlayfs does not look for that mark.
        visible = MergedView(_topmost_first(layers)).layers
        status = os.lstat(visible[0])
        root = (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
        return tuple(Path(os.fsdecode(each)) for each in visible), root

    def apply_changes(self, file: Path, upper: Path, lowers: Sequence[Path]) -> None:
        """Put a layer in the place of a container's upper directory; see `changes.apply`."""
        workshop = (self._places, self._trash, self._unpackers)
        changes.apply(file, upper, lowers, workshop, self.stopping.is_set)

    def copy(self, image: StoredImage) -> Path:
        """Return a new place whose ``fs`` is a copy of what the image shows."""
        made = self._places.work / f"rootfs-{secrets.token_hex(8)}"
        with self._pins.lease() as lease:
            layers = self.layers.ensure(lease, image)
            if not layers:
                raise Unsupported(f"image {image.id} has no layers: there is nothing to run in it")
            made.mkdir(mode=0o700)
            try:
                self._unpackers.copy(layers[::-1], made, self.stopping.is_set)
            except BaseException:
                self._trash.throw(made)
                raise
        return made

    def block_of(self, image: StoredImage) -> Path:
        """Return the block image of what an image shows, making it if it is missing."""
        with self._pins.lease() as lease:
            layers = self.layers.ensure(lease, image)
            if not layers:
                raise Unsupported(f"image {image.id} has no layers: there is nothing to run in it")
            top, work = layers[-1].parent, self._places.work
            return ensure_block(top, work, lease, self._trash, lambda: self.copy(image))

    # Within

    def _check_open(self) -> None:
        if self.stopping.is_set():
            raise Unavailable("the image store is closing")

    def _drop_broken(self) -> None:
        """Forget images whose blobs are gone or cut off: sizes and presence, nothing is hashed here.

        A retired image needs no blobs, only its layers.
        """
        here = self._blobs.sizes()
        for image in list(self.catalog.images.values()):
            wrong = {} if image.retired else wrong_blobs(image, here, self._blobs.read)
            for digest, problem in wrong.items():
                names = ", ".join(names_of(self.catalog, image))
                log.error("image %s is dropped: its blob %s: %s", names, digest, problem)
            if wrong:
                self.catalog.retire(image.id)


def pinning_names(references: Sequence[str]) -> frozenset[str]:
    """Return the names that pin an image, as the catalog has them; a short one may mean two."""
    return frozenset(
        with_digest(each, each.digest) if each.digest else each.tagged
        for reference in references
        for each in candidates(reference)
    )


def _topmost_first(layers: Sequence[Path]) -> Sequence[bytes]:
    return [os.fsencode(each) for each in reversed(layers)]


def too_large(image_id: ImageId, path: str, limit: int) -> InvalidArgument:
    """Return the error for a file beyond the limit."""
    return InvalidArgument(f"image {image_id}: {path[:200]} is larger than {limit} bytes")
