"""Sizes of a terminal as clients send them: JSON objects, one after the other.

Spec:
    client-go ``remotecommand.TerminalSize``: ``{"Width": 80, "Height": 24}``, in characters.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TypeGuard

from polypod.streaming.errors import ProtocolError

MAX_BYTES = 4096
"""Of one size; real ones have thirty."""


class Sizes:
    """Bytes in, (width, height) out."""

    def __init__(self) -> None:
        self._text = ""
        self._decoder = json.JSONDecoder()

    def feed(self, data: bytes) -> Iterator[tuple[int, int]]:
        """Yield the sizes that these bytes complete; those of 0, as of no terminal, are left out.

        Raises:
            ProtocolError: this becomes no JSON any more.
        """
        self._text = (self._text + data.decode(errors="replace")).lstrip()
        while self._text:
            try:
                value, end = self._decoder.raw_decode(self._text[:MAX_BYTES])
            except (ValueError, RecursionError):
                break
            self._text = self._text[end:].lstrip()
            size = _size(value)
            if size is not None:
                yield size
        if len(self._text) >= MAX_BYTES:
            raise ProtocolError("sizes of a terminal that are no JSON")


def _size(value: object) -> tuple[int, int] | None:
    if not isinstance(value, dict):
        return None
    width, height = value.get("Width"), value.get("Height")
    return (width, height) if _is_length(width) and _is_length(height) else None


def _is_length(number: object) -> TypeGuard[int]:
    return isinstance(number, int) and not isinstance(number, bool) and 0 < number < 65536
