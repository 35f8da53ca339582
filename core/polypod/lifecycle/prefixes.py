"""Find objects by a unique prefix of their id, as every CRI client may send one."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Generic, TypeVar

from polypod.plugin.errors import InvalidArgument, NotFound

T = TypeVar("T")


class PrefixIndex(Generic[T]):
    """Objects by id, in the order in which they were added."""

    def __init__(self, kind: str) -> None:
        """Make an empty index.

        Args:
            kind: what the objects are called in errors (``sandbox``, ``container``).
        """
        self._kind = kind
        self._objects: dict[str, T] = {}
        self._sorted: list[str] = []

    def __len__(self) -> int:
        return len(self._objects)

    def __iter__(self) -> Iterator[T]:
        return iter(tuple(self._objects.values()))

    def newest_first(self) -> Iterator[T]:
        """Walk from the last added to the first."""
        return reversed(self._objects.values())

    def add(self, object_id: str, value: T) -> None:
        """Add an object under a new id."""
        self._objects[object_id] = value
        insort(self._sorted, object_id)

    def discard(self, object_id: str) -> None:
        """Take an object out; an unknown id is no error."""
        if self._objects.pop(object_id, None) is not None:
            del self._sorted[bisect_left(self._sorted, object_id)]

    def exact(self, object_id: str) -> T | None:
        """Return the object of a full id, or None."""
        return self._objects.get(object_id)

    def find(self, prefix: str) -> T | None:
        """Return the object of an id or unique prefix, or None.

        Raises:
            InvalidArgument: empty, or several ids begin with it.
        """
        if not prefix:
            raise InvalidArgument(f"the {self._kind} id is empty")
        found = self._objects.get(prefix)
        if found is not None:
            return found
        at = bisect_left(self._sorted, prefix)
        matches = [each for each in self._sorted[at : at + 2] if each.startswith(prefix)]
        if len(matches) > 1:
            raise InvalidArgument(
                f"{self._kind} id {prefix!r} is ambiguous: {matches[0]} and {matches[1]} begin with it"
            )
        return self._objects[matches[0]] if matches else None

    def require(self, prefix: str) -> T:
        """Return the object of an id or unique prefix.

        Raises:
            NotFound: there is none.
            InvalidArgument: empty, or several ids begin with it.
        """
        found = self.find(prefix)
        if found is None:
            raise NotFound(f"there is no {self._kind} {prefix!r}")
        return found
