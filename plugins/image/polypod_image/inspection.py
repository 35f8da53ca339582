"""A look at a store on disk: what is damaged, what nobody needs, what takes how much. Changes nothing.

A store that no server uses is locked for the look. Beside a running server the look is a reader: content never
changes once it has its name, and what went away meanwhile is left out.

Spec:
    Reliability I13.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from polypod.plugin.errors import FailedPrecondition, InvalidArgument, NotFound, PolypodError
from polypod.plugin.ids import Digest
from polypod_image import jsondoc, trees
from polypod_image.blobs import Blobs
from polypod_image.block import NAME as BLOCK
from polypod_image.block import is_whole
from polypod_image.catalog import Catalog, StoredImage
from polypod_image.digests import digest_of, hasher
from polypod_image.documents import parse_manifest
from polypod_image.locking import lock
from polypod_image.mediatypes import OCI_MANIFEST
from polypod_image.places import Places
from polypod_image.unpackers import Unpackers

_PIECE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it must be."""

    kind: str
    """``blob``, ``layer`` or ``block`` (the form)."""
    digest: Digest
    """Of the blob; of a layer and its block image the chainID."""
    problem: str
    images: tuple[str, ...]
    """Names (or ids) of the images that have it."""


@dataclass(frozen=True, slots=True)
class Look:
    """An opened store."""

    places: Places
    catalog: Catalog
    blobs: Blobs
    live: bool
    """A server uses it; nothing may be changed."""


@contextmanager
def look(root: Path) -> Iterator[Look]:
    """Open a store for a look.

    Raises:
        NotFound: there is none.
    """
    places = Places(root)
    if not places.catalog.exists():
        raise NotFound(f"{root}: there is no image store; --root is the server's (server.root)")
    with ExitStack() as stack:
        try:
            stack.callback(os.close, lock(places.lock))
            live = False
        except FailedPrecondition:
            live = True
        catalog = Catalog(places.catalog, readonly=live)
        stack.callback(catalog.close)
        yield Look(places, catalog, Blobs(places, 0), live)


def names_of(catalog: Catalog, image: StoredImage) -> tuple[str, ...]:
    """Return what an image is called; its id if nothing else."""
    names = tuple(name for name, (_, of) in catalog.names.items() if of == image.id)
    return names or (image.id,)


# What is damaged


def wrong_blobs(
    image: StoredImage, sizes: Mapping[Digest, int], read: Callable[[Digest, int], bytes]
) -> dict[Digest, str]:
    """Return the blobs of an image that are missing or not of their size: the quick check.

    Args:
        image: which.
        sizes: of the blobs that are here.
        read: returns a small blob.
    """
    wrong = {digest: "missing" for digest, _ in image.blobs if digest not in sizes}
    at = image.manifest_digest
    if at in wrong:
        return wrong
    try:
        raw = read(at, jsondoc.MAX_BYTES)
        if at.startswith("sha256:") and digest_of(raw) != at:
            raise InvalidArgument("other content than its digest says")
        media_type = jsondoc.decode(raw, "manifest").text("mediaType", OCI_MANIFEST)
        manifest = parse_manifest(raw, "manifest", media_type)
    except (PolypodError, OSError) as error:
        return wrong | {at: str(error)}
    for each in (*manifest.layers, manifest.config):
        if each.digest not in wrong and sizes[each.digest] != each.size:
            wrong[each.digest] = f"{sizes[each.digest]} bytes, its descriptor says {each.size}"
    return wrong


def verify(
    store: Look,
    unpackers: Unpackers,
    wanted: Iterable[StoredImage],
    *,
    deep: bool = False,
    told: Callable[[str], None] = lambda _: None,
) -> list[Finding]:
    """Check images: hash their blobs, compare their layers with the records.

    Args:
        store: opened.
        unpackers: read the layers.
        wanted: which images.
        deep: read the files of layers, too.
        told: of each blob and layer, before it is read.
    """
    having: dict[tuple[str, Digest], list[str]] = {}
    problems: dict[tuple[str, Digest], str] = {}
    sizes = store.blobs.sizes()
    for image in wanted:
        names = names_of(store.catalog, image)
        if not image.retired:
            for digest, _ in image.blobs:
                having.setdefault(("blob", digest), []).extend(names)
            quick = wrong_blobs(image, sizes, store.blobs.read)
            problems |= {("blob", digest): problem for digest, problem in quick.items()}
        for chain_id in image.chain:
            if chain_id in store.catalog.layers:
                having.setdefault(("layer", chain_id), []).extend(names)
                having.setdefault(("block", chain_id), []).extend(names)

    def checked(key: tuple[str, Digest]) -> str:
        kind, digest = key
        if kind != "block":
            told(f"{kind} {digest}")
        return _CHECKS[kind](store, unpackers, digest, deep)

    left = [key for key in having if key not in problems]
    with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
        for key, problem in zip(left, pool.map(checked, left), strict=True):
            if problem:
                problems[key] = problem
    found = [Finding(*key, problem, tuple(having[key])) for key, problem in problems.items()]
    return [each for each in found if not store.live or _is_still_there(store.places, each)]


