"""``WWW-Authenticate``: what a registry wants to see.

Spec:
    RFC 9110 §11.6.1 and its grammar of challenges: several in one header, several headers, quoted strings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

MAX_HEADER: Final = 8 << 10
_WORD: Final = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_PIECE: Final = re.compile(
    rf'\s*(?:,\s*)*(?:(?P<key>{_WORD})\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>{_WORD}))'
    rf"(?=\s*(?:,|$))|(?P<scheme>{_WORD})(?:\s+|\s*(?:,|$)))"
)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One scheme and its parameters; scheme and names in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Return the challenges of all headers; what cannot be read ends its header."""
    return [each for header in headers for each in _header(header[:MAX_HEADER])]


def _header(text: str) -> Iterator[Challenge]:
    scheme, parameters, at = "", dict[str, str](), 0
    while at < len(text):
        found = _PIECE.match(text, at)
        if found is None or found.end() == at:
            break
        at = found.end()
        if found["scheme"] is not None:
            if scheme:
                yield Challenge(scheme, parameters)
            scheme, parameters = found["scheme"].lower(), {}
        elif scheme:
            value = found["quoted"]
            value = found["plain"] if value is None else re.sub(r"\\(.)", r"\1", value)
            parameters.setdefault(found["key"].lower(), value)
    if scheme:
        yield Challenge(scheme, parameters)


def chosen(challenges: Iterable[Challenge]) -> Challenge | None:
    """Return the one to answer: a token is better than a password on every request."""
    by_scheme = {each.scheme: each for each in reversed(list(challenges))}
    return by_scheme.get("bearer") or by_scheme.get("basic")
