"""Which sandbox holds which addresses and host ports: durable, each given out once.

Addresses are handed out in a circle, so that one that was just given back is the last to be used
again: the old namespace may live some milliseconds longer than its lease.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from polypod.plugin.errors import FailedPrecondition, ResourceExhausted
from polypod.plugin.ids import SandboxId
from polypod_network.hostports import Address, HostPort
from polypod_network.links import Network

_RESERVED = 2
"""The network itself and the gateway."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What one sandbox holds."""

    addresses: tuple[Address, ...]
    """In the order of the subnets; empty: nothing is held."""
    ports: tuple[HostPort, ...] = ()


class Leases:
    """The lease book, one sqlite file and a copy in memory; every change is committed before it is answered."""

    def __init__(self, path: Path, subnets: Sequence[Network]) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS lease ("
            " address TEXT PRIMARY KEY, sandbox TEXT NOT NULL, link TEXT NOT NULL)"
        )
        self._db.execute("CREATE INDEX IF NOT EXISTS by_sandbox ON lease (sandbox)")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS host_port ("
            " version INTEGER NOT NULL, protocol INTEGER NOT NULL, address TEXT NOT NULL,"
            " port INTEGER NOT NULL, target INTEGER NOT NULL, sandbox TEXT NOT NULL,"
            " PRIMARY KEY (port, protocol, version, address)) WITHOUT ROWID"
        )
        self._db.execute("CREATE INDEX IF NOT EXISTS port_by_sandbox ON host_port (sandbox)")
        self._subnets = tuple(subnets)
        self._held = self._read()
        self._taken = {item for lease in self._held.values() for item in lease.addresses}
        self._cursor = {subnet: self._start(subnet) for subnet in self._subnets}

    def take(self, sandbox_id: SandboxId, link: str, ports: Sequence[HostPort] = ()) -> Lease:
        """Lease one address of each subnet, and host ports; the same sandbox gets its own again.

        Raises:
            ResourceExhausted: a subnet is full; nothing is taken.
            FailedPrecondition: another sandbox has a host port; nothing is taken.
        """
        held = self.held(sandbox_id)
        if held.addresses:
            return held
        for port in ports:
            self._check_free(port)
        chosen = tuple(self._next(subnet) for subnet in self._subnets)
        with self._db:
            self._db.execute("BEGIN")
            self._db.executemany(
                "INSERT INTO lease VALUES (?, ?, ?)",
                [(str(item), sandbox_id, link) for item in chosen],
            )
            self._db.executemany(
                "INSERT INTO host_port VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (each.version, each.protocol, _text(each), each.port, each.target, sandbox_id)
                    for each in ports
                ],
            )
        self._taken.update(chosen)
        self._held[sandbox_id] = lease = Lease(chosen, tuple(ports))
        return lease

    def _read(self) -> dict[SandboxId, Lease]:
        addresses: dict[SandboxId, list[Address]] = {}
        for sandbox, address in self._db.execute(
            "SELECT sandbox, address FROM lease ORDER BY rowid"
        ):
            addresses.setdefault(SandboxId(sandbox), []).append(ip_address(address))
        ports: dict[SandboxId, list[HostPort]] = {}
        for sandbox, *row in self._db.execute(
            "SELECT sandbox, version, protocol, address, port, target FROM host_port"
        ):
            ports.setdefault(SandboxId(sandbox), []).append(_host_port(row))
        return {
            name: Lease(tuple(held), tuple(ports.get(name, ()))) for name, held in addresses.items()
        }

    def held(self, sandbox_id: SandboxId) -> Lease:
        """Return what a sandbox holds."""
        return self._held.get(sandbox_id, Lease(()))

    def give_back(self, sandbox_id: SandboxId) -> Lease:
        """End the leases of a sandbox and return what it held."""
        held = self.held(sandbox_id)
        if held.addresses:
            with self._db:
                self._db.execute("BEGIN")
                self._db.execute("DELETE FROM lease WHERE sandbox = ?", (sandbox_id,))
                self._db.execute("DELETE FROM host_port WHERE sandbox = ?", (sandbox_id,))
            self._taken.difference_update(held.addresses)
            del self._held[sandbox_id]
        return held

    def all(self) -> list[Lease]:
        """Return every lease."""
        return list(self._held.values())

    def sandboxes(self) -> list[SandboxId]:
        """Return every sandbox that holds a lease."""
        return list(self._held)

    def addresses(self) -> frozenset[Address]:
        """Return every leased address."""
        return frozenset(self._taken)

    def close(self) -> None:
        """Close the file; the leases stay."""
        self._db.close()

    def _check_free(self, wanted: HostPort) -> None:
        rows = self._db.execute(
            "SELECT version, protocol, address, port, target, sandbox FROM host_port"
            " WHERE port = ? AND protocol = ? AND version = ?",
            (wanted.port, wanted.protocol, wanted.version),
        )
        for *row, sandbox in rows:
            if wanted.overlaps(_host_port(row)):
                raise FailedPrecondition(
                    f"{wanted} is taken by sandbox {sandbox}: stop that one, or ask for another port"
                )

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


def _text(port: HostPort) -> str:
    return "" if port.address is None else str(port.address)


def _host_port(row: Sequence[object]) -> HostPort:
    version, protocol, address, port, target = row
    return HostPort(
        int(str(version)),
        int(str(protocol)),
        ip_address(str(address)) if address else None,
        int(str(port)),
        int(str(target)),
    )
