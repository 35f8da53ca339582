"""The catalog: which images there are, how they are called, what they are made of. Durable before it is true.

A name appears in one transaction, after all blobs of its image are durable; so a crash at any moment leaves
either the whole image or none. Reading is done from memory: the tables are small and have one writer.

Spec:
    performance.md §7 (sqlite WAL, FULL for the image store's commits). Reliability section 4, "Pull".
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import quote

from polypod.plugin.errors import BackendError, FailedPrecondition, PolypodError
from polypod.plugin.ids import Digest, ImageId
from polypod.plugin.images import Image
from polypod_image.digests import chain_ids
from polypod_image.documents import ConfigDocument, parse_config

VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS images (
    id TEXT PRIMARY KEY, seq INTEGER NOT NULL, manifest TEXT NOT NULL, size INTEGER NOT NULL,
    blobs TEXT NOT NULL, config BLOB NOT NULL, retired INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS names (
    name TEXT PRIMARY KEY, kind TEXT NOT NULL, image TEXT NOT NULL, seq INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS layers (
    chain TEXT PRIMARY KEY, bytes INTEGER NOT NULL, inodes INTEGER NOT NULL, boot TEXT NOT NULL);
"""
TAG: Final = "tag"
DIGEST: Final = "digest"
SOURCE: Final = "source"
"""Kinds of names: ``repository:tag``, ``repository@digest``, and what a pull named (``oci:PATH``)."""
KINDS: Final = frozenset({TAG, DIGEST, SOURCE})
_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class CatalogDamaged(BackendError):
    """The database is there, and its content is not what was written."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One image as the catalog has it."""

    id: ImageId
    seq: int
    manifest_digest: Digest
    size_bytes: int
    blobs: tuple[tuple[Digest, str], ...]
    """Layers base first, with their media types; then config and manifest with ``""``."""
    document: ConfigDocument
    raw_config: bytes
    retired: bool = False
    """Removed, but a container still uses its layers."""

    @property
    def chain(self) -> tuple[Digest, ...]:
        """Return the chainIDs, base first."""
        return chain_ids(self.document.diff_ids)


@dataclass(frozen=True, slots=True)
class LayerRow:
    """An unpacked layer."""

    bytes: int
    inodes: int
    boot: str
    """The boot in which it was written; ``""`` once it is known to be on disk."""


