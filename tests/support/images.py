"""Small images made in memory: layers from a table of files, manifests of any media type."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence

import zstandard

from support.registry import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Image,
    digest_of,
)

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def layer_of(files: Mapping[str, bytes]) -> bytes:
    """Return a tar with some regular files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def noise(size: int, seed: str = "") -> bytes:
    """Return bytes that do not compress: the same for the same seed."""
    return hashlib.shake_128(f"noise {seed}".encode()).digest(size)


def packed(layer: bytes, kind: str) -> tuple[str, bytes]:
    """Return media type and bytes of a layer: kind is ``""``, ``gzip``, ``zstd`` or ``docker``."""
    if kind == "zstd":
        return f"{OCI_LAYER}+zstd", zstandard.ZstdCompressor(3).compress(layer)
    if kind == "docker":
        return DOCKER_LAYER, gzip.compress(layer, 1, mtime=0)
    if kind == "gzip":
        return f"{OCI_LAYER}+gzip", gzip.compress(layer, 1, mtime=0)
    return OCI_LAYER, layer


def image_of(
    layers: Sequence[bytes],
    *,
    kind: str = "gzip",
    config: Mapping[str, object] | None = None,
    platform: tuple[str, str] = ("linux", "amd64"),
) -> Image:
    """Return an image of some tars.

    Args:
        layers: base first.
        kind: as `packed`; ``docker`` gives Docker's types throughout.
        config: the inner ``config`` object, such as ``{"Cmd": ["/bin/sh"]}``.
        platform: os and architecture.
    """
    document = {
        "os": platform[0],
        "architecture": platform[1],
        "config": dict(config or {}),
        "rootfs": {"type": "layers", "diff_ids": [digest_of(each) for each in layers]},
    }
    raw_config = json.dumps(document, sort_keys=True).encode()
    blobs = {digest_of(raw_config): raw_config}
    listed = []
    for layer in layers:
        media_type, data = packed(layer, kind)
        blobs[digest_of(data)] = data
        listed.append({"mediaType": media_type, "digest": digest_of(data), "size": len(data)})
    docker = kind == "docker"
    media_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
    manifest = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": {
            "mediaType": DOCKER_CONFIG if docker else OCI_CONFIG,
            "digest": digest_of(raw_config),
            "size": len(raw_config),
        },
        "layers": listed,
    }
    return Image(json.dumps(manifest, sort_keys=True).encode(), media_type, blobs)


def index_of(images: Sequence[tuple[Image, Mapping[str, str]]], *, docker: bool = False) -> Image:
    """Return an index of images, each with its platform object."""
    media_type = DOCKER_INDEX if docker else OCI_INDEX
    document = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "manifests": [image.descriptor(platform=dict(platform)) for image, platform in images],
    }
    raw = json.dumps(document, sort_keys=True).encode()
    return Image(raw, media_type, {}, [image for image, _ in images])
