"""What a reference means: an id, a name long or short, a digest, an id's beginning.

Spec:
    kubernetes/cri-api api.proto, ImageSpec: "an image ID, or a name".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from polypod.plugin.errors import InvalidArgument
from polypod.plugin.ids import ImageId
from polypod.plugin.images import Image
from polypod_image.catalog import Catalog
from polypod_image.references import Reference, candidates, with_digest

_PREFIX: Final = re.compile(r"(?:sha256:)?([0-9a-f]{3,64})")
_SOURCE: Final = re.compile(r"(?:oci|oci-archive|docker-archive):/")


def find(catalog: Catalog, reference: str) -> Image | None:
    """Return the image, or None.

    Names go before prefixes of ids: ``cafe`` is a name if an image has it.

    Raises:
        InvalidArgument: no reference, or a prefix that fits several images.
    """
    shown = catalog.shown
    if ImageId(reference) in shown:
        return shown[ImageId(reference)]
    if _SOURCE.match(reference):
        return _named(catalog, reference)
    prefix = _PREFIX.fullmatch(reference)
    if prefix is None or not (reference.startswith("sha256:") or len(prefix[1]) == 64):
        for each in candidates(reference):
            found = _by_reference(catalog, each)
            if found is not None:
                return found
    return _by_prefix(shown, reference, prefix[1]) if prefix is not None else None


def _by_reference(catalog: Catalog, reference: Reference) -> Image | None:
    if reference.digest is not None:
        # With a digest the tag says nothing more: it may have moved since.
        return _named(catalog, with_digest(reference, reference.digest))
    return _named(catalog, reference.tagged)


def _named(catalog: Catalog, name: str) -> Image | None:
    kind_and_image = catalog.names.get(name)
    return catalog.shown.get(kind_and_image[1]) if kind_and_image is not None else None


def _by_prefix(shown: Mapping[ImageId, Image], reference: str, digits: str) -> Image | None:
    found = [image for id_, image in shown.items() if id_.partition(":")[2].startswith(digits)]
    if len(found) > 1:
        raise InvalidArgument(f"image id {reference!r} fits {len(found)} images: write more of it")
    return found[0] if found else None