def _check_blob(store: Look, _unpackers: Unpackers, digest: Digest, _deep: bool) -> str:
    found = hasher(digest)
    try:
        with store.places.blob(digest).open("rb") as file:
            while piece := file.read(_PIECE):
                found.update(piece)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    right = found.hexdigest() == digest.partition(":")[2]
    return "" if right else "other content than its digest says"


def _check_layer(store: Look, unpackers: Unpackers, chain_id: Digest, deep: bool) -> str:
    place = store.places.layer(chain_id)
    try:
        found = unpackers.check(place / "fs", place / trees.NAME, lambda: False, deep=deep)
    except FileNotFoundError as error:
        return f"{Path(error.filename or place).name} is missing"
    except (InvalidArgument, OSError) as error:
        return str(error)
    if not found.count:
        return ""
    more = found.count - len(found.some)
    return "; ".join(found.some) + (f"; and {more} more" if more else "")


def _check_block(store: Look, _unpackers: Unpackers, chain_id: Digest, _deep: bool) -> str:
    place = store.places.layer(chain_id) / BLOCK
    return "" if not place.exists() or is_whole(place) else "no whole erofs image"


_CHECKS: Final = {"blob": _check_blob, "layer": _check_layer, "block": _check_block}


def _is_still_there(places: Places, finding: Finding) -> bool:
    """Return whether the catalog still has it: it may have been removed while we looked."""
    now = Catalog(places.catalog, readonly=True)
    try:
        if finding.kind == "blob":
            images = now.images.values()
            return any(
                finding.digest == digest
                for image in images
                if not image.retired
                for digest, _ in image.blobs
            )
        return finding.digest in now.layers
    finally:
        now.close()


# What nobody needs


@dataclass(frozen=True, slots=True)
class Unneeded:
    """Something that no image and no container has."""

    what: str
    path: Path
    bytes: int


def unneeded(store: Look, used: Iterable[str]) -> list[Unneeded]:
    """Return what a collection would delete.

    Args:
        store: opened.
        used: ids of the images that containers use.
    """
    users = set(used)
    kept = [each for each in store.catalog.images.values() if not each.retired or each.id in users]
    blobs = {digest for image in kept if not image.retired for digest, _ in image.blobs}
    chains = {store.places.layer(chain_id) for image in kept for chain_id in image.chain}
    found = [
        Unneeded(f"blob {digest}", store.places.blob(digest), size)
        for digest, size in store.blobs.sizes().items()
        if digest not in blobs
    ]
    rows = {store.places.layer(key): row.bytes for key, row in store.catalog.layers.items()}
    found += [
        Unneeded(f"layer {path.name}", path, rows.get(path, 0) + extra_bytes(path))
        for path in sorted(store.places.layers.iterdir())
        if path not in chains or path not in rows
    ]
    if not store.live:
        for room in (store.places.work, store.places.trash):
            found += [Unneeded(f"{room.name}/{each.name}", each, 0) for each in room.iterdir()]
    return found


# What takes how much


def extra_bytes(layer: Path) -> int:
    """Return what lies beside an unpacked layer: its record, its block image."""
    total = 0
    try:
        with os.scandir(layer) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
    except FileNotFoundError:
        pass
    return total


@dataclass(frozen=True, slots=True)
class Share:
    """What one image takes, in bytes on disk."""

    names: tuple[str, ...]
    id: str
    blobs: int
    layers: int
    blocks: int
    """Block images and records, which lie beside layers."""
    unique: int
    """What its removal would free."""


def shares(store: Look) -> list[Share]:
    """Return what each image takes, newest first; a removed one that a container uses is among them."""
    sizes = store.blobs.sizes()
    images = sorted(store.catalog.images.values(), key=lambda each: -each.seq)
    parts = {image.id: _parts(store, image, sizes) for image in images}
    owners = Counter(part for each in parts.values() for part in each)

    def total(image: StoredImage, kind: str) -> int:
        return sum(size for part, size in parts[image.id].items() if part[0] == kind)

    return [
        Share(
            names_of(store.catalog, image),
            image.id,
            total(image, "blob"),
            total(image, "layer"),
            total(image, "block"),
            sum(size for part, size in parts[image.id].items() if owners[part] == 1),
        )
        for image in images
    ]


def _parts(
    store: Look, image: StoredImage, sizes: Mapping[Digest, int]
) -> dict[tuple[str, Digest], int]:
    """Return kind and digest of all that an image has, with the bytes on disk."""
    found: dict[tuple[str, Digest], int] = {}
    if not image.retired:
        found = {("blob", digest): sizes.get(digest, 0) for digest, _ in image.blobs}
    for chain_id in image.chain:
        row = store.catalog.layers.get(chain_id)
        if row is not None:
            found["layer", chain_id] = row.bytes
            found["block", chain_id] = extra_bytes(store.places.layer(chain_id))
    return found
