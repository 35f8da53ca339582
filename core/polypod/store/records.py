"""Typed records of one kind: a dataclass in, the same dataclass back after a restart."""

from __future__ import annotations

from typing import Generic, TypeVar

from polypod.store import codec
from polypod.store.database import Database

T = TypeVar("T")


class Records(Generic[T]):
    """All records of one kind."""

    def __init__(self, database: Database, kind: str, shape: type[T]) -> None:
        self._database = database
        self._kind = kind
        self._shape = shape

    def put(self, record_id: str, record: T) -> None:
        """Write a record; it is durable on return."""
        self._database.put(self._kind, record_id, codec.dumps(record))

    def delete(self, record_id: str) -> None:
        """Delete a record; a missing one is no error."""
        self._database.delete(self._kind, record_id)

    def get(self, record_id: str) -> T | None:
        """Return one record, or None."""
        text = self._database.get(self._kind, record_id)
        return None if text is None else codec.loads(self._shape, text)

    def load(self) -> dict[str, T]:
        """Return all readable records by id; the others are put aside and logged (F7)."""
        found: dict[str, T] = {}
        for row in self._database.rows(self._kind):
            try:
                found[row.id] = codec.loads(self._shape, row.body)
            except codec.CodecError as error:
                self._database.quarantine(row, str(error))
        return found
