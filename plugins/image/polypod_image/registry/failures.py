"""What one request to a registry can end in, and what a client of ours is told of it.

Nothing here carries a credential, a token or the query of a URL: texts pass `redacted` on their way.

Spec:
    cri.md §0.3: the kubelet looks for the prefix ``RegistryUnavailable`` (of gRPC code UNKNOWN). Reliability I9.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit

from polypod.plugin.errors import BackendError, NotFound, PolypodError

MAX_TEXT: Final = 500
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>]+")
_SECRET: Final = re.compile(
    r"(?i)\b(authorization\"?\s*[:=]\s*\"?(?:(?:bearer|basic)\s+)?|(?:bearer|basic)\s+|"
    r"(?:password|passwd|secret|[a-z_]*token|sig|signature|x-amz-[a-z-]+)\"?\s*[:=]\s*\"?)"
    r"[^\s\"',;&)]+"
)


class Kind(StrEnum):
    """Why a request brought nothing."""

    MISSING = "missing"
    """The registry says that it has no such thing."""
    DENIED = "denied"
    """It wants other credentials."""
    BUSY = "busy"
    """It asks to come again: 429 and 5xx."""
    UNREACHABLE = "unreachable"
    """No connection, or one that broke."""
    STALLED = "stalled"
    """No byte for as long as we wait."""
    LIES = "lies"
    """What it sent is not what it or a descriptor promised."""
    REFUSED = "refused"
    """We do not do what it asks for: a rule of ours."""


RETRIED: Final = frozenset({Kind.BUSY, Kind.UNREACHABLE, Kind.STALLED})
_GONE: Final = frozenset({Kind.MISSING})


class RequestFailed(Exception):
    """One request to one endpoint failed; the text is fit to be shown."""

    def __init__(self, kind: Kind, text: str, *, wait_s: float | None = None) -> None:
        """Note why.

        Args:
            kind: what it means.
            text: one sentence; it is redacted here.
            wait_s: what the registry asked us to wait (Retry-After).
        """
        super().__init__(redacted(text))
        self.kind = kind
        self.wait_s = wait_s


def redacted(text: str) -> str:
    """Return a text without user names, passwords, tokens and queries of URLs, on one line."""
    flat = "".join(each if each.isprintable() else " " for each in text)
    plain = _SECRET.sub(r"\1***", _URL.sub(lambda found: shown_url(found[0]), flat))
    return plain if len(plain) <= MAX_TEXT else plain[:MAX_TEXT] + " …"


def shown_url(url: str) -> str:
    """Return a URL fit to be shown: without user, password, query and fragment."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "(an unreadable URL)"
    return f"{parts.scheme}://{host}{parts.path}" + ("?…" if parts.query else "")


def told(what: str, failures: Sequence[RequestFailed]) -> PolypodError:
    """Return the error for a pull after all endpoints failed.

    Args:
        what: the reference.
        failures: one per endpoint, in their order; the last ones count most.
    """
    texts = "; ".join(dict.fromkeys(str(each) for each in failures)) or "no endpoint may be asked"
    kinds = {each.kind for each in failures}
    if Kind.LIES in kinds:
        return BackendError(f"{what}: {texts}")
    if kinds & RETRIED or not kinds:
        return BackendError(f"RegistryUnavailable: {what}: {texts}")
    if Kind.DENIED in kinds:
        return BackendError(f"{what}: pull access denied: {texts}")
    if kinds == _GONE:
        return NotFound(f"{what}: not found: {texts}")
    return BackendError(f"{what}: {texts}")
