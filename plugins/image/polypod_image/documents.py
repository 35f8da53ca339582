"""Index, manifest and config as frozen dataclasses; a document that can be read two ways is refused.

Spec:
    image-spec image-index.md, manifest.md, config.md, descriptor.md. Both ``manifests`` and ``layers`` in
    one document: CVE-2021-41190.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from polypod.plugin import override
from polypod.plugin.errors import InvalidArgument, Unsupported
from polypod.plugin.ids import Digest
from polypod.plugin.images import ImageConfig
from polypod_image import jsondoc, mediatypes
from polypod_image.digests import parse_digest
from polypod_image.jsondoc import Doc

log = logging.getLogger(__name__)

MAX_LAYERS: Final = 127
"""Overlayfs takes more, but every peer stops about here; the count comes from a stranger."""
MAX_MANIFESTS: Final = 1024
_MAX_TEXTS: Final = 10_000
RESERVED_LABELS: Final = ("io.polypod.", "polypod.")
"""Labels of an image below these names would speak with our own voice: they are dropped."""


@dataclass(frozen=True, slots=True)
class Platform:
    """Who can run it."""

    os: str
    architecture: str
    variant: str = ""

    @override
    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What points at a blob."""

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image: its config and its layers, base first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class ConfigDocument:
    """The config blob: what the container is told, and what the layers unpack to."""

    platform: Platform
    diff_ids: tuple[Digest, ...]
    config: ImageConfig


def parse_index(data: bytes, what: str, media_type: str = "") -> tuple[Descriptor, ...]:
    """Return the manifests of an index.

    Args:
        data: the document.
        what: names it in errors.
        media_type: that of the descriptor which led here; ``""`` for the ``index.json`` of a layout.

    Raises:
        InvalidArgument: not an index, or two things at once.
    """
    doc = jsondoc.decode(data, what)
    _check_media_type(doc, media_type or mediatypes.OCI_INDEX)
    if doc.has("layers") or doc.has("config") or doc.has("fsLayers"):
        raise InvalidArgument(f"{what}: says that it is an index and has a manifest's fields")
    if not doc.has("manifests"):
        doc.refuse("manifests", "missing")
    return tuple(map(_descriptor, doc.objects("manifests", MAX_MANIFESTS)))


def parse_manifest(data: bytes, what: str, media_type: str) -> Manifest:
    """Return a manifest whose every layer this store can unpack.

    Raises:
        InvalidArgument: not a manifest, or two things at once.
        Unsupported: an artifact, or layers of an unknown kind.
    """
    doc = jsondoc.decode(data, what)
    _check_media_type(doc, media_type)
    if doc.has("manifests") or doc.has("fsLayers"):
        raise InvalidArgument(f"{what}: says that it is a manifest and has other fields as well")
    config = _descriptor(doc.child("config"))
    if config.media_type not in mediatypes.CONFIGS:
        raise Unsupported(
            f"{what}: a config of type {config.media_type!r} makes no container image"
        )
    layers = tuple(map(_descriptor, doc.objects("layers", MAX_LAYERS)))
    for layer in layers:
        if layer.media_type not in mediatypes.LAYERS:
            raise Unsupported(f"{what}: layer type {layer.media_type!r} cannot be unpacked here")
    return Manifest(media_type, config, layers)


def parse_config(data: bytes, what: str) -> ConfigDocument:
    """Return an image's config.

    Raises:
        InvalidArgument: malformed.
        Unsupported: its rootfs is not made of layers.

    Spec:
        image-spec config.md: rootfs.type MUST be ``layers``; others must generate an error.
    """
    doc = jsondoc.decode(data, what)
    rootfs = doc.child("rootfs")
    if rootfs.text("type") != "layers":
        raise Unsupported(f"{what}: rootfs.type {rootfs.text('type')!r} is none but 'layers'")
    diff_ids = tuple(
        parse_digest(each, f"{what}: diff_id") for each in rootfs.texts("diff_ids", MAX_LAYERS)
    )
    platform = Platform(doc.text("os", "linux"), doc.text("architecture"), doc.text("variant"))
    return ConfigDocument(platform, diff_ids, _image_config(doc.child("config"), platform, what))


def _image_config(doc: Doc, platform: Platform, what: str) -> ImageConfig:
    return ImageConfig(
        user=doc.text("User"),
        env=doc.texts("Env", _MAX_TEXTS),
        entrypoint=doc.texts("Entrypoint", _MAX_TEXTS),
        cmd=doc.texts("Cmd", _MAX_TEXTS),
        working_dir=doc.text("WorkingDir"),
        volumes=tuple(sorted(doc.child("Volumes").values)),
        labels=_labels(doc.text_map("Labels"), what),
        stop_signal=doc.text("StopSignal"),
        os=platform.os,
        architecture=platform.architecture,
        variant=platform.variant,
    )


def _labels(found: Mapping[str, str], what: str) -> dict[str, str]:
    """Drop labels in our own name space: an image must not configure the server (CVE-2026-53488)."""
    reserved = [name for name in found if name.startswith(RESERVED_LABELS)]
    if reserved:
        log.warning("%s: reserved labels dropped: %s", what, ", ".join(map(repr, reserved[:10])))
    return {name: value for name, value in found.items() if name not in reserved}


def _descriptor(doc: Doc) -> Descriptor:
    platform: Platform | None = None
    if doc.has("platform"):
        its = doc.child("platform")
        platform = Platform(its.text("os"), its.text("architecture"), its.text("variant"))
    return Descriptor(
        media_type=doc.text("mediaType"),
        digest=parse_digest(doc.text("digest"), doc.what),
        size=doc.number("size"),
        platform=platform,
        annotations=doc.text_map("annotations"),
    )


def _check_media_type(doc: Doc, expected: str) -> None:
    found = doc.text("mediaType", expected)
    if found != expected:
        doc.refuse("mediaType", f"{found!r}, but what points at it says {expected!r}")
