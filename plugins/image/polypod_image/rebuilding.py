"""A catalog that is damaged is set aside, and a new one is made of what the store holds.

Images are found by their manifests among the blobs, layers by their directories. Only the catalog knows what images
are called, and which ones were removed while containers used them: of that as much is kept as its file still tells.

Spec:
    Reliability I13.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from polypod.plugin.errors import InvalidArgument, PolypodError
from polypod.plugin.ids import Digest, ImageId
from polypod_image import jsondoc, mediatypes, trees
from polypod_image.blobs import Blobs
from polypod_image.catalog import (
    KINDS,
    Catalog,
    CatalogDamaged,
    LayerRow,
    StoredImage,
)
from polypod_image.digests import HEX_DIGITS, digest_of, hasher, split
from polypod_image.documents import parse_config, parse_manifest
from polypod_image.layers import boot_id, disk_usage
from polypod_image.places import Places, sync_directory
from polypod_image.unpackers import Ended, Unpackers

log = logging.getLogger(__name__)

_BESIDE: Final = ("", "-wal", "-shm")
"""What belongs to a database."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a store holds beside its catalog."""

    places: Places
    blobs: Blobs
    unpackers: Unpackers
    """They compare layers with their records."""
    ended: Ended
    """Whether the store closes."""


def open_catalog(held: Holdings, pinned: frozenset[str]) -> Catalog:
    """Open the catalog; a damaged one is set aside for one that is made anew.

    Raises:
        FailedPrecondition: it was written by another version of this software.
    """
    path = held.places.catalog
    try:
        return Catalog(path, pinned=pinned)
    except CatalogDamaged as error:
        log.error("%s; it is made anew from blobs and layers", error)
    fresh = path.with_name(f"{path.name}.new")
    for end in _BESIDE:
        Path(f"{fresh}{end}").unlink(missing_ok=True)
    catalog = Catalog(fresh)
    try:
        _fill(catalog, held)
    finally:
        catalog.close()
    aside = _set_aside(path)
    fresh.replace(path)  # until now the next start would have begun anew
    sync_directory(held.places.root)
    catalog = Catalog(path, pinned=pinned)
    nameless = sum(not (each.repo_tags or each.repo_digests) for each in catalog.shown.values())
    log.error(
        "%s was damaged and is kept as %s; the new one has %d images, %d of them without a name (pull or load "
        "them again), and %d layers",
        *(path, aside, len(catalog.shown), nameless, len(catalog.layers)),
    )
    return catalog


def _set_aside(path: Path) -> Path:
    """Give a damaged catalog another name, too; its own is for the new one to take."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    aside.hardlink_to(path)
    for end in _BESIDE[1:]:
        if (file := Path(f"{path}{end}")).exists():
            file.rename(f"{aside}{end}")
    return aside


def _fill(catalog: Catalog, held: Holdings) -> None:
    """Fill an empty catalog."""
    path = held.places.catalog
    names = _names(path)
    found = {image.id: image for image in _images(held.blobs)}
    for image in found.values():
        catalog.add(image, {name: kind for name, (kind, of) in names.items() if of == image.id})
    for image in _retired(path):
        if image.id not in found:
            catalog.add(image, {})
            catalog.retire(image.id)
    for place in held.places.layers.iterdir():
        if len(place.name) in HEX_DIGITS.values():
            _note_layer(catalog, held, place)


# Blobs and layers


def _images(blobs: Blobs) -> Iterator[StoredImage]:
    """Yield the images whose documents and layers are all here, those of the oldest manifest first."""
    sizes = blobs.sizes()
    for digest in sorted(sizes, key=blobs.age):
        if sizes[digest] > jsondoc.MAX_BYTES:
            continue
        try:
            yield _image(blobs, sizes, digest)
        except (PolypodError, OSError):
            continue  # a layer, a config, an index, or something that lacks a part


def _image(blobs: Blobs, sizes: Mapping[Digest, int], digest: Digest) -> StoredImage:
    """Return the image of a manifest.

    Raises:
        PolypodError: it is none, or lacks a part.
    """
    raw = _verified(blobs, digest)
    media_type = jsondoc.decode(raw, digest).text("mediaType", mediatypes.OCI_MANIFEST)
    if media_type not in mediatypes.MANIFESTS:
        raise InvalidArgument(f"{digest}: no manifest")
    manifest = parse_manifest(raw, digest, media_type)
    parts = (*manifest.layers, manifest.config)
    if any(sizes.get(each.digest) != each.size for each in parts):
        raise InvalidArgument(f"{digest}: lacks a part")
    raw_config = _verified(blobs, manifest.config.digest)
    config = parse_config(raw_config, manifest.config.digest)
    if len(config.diff_ids) != len(manifest.layers):
        raise InvalidArgument(f"{digest}: layers and diff_ids differ")
    kept = {each.digest: each.size for each in parts} | {digest: len(raw)}
    return StoredImage(
        id=ImageId(manifest.config.digest),
        seq=0,
        manifest_digest=digest,
        size_bytes=sum(kept.values()),
        blobs=(
            *((each.digest, each.media_type) for each in manifest.layers),
            (manifest.config.digest, ""),
            (digest, ""),
        ),
        document=config,
        raw_config=raw_config,
    )


def _verified(blobs: Blobs, digest: Digest) -> bytes:
    data = blobs.read(digest, jsondoc.MAX_BYTES)
    found = hasher(digest)
    found.update(data)
    if found.hexdigest() != split(digest)[1]:
        raise InvalidArgument(f"{digest}: other content than its digest says")
    return data


def _note_layer(catalog: Catalog, held: Holdings, place: Path) -> None:
    """Note a layer if it is as its record says: nobody knows whether it was on disk when the power failed."""
    tree, record = place / "fs", place / trees.NAME
    try:
        differs = held.unpackers.check(tree, record, held.ended, deep=False).count
    except (InvalidArgument, OSError) as error:
        log.warning("layer %s: %s: it is unpacked again when it is needed", place.name, error)
        return
    if differs:
        log.warning("layer %s differs from its record: it is not used", place.name)
        return
    used, inodes = disk_usage(str(tree))
    (algorithm,) = (each for each, digits in HEX_DIGITS.items() if digits == len(place.name))
    catalog.add_layer(Digest(f"{algorithm}:{place.name}"), LayerRow(used, inodes, boot_id()))


# What the damaged file still tells


def _names(path: Path) -> dict[str, tuple[str, str]]:
    """Return name → kind and image, in the order in which they were given."""
    rows = _rows(path, "SELECT name, kind, image FROM names ORDER BY seq")
    return {
        name: (kind, image) for name, kind, image in rows if isinstance(name, str) and kind in KINDS
    }


def _retired(path: Path) -> Iterator[StoredImage]:
    query = "SELECT id, manifest, size, blobs, config FROM images WHERE retired = 1"
    for id_, manifest, size, parts, config in _rows(path, query):
        try:
            if digest_of(config) != id_:
                continue
            document = parse_config(config, id_)
            kept = tuple((Digest(digest), media) for digest, media in json.loads(parts))
            yield StoredImage(ImageId(id_), 0, Digest(manifest), size, kept, document, config)
        except (PolypodError, TypeError, ValueError):
            continue


def _rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    """Return the rows that can be read, up to the first that cannot."""
    found: list[tuple[Any, ...]] = []
    db = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
    try:
        found.extend(db.execute(query))
    except sqlite3.Error as error:
        log.warning("%s: %d rows of %r, then: %s", path, len(found), query, error)
    finally:
        db.close()
    return found