class Catalog:
    """All images and layers.

    Methods that change it block and belong in a thread. Readers need no lock: a change replaces the
    mappings as a whole, after its commit.
    """

    def __init__(
        self, path: Path, *, readonly: bool = False, pinned: frozenset[str] = frozenset()
    ) -> None:
        """Open or make the database.

        Args:
            path: of its file.
            readonly: look at what another process has open.
            pinned: names whose images are shown as pinned.

        Raises:
            FailedPrecondition: it was written by another version of this software.
            CatalogDamaged: it cannot be read.
        """
        where = f"file:{quote(str(path))}" + ("?mode=ro" if readonly else "")
        self._db = sqlite3.connect(where, isolation_level=None, check_same_thread=False, uri=True)
        self._writing = threading.Lock()
        self._pinned = pinned
        self.images: Mapping[ImageId, StoredImage] = {}
        self.names: Mapping[str, tuple[str, ImageId]] = {}
        """Name → kind and image, in the order in which they were given."""
        self.layers: Mapping[Digest, LayerRow] = {}
        self.shown: Mapping[ImageId, Image] = {}
        """What is not retired, as the contract has it, newest first."""
        try:
            self._prepare(path, readonly=readonly)
            self._read()
        except BaseException as error:
            self._db.close()
            code = getattr(error, "sqlite_errorcode", None)
            if code is not None and code & 0xFF in _DAMAGE:
                raise CatalogDamaged(f"{path} is damaged: {error}") from error
            raise

    def _prepare(self, path: Path, *, readonly: bool) -> None:
        if not readonly:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, VERSION):
            raise FailedPrecondition(
                f"{path}: written by another version of polypod (format {version}, this one has "
                f"{VERSION}): move the directory away, and the images are pulled again"
            )
        if not readonly:
            self._db.executescript(_SCHEMA + f"PRAGMA user_version={VERSION};")
            found = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise CatalogDamaged(f"{path} is damaged: {found}")

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def pin(self, names: frozenset[str]) -> None:
        """Show the images of these names as pinned, and no others."""
        with self._writing:
            self._pinned = names
            self._show(self.images, self.names)

    def _read(self) -> None:
        images: dict[ImageId, StoredImage] = {}
        query = "SELECT id, seq, manifest, size, blobs, config, retired FROM images"
        for id_, seq, manifest, size, blobs, config, retired in self._db.execute(query):
            try:
                images[ImageId(id_)] = StoredImage(
                    ImageId(id_),
                    seq,
                    Digest(manifest),
                    size,
                    tuple((Digest(digest), media) for digest, media in json.loads(blobs)),
                    parse_config(config, f"config of image {id_}"),
                    config,
                    bool(retired),
                )
            except (PolypodError, TypeError, ValueError) as error:
                raise CatalogDamaged(f"the catalog is damaged: image {id_}: {error}") from error
        rows = self._db.execute("SELECT name, kind, image FROM names ORDER BY seq")
        names = {name: (kind, ImageId(image)) for name, kind, image in rows}
        rows = self._db.execute("SELECT chain, bytes, inodes, boot FROM layers")
        self.layers = {Digest(chain): LayerRow(*row) for chain, *row in rows}
        self._show(images, names)

    def _show(
        self, images: Mapping[ImageId, StoredImage], names: Mapping[str, tuple[str, ImageId]]
    ) -> None:
        found: dict[ImageId, dict[str, list[str]]] = {
            each: {TAG: [], DIGEST: [], SOURCE: []} for each in images
        }
        for name, (kind, image_id) in names.items():
            if image_id in found:
                found[image_id][kind].append(name)
        newest = sorted(images.values(), key=lambda each: each.seq, reverse=True)
        shown = {
            each.id: _image(each, found[each.id], self._pinned)
            for each in newest
            if not each.retired
        }
        self.images, self.names, self.shown = images, names, shown

    # Images

    def next_seq(self) -> int:
        """Return a number for a new image: later ones are larger."""
        return 1 + max((each.seq for each in self.images.values()), default=0)

    def add(self, image: StoredImage, names: Mapping[str, str]) -> StoredImage:
        """Commit an image with names (name → kind); names are taken from whoever had them.

        An image that is there keeps its place in the list and its other names.
        """
        with self._writing:
            old = self.images.get(image.id)
            seq = 1 + max((each.seq for each in self.images.values()), default=0)
            image = replace(image, seq=seq if old is None or old.retired else old.seq)
            blobs = json.dumps(image.blobs)
            row = (image.id, image.seq, image.manifest_digest, image.size_bytes, blobs)
            with _Transaction(self._db):
                self._db.execute(
                    "INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?, 0)",
                    (*row, image.raw_config),
                )
                for name, kind in names.items():
                    self._db.execute("DELETE FROM names WHERE name = ?", (name,))
                    self._db.execute(
                        "INSERT INTO names SELECT ?, ?, ?, coalesce(max(seq), 0) + 1 FROM names",
                        (name, kind, image.id),
                    )
            kept = {name: value for name, value in self.names.items() if name not in names}
            given = {name: (kind, image.id) for name, kind in names.items()}
            self._show({**self.images, image.id: image}, {**kept, **given})
        return image

    def retire(self, image_id: ImageId) -> None:
        """Take all names of an image and hide it; its layers stay until `forget_retired`."""
        with self._writing:
            with _Transaction(self._db):
                self._db.execute("DELETE FROM names WHERE image = ?", (image_id,))
                self._db.execute("UPDATE images SET retired = 1 WHERE id = ?", (image_id,))
            images = dict(self.images)
            if image_id in images:
                images[image_id] = replace(images[image_id], retired=True)
            self._show(images, self._names_without(image_id))

    def forget_retired(self, image_id: ImageId) -> None:
        """Delete an image, unless it came back meanwhile."""
        with self._writing:
            if image_id not in self.images or not self.images[image_id].retired:
                return
            with _Transaction(self._db):
                self._db.execute("DELETE FROM names WHERE image = ?", (image_id,))
                self._db.execute("DELETE FROM images WHERE id = ?", (image_id,))
            images = {key: value for key, value in self.images.items() if key != image_id}
            self._show(images, self._names_without(image_id))

    # Layers

    def add_layer(self, chain_id: Digest, row: LayerRow) -> None:
        """Note an unpacked layer."""
        with self._writing:
            self._db.execute(
                "INSERT OR REPLACE INTO layers VALUES (?, ?, ?, ?)",
                (chain_id, row.bytes, row.inodes, row.boot),
            )
            self.layers = {**self.layers, chain_id: row}

    def layers_are_durable(self, chain: Iterable[Digest]) -> None:
        """Note that layers would survive a loss of power."""
        with self._writing:
            here = [each for each in chain if each in self.layers]
            with _Transaction(self._db):
                self._db.executemany(
                    "UPDATE layers SET boot = '' WHERE chain = ?", [(each,) for each in here]
                )
            changed = {each: replace(self.layers[each], boot="") for each in here}
            self.layers = {**self.layers, **changed}

    def forget_layers(self, chain: Iterable[Digest]) -> None:
        """Delete the notes of layers."""
        gone = set(chain)
        if not gone:
            return
        with self._writing:
            with _Transaction(self._db):
                self._db.executemany(
                    "DELETE FROM layers WHERE chain = ?", [(each,) for each in gone]
                )
            self.layers = {key: row for key, row in self.layers.items() if key not in gone}

    def _names_without(self, image_id: ImageId) -> dict[str, tuple[str, ImageId]]:
        return {name: value for name, value in self.names.items() if value[1] != image_id}


def _image(
    stored: StoredImage, names: Mapping[str, Sequence[str]], pinned: frozenset[str]
) -> Image:
    return Image(
        id=stored.id,
        repo_tags=tuple(names[TAG]),
        repo_digests=tuple(names[DIGEST]),
        size_bytes=stored.size_bytes,
        config=stored.document.config,
        manifest_digest=stored.manifest_digest,
        pinned=not pinned.isdisjoint((*names[TAG], *names[DIGEST])),
    )


class _Transaction:
    """BEGIN IMMEDIATE … COMMIT, or ROLLBACK."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")
