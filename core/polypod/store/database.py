"""The database: JSON records by kind and id in one SQLite file in WAL mode.

A commit takes some 20 µs, so it happens in the event loop: no thread, no queue, and what a caller was
answered is on record. WAL with ``synchronous=NORMAL`` survives the death of the process at any
moment; after a power cut the last moves may be missing, never torn. The file says which boot wrote
it; `Database.rebooted` is how recovery learns that everything below ``server.state`` is gone.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from polypod.plugin.errors import FailedPrecondition

log = logging.getLogger(__name__)

SCHEMA = 1
"""Of the file. A newer one is refused: an older server must not touch it."""
RECORD = 1
"""Of the records. A newer one is put aside, the others are used."""

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS record (
    kind TEXT NOT NULL, id TEXT NOT NULL, version INTEGER NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (kind, id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS quarantine (
    kind TEXT NOT NULL, id TEXT NOT NULL, version INTEGER NOT NULL, body TEXT NOT NULL,
    reason TEXT NOT NULL, at_ns INTEGER NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One record as stored."""

    kind: str
    id: str
    version: int
    body: str


def boot_id() -> str:
    """Return the kernel's name for this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class Database:
    """An open database. Not thread-safe; used from the event loop alone."""

    def __init__(self, path: Path, boot: str) -> None:
        """Open or create the file.

        Args:
            path: the file; its directory exists.
            boot: the running boot's id (`boot_id`).

        Raises:
            FailedPrecondition: a newer server wrote the file.
        """
        self.path = path
        self._connection = _open(path)
        self.rebooted = self._claim(boot)

    def put(self, kind: str, record_id: str, body: str) -> None:
        """Write a record, durable against the death of this process on return."""
        self._connection.execute(
            "INSERT INTO record VALUES (?, ?, ?, ?) ON CONFLICT (kind, id) "
            "DO UPDATE SET version = excluded.version, body = excluded.body",
            (kind, record_id, RECORD, body),
        )

    def delete(self, kind: str, record_id: str) -> None:
        """Delete a record; a missing one is no error."""
        self._connection.execute("DELETE FROM record WHERE kind = ? AND id = ?", (kind, record_id))

    def get(self, kind: str, record_id: str) -> str | None:
        """Return a record's text, or None."""
        row = self._connection.execute(
            "SELECT body FROM record WHERE kind = ? AND id = ?", (kind, record_id)
        ).fetchone()
        return None if row is None else str(row[0])

    def rows(self, kind: str) -> list[Row]:
        """Return all records of a kind that this server can read; newer ones are put aside."""
        found = self._connection.execute(
            "SELECT kind, id, version, body FROM record WHERE kind = ? ORDER BY id", (kind,)
        )
        rows = [_row(each) for each in found]
        for row in rows:
            if row.version > RECORD:
                self.quarantine(row, f"record version {row.version} is newer than {RECORD}")
        return [row for row in rows if row.version <= RECORD]

    def quarantine(self, row: Row, reason: str) -> None:
        """Put a record aside that cannot be used, so that all others can."""
        log.error("record quarantined kind=%s id=%s reason=%s", row.kind, row.id, reason)
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute(
                "INSERT INTO quarantine VALUES (?, ?, ?, ?, ?, ?)",
                (row.kind, row.id, row.version, row.body, reason, time.time_ns()),
            )
            self.delete(row.kind, row.id)

    def quarantined(self) -> Mapping[str, str]:
        """Return ``kind/id`` → reason of everything that was put aside."""
        found = self._connection.execute("SELECT kind, id, reason FROM quarantine")
        return {f"{kind}/{record_id}": str(reason) for kind, record_id, reason in found}

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _claim(self, boot: str) -> bool:
        """Check the schema, note this boot; return whether another boot wrote last."""
        meta = dict(self._connection.execute("SELECT key, value FROM meta").fetchall())
        schema = meta.get("schema", str(SCHEMA))
        if not schema.isdigit() or int(schema) > SCHEMA:
            self.close()
            raise FailedPrecondition(
                f"{self.path} has schema {schema}, this server knows up to {SCHEMA}: "
                "start the newer server, or remove the file together with all pods"
            )
        for key, value in (("schema", str(SCHEMA)), ("boot_id", boot)):
            self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
        return bool(meta.get("boot_id", boot) != boot)


def _open(path: Path) -> sqlite3.Connection:
    """Open the file; one that is no database is moved aside and a fresh one made."""
    try:
        return _connect(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise  # a lock, a full disk: the file itself may be whole
        aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
        log.exception("database damaged, moved to %s; starting with an empty one", aside)
        path.rename(aside)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=5.0)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(_TABLES)
        damage = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if damage != "ok":
            raise sqlite3.DatabaseError(damage)
    except sqlite3.DatabaseError:
        connection.close()
        raise
    path.chmod(0o600)
    return connection


def _row(values: tuple[object, ...]) -> Row:
    """Return a row; a value of a foreign type becomes text that no decoder accepts."""
    kind, record_id, version, body = values
    known = version if isinstance(version, int) else 0
    text = body if isinstance(body, str) else repr(body)
    return Row(str(kind), str(record_id), known, text)
