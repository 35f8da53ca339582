"""Unpacked layers, once per chainID, shared by all images and containers that have them.

A layer can be made again from its blobs at any time. So nobody waits for the disk: a new layer is noted with
the boot in which it was written, and a `sync` behind the pull takes that note away; after a loss of
power layers whose note is still there are thrown away instead of trusted.
"""

from __future__ import annotations

import ctypes
import logging
import os
import secrets
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from polypod.plugin.errors import BackendError, InvalidArgument, PolypodError
from polypod.plugin.ids import Digest
from polypod_image.catalog import Catalog, LayerRow, StoredImage
from polypod_image.mediatypes import LAYERS, Compression, compression_of
from polypod_image.pins import Lease
from polypod_image.places import Places
from polypod_image.trash import Trash
from polypod_image.unpackers import Ended, Told, Unpackers

log = logging.getLogger(__name__)

_libc = ctypes.CDLL(None, use_errno=True)


class Layers:
    """Makes layers and gives out their paths. Every method blocks: it belongs in a thread."""

    def __init__(
        self, places: Places, catalog: Catalog, trash: Trash, unpackers: Unpackers, ended: Ended
    ) -> None:
        """Use what the store has opened; ``ended`` tells that it closes."""
        self._places = places
        self._catalog = catalog
        self._trash = trash
        self._unpackers = unpackers
        self._ended = ended
        self._boot = boot_id()

    def ensure(
        self, lease: Lease, image: StoredImage, told: Told | None = None
    ) -> tuple[Path, ...]:
        """Return the layers of an image, base first, unpacking what is missing.

        Args:
            lease: holds them; when it is abandoned, unpacking ends.
            image: which.
            told: of the bytes of a blob that are unpacked.

        Raises:
            Unavailable: the store closes, or the lease is abandoned.
            InvalidArgument: a layer is hostile, beyond a limit, or not what its diffID says.
            ResourceExhausted: no space.
        """
        layers = [blob for blob in image.blobs if blob[1]]
        if len(layers) != len(image.document.diff_ids):
            raise InvalidArgument(
                f"image {image.id}: {len(layers)} layers, its config has "
                f"{len(image.document.diff_ids)} diff_ids"
            )
        done: list[Path] = []
        for (digest, media), diff_id, chain_id in zip(
            layers, image.document.diff_ids, image.chain, strict=True
        ):
            place = self._places.layer(chain_id)
            with lease.maker(place):
                if not (lease.hold(place) and chain_id in self._catalog.layers):
                    self._make(lease, chain_id, (digest, media), diff_id, done, told)
            done.append(place / "fs")
        return tuple(done)

    def expect(self, image: StoredImage) -> None:
        """Get ready to unpack, if something of an image will have to be: its blobs are still on their way."""
        if any(chain_id not in self._catalog.layers for chain_id in image.chain):
            with suppress(PolypodError):  # told by the job itself
                self._unpackers.warm()

    def unsynced(self) -> list[Digest]:
        """Return the layers that a loss of power could still damage."""
        return [chain_id for chain_id, row in self._catalog.layers.items() if row.boot]

    def sync(self) -> None:
        """Write to disk what was unpacked, and note that it is there."""
        waiting = self.unsynced()
        if not waiting:
            return
        descriptor = os.open(self._places.layers, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if _libc.syncfs(descriptor) != 0:
                raise OSError(ctypes.get_errno(), "syncfs", str(self._places.layers))
        finally:
            os.close(descriptor)
        self._catalog.layers_are_durable(waiting)

    def clean(self) -> None:
        """At open: throw away what was left unfinished or may have been lost with the power."""
        here = {each.name: each for each in self._places.layers.iterdir()}
        lost = []
        for chain_id, row in self._catalog.layers.items():
            if not (self._places.layer(chain_id) / "fs").is_dir():
                log.error("layer %s is missing: it is unpacked again when it is needed", chain_id)
                lost.append(chain_id)
            elif row.boot not in ("", self._boot):
                log.warning("layer %s was not on disk when the host stopped: dropped", chain_id)
                lost.append(chain_id)
        self._catalog.forget_layers(lost)
        known = {chain_id.partition(":")[2] for chain_id in self._catalog.layers}
        for name, path in here.items():
            if name not in known:
                self._trash.throw(path)

    def _make(
        self,
        lease: Lease,
        chain_id: Digest,
        blob: tuple[Digest, str],
        diff_id: Digest,
        below: Sequence[Path],
        told: Told | None,
    ) -> None:
        target = self._places.work / f"layer-{secrets.token_hex(12)}"
        target.mkdir(mode=0o700)
        try:
            used = self._unpackers.unpack(
                self._places.blob(blob[0]),
                (self._compression(blob), diff_id),
                below[::-1],
                target,
                lambda: self._ended() or lease.abandoned,
                told,
            )
            self._trash.throw(target / "gone")
            place = self._places.layer(chain_id)
            self._trash.throw(place)  # without its note it is not to be trusted
            # The note first: a layer without one is thrown away at the next open, a note alone as well.
            self._catalog.add_layer(chain_id, LayerRow(used.bytes, used.inodes, self._boot))
            target.rename(place)
        except PolypodError as error:
            raise type(error)(f"layer {blob[0]}: {error}") from error
        except OSError as error:
            raise BackendError(f"layer {blob[0]}: {error}") from error
        finally:
            self._trash.throw(target)

    def _compression(self, blob: tuple[Digest, str]) -> Compression:
        """Return how a layer is packed.

        Registries hold layers whose type says gzip and which are plain tar; diffID decides.
        """
        digest, media = blob
        if LAYERS[media] is Compression.NONE:
            return Compression.NONE
        with self._places.blob(digest).open("rb") as file:
            return compression_of(file.read(4))


def boot_id() -> str:
    """Return what the kernel calls this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def disk_usage(path: str, *, max_depth: int = 200) -> tuple[int, int]:
    """Return bytes on disk and inodes of a directory and all below it.

    Links are not followed; a file with several names counts once. Below ``max_depth`` directories deep
    nothing is counted, so that descriptors cannot be used up by who owns the tree.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        top = os.open(path, flags)
    except FileNotFoundError:
        return 0, 0
    used, inodes, seen = os.fstat(top).st_blocks * 512, 1, set[int]()
    stack = [(top, os.scandir(top))]
    while stack:
        descriptor, entries = stack[-1]
        entry = next(entries, None)
        if entry is None:
            entries.close()
            os.close(descriptor)
            stack.pop()
            continue
        try:
            status = entry.stat(follow_symlinks=False)
            is_directory = stat.S_ISDIR(status.st_mode)
            if not is_directory and status.st_nlink > 1:
                if status.st_ino in seen:
                    continue
                seen.add(status.st_ino)
            used += status.st_blocks * 512
            inodes += 1
            if is_directory and len(stack) < max_depth:
                inner = os.open(entry.name, flags, dir_fd=descriptor)
                stack.append((inner, os.scandir(inner)))
        except OSError:
            continue  # it went away, or became something else, while we looked
    return used, inodes
