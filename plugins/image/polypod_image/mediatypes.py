"""The media types that this store knows, as tables.

Spec:
    image-spec media-types.md; Docker's schema 2 types are its "compatible" ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
_OCI_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"
_DOCKER = "application/vnd.docker."


class Compression(StrEnum):
    """How a layer's tar is packed."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


INDEXES: Final = frozenset({OCI_INDEX, f"{_DOCKER}distribution.manifest.list.v2+json"})
MANIFESTS: Final = frozenset({OCI_MANIFEST, f"{_DOCKER}distribution.manifest.v2+json"})
CONFIGS: Final = frozenset({OCI_CONFIG, f"{_DOCKER}container.image.v1+json"})
LAYERS: Final[Mapping[str, Compression]] = {
    OCI_LAYER: Compression.NONE,
    f"{OCI_LAYER}+gzip": Compression.GZIP,
    f"{OCI_LAYER}+zstd": Compression.ZSTD,
    _OCI_FOREIGN: Compression.NONE,
    f"{_OCI_FOREIGN}+gzip": Compression.GZIP,
    f"{_OCI_FOREIGN}+zstd": Compression.ZSTD,
    f"{_DOCKER}image.rootfs.diff.tar": Compression.NONE,
    f"{_DOCKER}image.rootfs.diff.tar.gzip": Compression.GZIP,
    f"{_DOCKER}image.rootfs.diff.tar.zstd": Compression.ZSTD,
    f"{_DOCKER}image.rootfs.foreign.diff.tar": Compression.NONE,
    f"{_DOCKER}image.rootfs.foreign.diff.tar.gzip": Compression.GZIP,
}
"""Media type of a layer → how it is packed. Any other type is refused, never guessed."""

LAYER_TYPE_OF: Final[Mapping[Compression, str]] = {
    Compression.NONE: OCI_LAYER,
    Compression.GZIP: f"{OCI_LAYER}+gzip",
    Compression.ZSTD: f"{OCI_LAYER}+zstd",
}

_MAGIC = ((b"\x1f\x8b", Compression.GZIP), (b"\x28\xb5\x2f\xfd", Compression.ZSTD))


def compression_of(head: bytes) -> Compression:
    """Return how something is packed, by its first bytes: docker archives do not say."""
    for magic, compression in _MAGIC:
        if head.startswith(magic):
            return compression
    return Compression.NONE
