"""Answers of list calls, joined from the bytes of their entries.

A kubelet lists all pods and containers every second, and nearly all are what they were. A view is replaced
whenever something is committed, so an entry's bytes are right as long as its view is the same object.

Spec:
    Protocol buffers, encoding: a repeated message is its tag, length and bytes for each entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

_TAG = b"\x0a"
"""Field 1, length-delimited: the entries of ListPodSandboxResponse and ListContainersResponse."""
_SPARE = 256
"""Entries of objects that are gone may be as many as those that are listed, and so many more."""


class _View(Protocol):
    @property
    def id(self) -> str: ...


class _Message(Protocol):
    def SerializeToString(self) -> bytes: ...  # noqa: N802 - protobuf's name


V = TypeVar("V", bound=_View)


class WireList(Generic[V]):
    """The entries of one kind."""

    def __init__(self, encode: Callable[[V], _Message]) -> None:
        """Keep what ``encode`` returns for each view, as bytes."""
        self._encode = encode
        self._known: dict[str, tuple[V, bytes]] = {}

    def answer(self, views: Sequence[V]) -> bytes:
        """Return the whole response message of a list."""
        if len(self._known) > 2 * len(views) + _SPARE:
            self._known.clear()
        known, parts = self._known, []
        for view in views:
            entry = known.get(view.id)
            if entry is None or entry[0] is not view:
                body = self._encode(view).SerializeToString()
                entry = known[view.id] = (view, _TAG + _varint(len(body)) + body)
            parts.append(entry[1])
        return b"".join(parts)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
