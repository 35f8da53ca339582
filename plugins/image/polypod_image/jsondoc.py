"""Reading JSON that a stranger wrote: bounded, without ambiguity, with errors that name the place."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, NoReturn

from polypod.plugin.errors import InvalidArgument

MAX_BYTES: Final = 4 << 20
"""Of one document: manifest, index or config."""


def decode(data: bytes, what: str) -> Doc:
    """Return the document's top object.

    Raises:
        InvalidArgument: too large, no JSON object, nested too deeply, or a key written twice (two
            readers could then see two different documents).
    """
    if len(data) > MAX_BYTES:
        raise InvalidArgument(f"{what}: {len(data)} bytes, at most {MAX_BYTES} are read")
    try:
        value = json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise InvalidArgument(f"{what}: nested too deeply") from None
    except ValueError as error:
        raise InvalidArgument(f"{what}: no acceptable JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise InvalidArgument(f"{what}: not a JSON object")
    return Doc(value, what)


class Doc:
    """A JSON object; each getter checks the type and takes absent and null for the default."""

    __slots__ = ("values", "what")

    def __init__(self, values: Mapping[str, Any], what: str) -> None:
        self.values = values
        self.what = what

    def has(self, key: str) -> bool:
        """Return whether the key is there and not null."""
        return self.values.get(key) is not None

    def text(self, key: str, default: str = "") -> str:
        """Return a string without NUL."""
        value = self.values.get(key)
        if value is None:
            return default
        return self._checked_text(value, key)

    def number(self, key: str) -> int:
        """Return a whole number ≥ 0; required."""
        value = self.values.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
            self.refuse(key, "a whole number was expected")
        return value

    def texts(self, key: str, limit: int) -> tuple[str, ...]:
        """Return a list of strings, at most ``limit``."""
        return tuple(self._checked_text(each, key) for each in self._list(key, limit))

    def objects(self, key: str, limit: int) -> Iterable[Doc]:
        """Return a list of objects, at most ``limit``."""
        for index, each in enumerate(self._list(key, limit)):
            if not isinstance(each, dict):
                self.refuse(key, "objects were expected")
            yield Doc(each, f"{self.what}: {key}[{index}]")

    def child(self, key: str) -> Doc:
        """Return an object; an empty one if absent."""
        value = self.values.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            self.refuse(key, "an object was expected")
        return Doc(value, f"{self.what}: {key}")

    def text_map(self, key: str) -> dict[str, str]:
        """Return an object whose values are strings."""
        found = self.child(key)
        return {name: found.text(name) for name in found.values}

    def refuse(self, key: str, why: str) -> NoReturn:
        """Raise `InvalidArgument` that names document and key."""
        raise InvalidArgument(f"{self.what}: {key}: {why}")

    def _list(self, key: str, limit: int) -> list[Any]:
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            self.refuse(key, "a list was expected")
        if len(value) > limit:
            self.refuse(key, f"{len(value)} entries, at most {limit} are accepted")
        return value

    def _checked_text(self, value: object, key: str) -> str:
        if not isinstance(value, str) or "\0" in value:
            self.refuse(key, "a string without NUL was expected")
        try:
            value.encode()
        except UnicodeEncodeError:
            self.refuse(key, "half of a surrogate pair")
        return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is written twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
