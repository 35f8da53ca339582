"""Bring images from an archive into the content store: find what it has, verify, store. Blocks.

Spec:
    image-spec image-layout.md, annotations.md (``org.opencontainers.image.ref.name``); docker's archives
    have ``manifest.json``. Reliability I5, I6.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from polypod.plugin.errors import InvalidArgument, NotFound
from polypod.plugin.ids import Digest, ImageId
from polypod.plugin.images import Progress, PullProgress
from polypod_image import jsondoc, mediatypes, references
from polypod_image.archives import Archive, read_whole
from polypod_image.blobs import Blobs
from polypod_image.catalog import StoredImage
from polypod_image.digests import digest_of, hasher, split
from polypod_image.documents import (
    MAX_LAYERS,
    ConfigDocument,
    Descriptor,
    Manifest,
    Platform,
    parse_config,
    parse_index,
    parse_manifest,
)
from polypod_image.mediatypes import LAYER_TYPE_OF, compression_of
from polypod_image.pins import Lease
from polypod_image.platforms import choose
from polypod_image.references import Reference, parse_reference

MAX_IMAGES: Final = 1000
_REF_NAME: Final = "org.opencontainers.image.ref.name"
_FULL_NAMES: Final = ("io.containerd.image.name", "org.opencontainers.image.full.name")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_NOT_A_NAME: Final = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True)
class Arrived:
    """An image whose blobs are all in the content store, but which has no name yet."""

    image: StoredImage
    names: tuple[Reference, ...]


@dataclass(frozen=True, slots=True)
class Importer:
    """Imports from one archive."""

    archive: Archive
    blobs: Blobs
    lease: Lease
    platform: Platform
    base: str
    """Name for images that the archive names by a tag alone, or not at all."""
    progress: Progress | None
    max_blob_bytes: int

    # OCI

    def oci(self, wanted: str = "") -> list[Arrived]:
        """Import the images of a layout.

        Args:
            wanted: only that with this ``ref.name``.

        Raises:
            InvalidArgument: malformed, ambiguous, or content that is not what its descriptor says.
            NotFound: no image for this host, or none of the wanted name.
            Unsupported: what it has is no container image.
        """
        layout = jsondoc.decode(self._read("oci-layout", 4096), f"{self.archive.what}: oci-layout")
        if layout.text("imageLayoutVersion") != "1.0.0":
            layout.refuse("imageLayoutVersion", "only 1.0.0 is known")
        what = f"{self.archive.what}: index.json"
        groups: dict[str, list[Descriptor]] = {}
        for each in parse_index(self._read("index.json", jsondoc.MAX_BYTES), what):
            groups.setdefault(_given_name(each), []).append(each)
        if wanted:
            groups = {name: found for name, found in groups.items() if _means(name, wanted)}
            if not groups:
                raise NotFound(f"{self.archive.what}: it has no image {wanted!r}")
        if not groups:
            raise NotFound(f"{self.archive.what}: it has no images")
        return [self._group(name, found) for name, found in groups.items()]

    def _group(self, name: str, found: Sequence[Descriptor]) -> Arrived:
        what = f"{self.archive.what}: {name or 'the image'}"
        chosen = found[0] if len(found) == 1 else choose(found, self.platform, what)
        if chosen.media_type in mediatypes.INDEXES:
            inner = parse_index(self._blob(chosen), f"{what}: index", chosen.media_type)
            chosen = choose(inner, self.platform, what)
        if chosen.media_type not in mediatypes.MANIFESTS:
            raise InvalidArgument(f"{what}: {chosen.media_type!r} is no manifest of an image")
        raw = self._blob(chosen)
        manifest = parse_manifest(raw, f"{what}: manifest", chosen.media_type)
        raw_config = self._blob(manifest.config)
        config = parse_config(raw_config, f"{what}: config")
        if len(config.diff_ids) != len(manifest.layers):
            raise InvalidArgument(
                f"{what}: {len(manifest.layers)} layers, but {len(config.diff_ids)} diff_ids"
            )
        for layer in manifest.layers:
            self._store(layer)
        self._store(manifest.config)
        self._store(chosen)
        return Arrived(_stored(chosen, manifest, config, raw_config), self._oci_names(name))

    def _oci_names(self, name: str) -> tuple[Reference, ...]:
        if not name:
            return (parse_reference(self.base),)
        return (parse_reference(f"{self.base}:{name}" if _TAG.fullmatch(name) else name),)

    def _blob(self, descriptor: Descriptor) -> bytes:
        """Return a small blob, verified."""
        name = _blob_name(descriptor.digest)
        data = self._read(name, jsondoc.MAX_BYTES)
        if len(data) != descriptor.size:
            raise InvalidArgument(
                f"{self.archive.what}: {name}: {len(data)} bytes, its descriptor says "
                f"{descriptor.size}"
            )
        digest = hasher(descriptor.digest)
        digest.update(data)
        if digest.hexdigest() != split(descriptor.digest)[1]:
            raise InvalidArgument(f"{self.archive.what}: {name} has another digest")
        return data

    def _store(self, descriptor: Descriptor) -> None:
        source, size, close = self.archive.source(_blob_name(descriptor.digest))
        try:
            if size != descriptor.size:
                raise InvalidArgument(
                    f"{self.archive.what}: blob {descriptor.digest}: {size} bytes, its descriptor "
                    f"says {descriptor.size}"
                )
            told = self._told(descriptor.digest, descriptor.size)
            self.blobs.put(self.lease, source, descriptor.digest, descriptor.size, told)
            self._say(descriptor.digest, "stored", descriptor.size, descriptor.size)
        finally:
            close()

    # docker

    def docker(self, wanted: str = "") -> list[Arrived]:
        """Import the images of a docker archive.

        Args:
            wanted: only that with this tag.

        Raises:
            InvalidArgument: malformed.
            NotFound: none, or none of the wanted name.
        """
        what = f"{self.archive.what}: manifest.json"
        raw = self._read("manifest.json", jsondoc.MAX_BYTES)
        # A list at the top, where `jsondoc` wants an object.
        listed = jsondoc.decode(b'{"images":' + raw + b"}", what).objects("images", MAX_IMAGES)
        found: list[Arrived] = []
        for each in listed:
            tags = each.texts("RepoTags", 10_000)
            if wanted and not any(_means(tag, wanted) for tag in tags):
                continue
            names = tuple(parse_reference(tag) for tag in tags if not wanted or _means(tag, wanted))
            found.append(self._docker_image(each, names))
        if not found:
            raise NotFound(f"{self.archive.what}: it has no image {wanted or 'at all'}")
        return found

    def _docker_image(self, doc: jsondoc.Doc, names: tuple[Reference, ...]) -> Arrived:
        raw_config = self._read(doc.text("Config"), jsondoc.MAX_BYTES)
        config = parse_config(raw_config, f"{doc.what}: {doc.text('Config')}")
        files = doc.texts("Layers", MAX_LAYERS)
        if len(files) != len(config.diff_ids):
            raise InvalidArgument(
                f"{doc.what}: {len(files)} layers, but {len(config.diff_ids)} diff_ids"
            )
        layers = tuple(self._docker_layer(name) for name in files)
        config_at = Descriptor(mediatypes.OCI_CONFIG, digest_of(raw_config), len(raw_config))
        self._put(raw_config, config_at)
        manifest = Manifest(mediatypes.OCI_MANIFEST, config_at, layers)
        raw = manifest_bytes(manifest)
        manifest_at = Descriptor(mediatypes.OCI_MANIFEST, digest_of(raw), len(raw))
        self._put(raw, manifest_at)
        return Arrived(_stored(manifest_at, manifest, config, raw_config), names)

    def _docker_layer(self, name: str) -> Descriptor:
        head_source, size, close = self.archive.source(name)
        try:
            media = LAYER_TYPE_OF[compression_of(head_source()[:4])]
        finally:
            close()
        source, _, close = self.archive.source(name)
        try:
            told = self._told(name, size)
            digest, size = self.blobs.put_unknown(self.lease, source, self.max_blob_bytes, told)
        finally:
            close()
        self._say(digest, "stored", size, size)
        return Descriptor(media, digest, size)

    def _put(self, data: bytes, descriptor: Descriptor) -> None:
        pieces = iter((data, b""))
        self.blobs.put(self.lease, lambda: next(pieces), descriptor.digest, descriptor.size)

    # Shared

    def _read(self, name: str, limit: int) -> bytes:
        return read_whole(self.archive, name, limit)

    def _told(self, what: str, total: int) -> Callable[[int], None] | None:
        if self.progress is None:
            return None
        return lambda done: self._say(what, "storing", done, total)

    def _say(self, what: str, stage: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(PullProgress(what, stage, done, total))


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return a manifest as a document: the same bytes each time."""
    return canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": manifest.media_type,
            "config": descriptor_json(manifest.config),
            "layers": [descriptor_json(each) for each in manifest.layers],
        }
    )


