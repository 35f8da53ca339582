"""One-time tokens: what a URL leads to, for a minute, for whoever comes first.

Spec:
    Reliability A4.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

LIFETIME_S = 60.0
LIMIT = 1000
"""Tokens at one time; the oldest one gives way to a new one."""
_TOKEN_BYTES = 24

T = TypeVar("T")


class TooMany(Exception):
    """The token was good, but newer ones have taken its place."""


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    value: T
    expires: float


class Tokens(Generic[T]):
    """A bounded table. Tokens are kept by their hash: looking one up tells nothing by its timing."""

    def __init__(self, now: Callable[[], float]) -> None:
        """Make an empty table; ``now`` is a monotonic clock in seconds."""
        self._now = now
        self._entries: OrderedDict[bytes, _Entry[T]] = OrderedDict()
        self._displaced: OrderedDict[bytes, None] = OrderedDict()

    def issue(self, value: T) -> str:
        """Return a token that leads to a value once."""
        self._expire()
        if len(self._entries) >= LIMIT:
            key, _entry = self._entries.popitem(last=False)
            self._displaced[key] = None
            if len(self._displaced) > LIMIT:
                self._displaced.popitem(last=False)
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        self._entries[_key(token)] = _Entry(value, self._now() + LIFETIME_S)
        return token

    def redeem(self, token: str) -> T | None:
        """Return what a token leads to, and forget it; None for one that is unknown, used or too old.

        Raises:
            TooMany: it was displaced.
        """
        self._expire()
        key = _key(token)
        if key in self._displaced:
            del self._displaced[key]
            raise TooMany
        entry = self._entries.pop(key, None)
        return None if entry is None else entry.value

    def __len__(self) -> int:
        self._expire()
        return len(self._entries)

    def _expire(self) -> None:
        now = self._now()
        while self._entries:
            key = next(iter(self._entries))
            if self._entries[key].expires > now:
                return
            del self._entries[key]


def _key(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()
