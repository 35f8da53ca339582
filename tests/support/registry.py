"""A real registry on this host, and how images get into it; bench uses it too."""

from polypod.testing.registry import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    PROGRAM,
    Image,
    Registry,
    digest_of,
    free_port,
    image_of_layout,
    push,
)

__all__ = [
    "OCI_CONFIG",
    "OCI_INDEX",
    "OCI_LAYER",
    "OCI_MANIFEST",
    "PROGRAM",
    "Image",
    "Registry",
    "digest_of",
    "free_port",
    "image_of_layout",
    "push",
]
