"""Reading JSON that somebody else wrote: every value is asked for by type, every error names the place.

``null`` counts as absent, as in the programs that write such files. Duplicate keys are refused: two
readers would take different ones.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Final, NoReturn

from polypod.plugin.errors import InvalidArgument

UINT32: Final = (0, 2**32 - 1)
INT64: Final = (-(2**63), 2**63 - 1)
UINT64: Final = (0, 2**64 - 1)
_KINDS: Final = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "true or false",
    int: "a whole number",
}


class Node:
    """One value and the path that leads to it, such as ``linux.seccomp.syscalls[3].names[0]``."""

    __slots__ = ("_value", "path")

    def __init__(self, value: object, path: str) -> None:
        self._value = value
        self.path = path

    def get(self, key: str) -> Node | None:
        """Return a member of an object, None where it is absent or null."""
        value = self._object().get(key)
        return None if value is None else Node(value, self._below(key))

    def need(self, key: str) -> Node:
        """Return a member that must be there."""
        found = self.get(key)
        if found is None:
            raise InvalidArgument(f"{self._below(key)}: is missing")
        return found

    def members(self) -> Iterator[tuple[str, Node]]:
        """Yield the members of an object that are not null."""
        for key, value in self._object().items():
            if value is not None:
                yield key, Node(value, self._below(key))

    def only(self, known: Collection[str]) -> None:
        """Refuse members that are not among the known ones."""
        for key in self._object():
            if key not in known:
                raise InvalidArgument(f"{self._below(key)}: is unknown")

    def items(self, most: int | None = None) -> Iterator[Node]:
        """Yield the items of a list of at most ``most``."""
        value = self._value
        if not isinstance(value, list):
            self._refuse(list)
        if most is not None and len(value) > most:
            raise InvalidArgument(f"{self.path}: has {len(value)} items, at most {most} are taken")
        for index, item in enumerate(value):
            yield Node(item, f"{self.path}[{index}]")

    def text(self) -> str:
        """Return a string."""
        value = self._value
        if not isinstance(value, str):
            self._refuse(str)
        return value

    def flag(self) -> bool:
        """Return true or false."""
        value = self._value
        if not isinstance(value, bool):
            self._refuse(bool)
        return value

    def number(self, bounds: tuple[int, int]) -> int:
        """Return a whole number within bounds, both included."""
        value = self._value
        if not isinstance(value, int) or isinstance(value, bool):
            self._refuse(int)
        low, high = bounds
        if not low <= value <= high:
            raise InvalidArgument(f"{self.path}: {value} is not from {low} to {high}")
        return value

    def texts(self, most: int | None = None) -> tuple[str, ...]:
        """Return a list of strings."""
        return tuple(item.text() for item in self.items(most))

    def _object(self) -> dict[str, object]:
        value = self._value
        if not isinstance(value, dict):
            self._refuse(dict)
        return value

    def _below(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def _refuse(self, wanted: type) -> NoReturn:
        found = next((text for kind, text in _KINDS.items() if type(self._value) is kind), None)
        raise InvalidArgument(
            f"{self.path or 'the document'}: must be {_KINDS[wanted]}, not "
            f"{found or repr(self._value)[:40]}"
        )


def load(text: bytes, what: str, max_bytes: int) -> Node:
    """Parse a document.

    Args:
        text: UTF-8.
        what: how to call it in an error.
        max_bytes: more is refused.

    Raises:
        InvalidArgument: it is too long, too deep or no JSON.
    """
    if len(text) > max_bytes:
        raise InvalidArgument(f"{what}: has {len(text)} bytes, at most {max_bytes} are read")
    try:
        value: object = json.loads(
            text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{what}: is no JSON document: {error}") from error
    return Node(value, "")


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _value in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        msg = f"{twice!r} stands twice in one object"
        raise ValueError(msg)
    return made


def _no_constant(text: str) -> object:
    msg = f"{text} is no number"
    raise ValueError(msg)
