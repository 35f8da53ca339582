"""Digests, and the ids that are made of them.

Spec:
    image-spec descriptor.md ("Digests") and config.md ("Layer ChainID").
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from polypod.plugin.errors import InvalidArgument
from polypod.plugin.ids import Digest

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

HEX_DIGITS: Final = {"sha256": 64, "sha512": 128}
"""Algorithm → length of the hex part. Paths in the store are made from these parts alone."""

_GRAMMAR = re.compile(r"([a-z0-9]+):([0-9a-f]+)")


def parse_digest(text: str, what: str = "digest") -> Digest:
    """Check a digest.

    Args:
        text: ``algorithm:hex``.
        what: names the value in the error.

    Raises:
        InvalidArgument: bad grammar, or an algorithm that this store does not verify.
    """
    match = _GRAMMAR.fullmatch(text)
    if match is None or len(match[2]) != HEX_DIGITS.get(match[1]):
        known = ", ".join(f"{name}:<{digits} hex>" for name, digits in HEX_DIGITS.items())
        raise InvalidArgument(f"{what} {text[:140]!r} is none that can be verified: use {known}")
    return Digest(text)


def split(digest: Digest) -> tuple[str, str]:
    """Return algorithm and hex part."""
    algorithm, _, digits = digest.partition(":")
    return algorithm, digits


def hasher(digest: Digest) -> Hash:
    """Return a fresh hash of the digest's algorithm."""
    return hashlib.new(split(digest)[0])


def digest_of(data: bytes) -> Digest:
    """Return the sha256 digest of some bytes."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def chain_ids(diff_ids: Sequence[Digest]) -> tuple[Digest, ...]:
    """Return the ChainID of each layer: what is reused between images that share a base.

    Spec:
        image-spec config.md: ChainID(L0..Ln) = sha256(ChainID(L0..Ln-1) + " " + DiffID(Ln)).
    """
    chain: list[Digest] = []
    for diff_id in diff_ids:
        chain.append(digest_of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return tuple(chain)
