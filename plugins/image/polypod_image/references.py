"""Image references: the grammar of distribution, and what short names mean.

``busybox`` means ``docker.io/library/busybox:latest``, as everywhere; an image made on this host
is called ``localhost/…``. Paths in the store are never made from these names.

Spec:
    distribution-spec "Pulling manifests" (name, tag), and the reference grammar of its implementations.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from polypod.plugin import override
from polypod.plugin.errors import InvalidArgument
from polypod.plugin.ids import Digest
from polypod_image.digests import parse_digest

DOCKER_HUB: Final = "docker.io"
LOCALHOST: Final = "localhost"
DEFAULT_TAG: Final = "latest"
MAX_NAME: Final = 255

_LABEL = r"(?:[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9-]*[A-Za-z0-9])"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{{1,5}})?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A canonical reference: never short, with a tag or a digest or both."""

    domain: str
    path: str
    tag: str = ""
    digest: Digest | None = None

    @property
    def repository(self) -> str:
        """Return domain and path."""
        return f"{self.domain}/{self.path}"

    @property
    def tagged(self) -> str:
        """Return ``repository:tag``; empty without a tag."""
        return f"{self.repository}:{self.tag}" if self.tag else ""

    @override
    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.repository}{tag}{digest}"


def parse_reference(text: str, *, domain: str = DOCKER_HUB) -> Reference:
    """Return the canonical reference that a name means.

    Args:
        text: ``[domain/]path[:tag][@digest]``; without tag and digest, ``latest`` is meant.
        domain: of a name that has none.

    Raises:
        InvalidArgument: the text is no reference.
    """
    rest, at, digest_text = text.partition("@")
    digest = parse_digest(digest_text, f"the digest of {text[:300]!r}") if at else None
    rest, tag = _split_tag(rest)
    if tag is None:
        tag = "" if digest else DEFAULT_TAG
    elif not _TAG.fullmatch(tag):
        raise _bad(text, "a tag is up to 128 letters, digits, '_', '.' and '-'")
    if _ID.fullmatch(rest):
        raise _bad(text, "64 hex digits are an image id, never a name")
    found, path = _split_domain(rest, domain)
    if not _DOMAIN.fullmatch(found):
        raise _bad(text, f"{found[:80]!r} is no host name")
    if not _PATH.fullmatch(path):
        raise _bad(text, "a name is lower-case letters and digits, separated by '.', '_', '-', '/'")
    if len(found) + 1 + len(path) > MAX_NAME:
        raise _bad(text, f"a name has at most {MAX_NAME} characters")
    return Reference(found, path, tag, digest)


def candidates(text: str) -> tuple[Reference, ...]:
    """Return what a name may mean, best first: a short one may also be an image made here.

    Raises:
        InvalidArgument: the text is no reference.
    """
    first = parse_reference(text)
    local = parse_reference(text, domain=LOCALHOST)
    return (first,) if local == first else (first, local)


def with_digest(reference: Reference, digest: Digest) -> str:
    """Return ``repository@digest``."""
    return str(replace(reference, tag="", digest=digest))


def _split_tag(text: str) -> tuple[str, str | None]:
    head, slash, last = text.rpartition("/")
    name, colon, tag = last.partition(":")
    return f"{head}{slash}{name}", tag if colon else None


def _split_domain(text: str, default: str) -> tuple[str, str]:
    first, slash, path = text.partition("/")
    is_domain = bool(slash) and (
        "." in first or ":" in first or first == LOCALHOST or first != first.lower()
    )
    if not is_domain:
        first, path = default, text
    if first == "index.docker.io":
        first = DOCKER_HUB
    if first == DOCKER_HUB and "/" not in path:
        path = f"library/{path}"
    return first, path


def _bad(text: str, why: str) -> InvalidArgument:
    return InvalidArgument(
        f"{text[:300]!r} is no image reference: {why}; write [HOST/]NAME[:TAG][@DIGEST]"
    )