def descriptor_json(descriptor: Descriptor) -> dict[str, object]:
    """Return a descriptor for `canonical_json`."""
    found: dict[str, object] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
    if descriptor.annotations:
        found["annotations"] = dict(descriptor.annotations)
    if descriptor.platform is not None:
        platform = descriptor.platform
        found["platform"] = {"os": platform.os, "architecture": platform.architecture} | (
            {"variant": platform.variant} if platform.variant else {}
        )
    return found


def canonical_json(value: Mapping[str, object]) -> bytes:
    """Return JSON without choices."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def base_name(path: Path) -> str:
    """Return what unnamed images of an archive are called: after its file, on this host."""
    stem = path.name
    for ending in (".gz", ".zst", ".tgz", ".tar", ".oci"):
        stem = stem.removesuffix(ending)
    stem = _NOT_A_NAME.sub("-", stem.lower()).strip("-")[:100]
    return f"{references.LOCALHOST}/{stem or 'image'}"


def _stored(
    at: Descriptor, manifest: Manifest, config: ConfigDocument, raw_config: bytes
) -> StoredImage:
    parts = {each.digest: each.size for each in (*manifest.layers, manifest.config, at)}
    return StoredImage(
        id=ImageId(manifest.config.digest),
        seq=0,
        manifest_digest=at.digest,
        size_bytes=sum(parts.values()),
        blobs=(
            *((each.digest, each.media_type) for each in manifest.layers),
            (manifest.config.digest, ""),
            (at.digest, ""),
        ),
        document=config,
        raw_config=raw_config,
    )


def _blob_name(digest: Digest) -> str:
    return "blobs/" + "/".join(split(digest))


def _given_name(descriptor: Descriptor) -> str:
    for key in (*_FULL_NAMES, _REF_NAME):
        if name := descriptor.annotations.get(key):
            return name
    return ""


def _means(name: str, wanted: str) -> bool:
    """Return whether a name in an archive is the wanted one, written short or in full."""
    if name == wanted:
        return True
    try:
        return bool(name) and parse_reference(name) == parse_reference(wanted)
    except InvalidArgument:
        return False
