"""Which sandbox holds which addresses: durable, each address given out once.

Addresses are handed out in a circle, so that one that was just given back is the last to be used
again: the old namespace may live some milliseconds longer than its lease.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from polypod.plugin.errors import ResourceExhausted
from polypod.plugin.ids import SandboxId
from polypod_network.links import Network
from polypod_network.nftables import Address

_RESERVED = 2
"""The network itself and the gateway."""


class Leases:
    """The lease book, one sqlite file; every change is committed before it is answered."""

    def __init__(self, path: Path, subnets: Sequence[Network]) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS lease ("
            " address TEXT PRIMARY KEY, sandbox TEXT NOT NULL, link TEXT NOT NULL)"
        )
        self._db.execute("CREATE INDEX IF NOT EXISTS by_sandbox ON lease (sandbox)")
        self._subnets = tuple(subnets)
        self._taken = {ip_address(row[0]) for row in self._db.execute("SELECT address FROM lease")}
        self._cursor = {subnet: self._start(subnet) for subnet in self._subnets}

    def take(self, sandbox_id: SandboxId, link: str) -> tuple[Address, ...]:
        """Lease one address of each subnet; the same sandbox gets its own again.

        Raises:
            ResourceExhausted: a subnet is full; nothing is taken.
        """
        held = self.held(sandbox_id)
        if held:
            return held
        chosen = tuple(self._next(subnet) for subnet in self._subnets)
        with self._db:
            self._db.execute("BEGIN")
            self._db.executemany(
                "INSERT INTO lease VALUES (?, ?, ?)",
                [(str(item), sandbox_id, link) for item in chosen],
            )
        self._taken.update(chosen)
        return chosen

    def held(self, sandbox_id: SandboxId) -> tuple[Address, ...]:
        """Return what a sandbox holds, in the order of the subnets."""
        rows = self._db.execute(
            "SELECT address FROM lease WHERE sandbox = ? ORDER BY rowid", (sandbox_id,)
        )
        return tuple(ip_address(row[0]) for row in rows)

    def give_back(self, sandbox_id: SandboxId) -> tuple[Address, ...]:
        """End the leases of a sandbox and return what it held."""
        held = self.held(sandbox_id)
        if held:
            self._db.execute("DELETE FROM lease WHERE sandbox = ?", (sandbox_id,))
            self._taken.difference_update(held)
        return held

    def sandboxes(self) -> list[SandboxId]:
        """Return every sandbox that holds a lease."""
        return [SandboxId(row[0]) for row in self._db.execute("SELECT DISTINCT sandbox FROM lease")]

    def addresses(self) -> frozenset[Address]:
        """Return every leased address."""
        return frozenset(self._taken)

    def close(self) -> None:
        """Close the file; the leases stay."""
        self._db.close()

    def _start(self, subnet: Network) -> int:
        inside = [int(item) for item in self._taken if item in subnet]
        base = int(subnet.network_address)
        return max(inside, default=base + _RESERVED - 1) - base

    def _next(self, subnet: Network) -> Address:
        # The last address of an IPv4 subnet is its broadcast address.
        last = subnet.num_addresses - (2 if subnet.version == 4 else 1)
        usable = last - _RESERVED + 1
        if usable <= 0 or len(self._taken) >= usable + self._outside(subnet):
            msg = (
                f"no address is left in {subnet} ({max(usable, 0)} pods at most): free or widen it"
            )
            raise ResourceExhausted(msg)
        offset = self._cursor[subnet]
        for _ in range(len(self._taken) + 1):
            offset = offset + 1 if offset < last else _RESERVED
            candidate = subnet[offset]
            if candidate not in self._taken:
                self._cursor[subnet] = offset
                return candidate
        msg = f"no address is left in {subnet}: free or widen it"
        raise ResourceExhausted(msg)

    def _outside(self, subnet: Network) -> int:
        """Leases of other subnets, which do not count against this one."""
        if len(self._subnets) == 1:
            return 0
        return sum(1 for item in self._taken if item not in subnet)
