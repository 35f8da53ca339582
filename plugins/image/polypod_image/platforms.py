"""Which of an index's images this host can run."""

from __future__ import annotations

import platform as host_facts
from collections.abc import Mapping, Sequence
from typing import Final

from polypod.plugin.errors import InvalidArgument, NotFound
from polypod_image.documents import Descriptor, Platform

_MACHINES: Final[Mapping[str, tuple[str, str]]] = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "i386": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
    "loongarch64": ("loong64", ""),
}
"""``uname -m`` → GOARCH and variant, as image-spec writes them."""

_FALLBACK: Final[Mapping[str, tuple[str, ...]]] = {
    "arm": ("v8", "v7", "v6", "v5"),
    "arm64": ("v9", "v8"),
    "amd64": ("v4", "v3", "v2", "v1"),
}
"""Architecture → variants, best first; a host runs its own and those behind it."""
_USUAL: Final[Mapping[str, str]] = {"arm": "v7", "arm64": "v8", "amd64": "v1"}
"""What an absent variant means."""


def host_platform() -> Platform:
    """Return this host's platform."""
    architecture, variant = _MACHINES.get(host_facts.machine(), (host_facts.machine(), ""))
    return Platform("linux", architecture, variant)


def parse_platform(text: str) -> Platform:
    """Return ``os/architecture[/variant]``.

    Raises:
        InvalidArgument: of another shape.
    """
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise InvalidArgument(f"platform {text!r}: write OS/ARCHITECTURE[/VARIANT]")
    return Platform(*parts)


def fit(found: Platform, wanted: Platform) -> int:
    """Return how well an image fits: 0 is perfect, larger is worse, -1 not at all."""
    if (found.os, found.architecture) != (wanted.os, wanted.architecture):
        return -1
    usual = _USUAL.get(wanted.architecture, "")
    has, wants = found.variant or usual, wanted.variant or usual
    if has == wants:
        return 0
    order = _FALLBACK.get(wanted.architecture, ())
    if has not in order or wants not in order or order.index(has) < order.index(wants):
        return -1
    return order.index(has) - order.index(wants)


def choose(found: Sequence[Descriptor], wanted: Platform, what: str) -> Descriptor:
    """Return the manifest of an index that fits best; the first of equals, as the spec asks.

    A descriptor without a platform is taken only where no other choice exists.

    Raises:
        NotFound: none fits; the text lists what there is.
    """
    ranked = [
        (rank, index, each)
        for index, each in enumerate(found)
        if each.platform is not None and (rank := fit(each.platform, wanted)) >= 0
    ]
    if ranked:
        return min(ranked, key=lambda r: r[:2])[2]
    if len(found) == 1 and found[0].platform is None:
        return found[0]
    offered = ", ".join(str(each.platform) for each in found if each.platform) or "nothing named"
    raise NotFound(f"{what}: no image for {wanted}; it has {offered}")
