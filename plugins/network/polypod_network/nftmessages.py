"""nf_tables as messages: tables, sets, chains, rules, and the expressions that rules are made of.

Nothing here knows what we filter. We speak nfnetlink ourselves, so no ``nft`` program needs to be on the host;
``nft list ruleset`` shows the result as people know it.

Spec:
    linux/netfilter/nf_tables.h, nfnetlink.h; the tests read tables back through nft(8).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence

from polypod_network import wire
from polypod_network.transport import Request

_SUBSYSTEM = 10 << 8
_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE = 0, 1, 2, 3, 6
_NEWSET, _NEWSETELEM, _DELSETELEM = 9, 12, 14
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_SET_IS_MAP = 8
_JUMP = -3
_CSUM_INET, _CSUM_PSEUDO_HEADER = 1, 1

REGISTER = 1
"""The first 16 bytes; a longer key goes on in the registers that follow."""
PREROUTING, INPUT, OUTPUT, POSTROUTING = 0, 1, 3, 4
"""Hooks of the IP families."""
NETWORK, TRANSPORT = 1, 2
"""Bases of payload offsets."""
OIFNAME, IIFNAME, L4PROTO = 7, 6, 16
"""Keys of `meta`."""
_EQUAL, _NOT_EQUAL = 0, 1

# nft(8)'s own numbers for types; only its listing uses them. A concatenation has six bits for each.
TYPES = {"ipv4_addr": 7, "ipv6_addr": 8, "inet_proto": 12, "inet_service": 13}
_LENGTHS = {"ipv4_addr": 4, "ipv6_addr": 16, "inet_proto": 4, "inet_service": 4}
"""Bytes in a key: each part is padded to whole registers."""


def register_after(bytes_used: int) -> int:
    """Return the 32-bit register that follows a number of bytes from `REGISTER` on."""
    return 8 + bytes_used // 4


# Requests


def add_table(table: str, version: int) -> Request:
    """Add a table; one that exists is fine."""
    what = f"add table {table}"
    return _request(_NEWTABLE, version, [wire.text(1, table)], what, create=True)


def delete_table(table: str, version: int) -> Request:
    """Delete a table with all that is in it."""
    return _request(_DELTABLE, version, [wire.text(1, table)], f"delete table {table}")


def get_table(table: str, version: int) -> Request:
    """Ask for a table: ENOENT if there is none."""
    return _request(_GETTABLE, version, [wire.text(1, table)], f"look up table {table}")


def add_set(
    table: str, name: str, version: int, number: int, key: Sequence[str], data: Sequence[str] = ()
) -> Request:
    """Add a set, or with ``data`` a map; ``number`` differs for each set of a transaction."""
    parts = [
        wire.text(1, table),
        wire.text(2, name),
        wire.be32(3, _SET_IS_MAP if data else 0),
        wire.be32(4, _type(key)),
        wire.be32(5, _length(key)),
        wire.be32(10, number),
    ]
    if data:
        parts += [wire.be32(6, _type(data)), wire.be32(7, _length(data))]
    return _request(_NEWSET, version, parts, f"add set {table} {name}", create=True)


def add_chain(
    table: str, name: str, version: int, *, kind: str = "", hook: int = 0, priority: int = 0
) -> Request:
    """Add a chain; with ``kind`` (nat, filter) one that a hook calls."""
    parts = [wire.text(1, table), wire.text(3, name)]
    if kind:
        parts += [
            wire.nested(4, [wire.be32(1, hook), wire.be32(2, priority)]),
            wire.text(7, kind),
        ]
    return _request(_NEWCHAIN, version, parts, f"add chain {table} {name}", create=True)


def add_rule(table: str, chain: str, version: int, expressions: Sequence[bytes]) -> Request:
    """Append a rule to a chain."""
    parts = [wire.text(1, table), wire.text(2, chain), wire.nested(4, expressions)]
    what = f"add rule to {table} {chain}"
    return _request(_NEWRULE, version, parts, what, flags=wire.NLM_F_CREATE | wire.NLM_F_APPEND)


def add_element(
    table: str, name: str, version: int, key: bytes, what: str, data: bytes = b""
) -> Request:
    """Add an element; one that is there with the same data is fine, with other data EBUSY."""
    element = [_nested_value(1, key)]
    if data:
        element.append(_nested_value(2, data))
    parts = _elements(table, name, element)
    return _request(
        _NEWSETELEM, version, parts, f"add {what}", create=True, tolerated=(errno.EEXIST,)
    )


def delete_element(table: str, name: str, version: int, key: bytes, what: str) -> Request:
    """Delete an element; ENOENT, which fails the transaction, if it is not there."""
    parts = _elements(table, name, [_nested_value(1, key)])
    return _request(_DELSETELEM, version, parts, f"delete {what}")


def _request(
    kind: int,
    version: int,
    parts: Sequence[bytes],
    what: str,
    *,
    create: bool = False,
    flags: int = 0,
    tolerated: tuple[int, ...] = (),
) -> Request:
    header = struct.pack("!BBH", _FAMILIES[version], 0, 0)
    flags |= wire.NLM_F_CREATE if create else 0
    payload = header + b"".join(parts)
    return Request(_SUBSYSTEM | kind, flags, payload, f"nftables: {what}", tolerated)


def _elements(table: str, name: str, element: Sequence[bytes]) -> list[bytes]:
    return [
        wire.text(1, table),
        wire.text(2, name),
        wire.nested(3, [wire.nested(1, element)]),
    ]


def _type(names: Sequence[str]) -> int:
    found = 0
    for name in names:
        found = found << 6 | TYPES[name]
    return found


def _length(names: Sequence[str]) -> int:
    return sum(_LENGTHS[name] for name in names)


# Expressions


def load(base: int, offset: int, length: int, register: int = REGISTER) -> bytes:
    """Load bytes of the packet."""
    return _expression(
        "payload",
        wire.be32(1, register),
        wire.be32(2, base),
        wire.be32(3, offset),
        wire.be32(4, length),
    )


def store(offset: int, value: bytes) -> list[bytes]:
    """Write an address into the network header; checksums, those of the layer above too, follow."""
    # IPv4 has a checksum in its own header, IPv6 has none.
    kind, at = (_CSUM_INET, 10) if len(value) == 4 else (0, 0)
    return [
        _expression("immediate", wire.be32(1, REGISTER), _nested_value(2, value)),
        _expression(
            "payload",
            wire.be32(5, REGISTER),
            wire.be32(2, NETWORK),
            wire.be32(3, offset),
            wire.be32(4, len(value)),
            wire.be32(6, kind),
            wire.be32(7, at),
            wire.be32(8, _CSUM_PSEUDO_HEADER),
        ),
    ]


def meta(key: int, register: int = REGISTER) -> bytes:
    """Load a fact about the packet."""
    return _expression("meta", wire.be32(2, key), wire.be32(1, register))


def lookup(name: str, *, into: int | None = None) -> bytes:
    """Go on only with what a set holds; of a map, load its data ``into`` a register."""
    parts = [wire.text(1, name), wire.be32(2, REGISTER)]
    if into is not None:
        parts.append(wire.be32(3, into))
    return _expression("lookup", *parts)


def equal(value: bytes) -> bytes:
    """Go on only if the register holds this."""
    return _compare(_EQUAL, value)


def differs(value: bytes) -> bytes:
    """Go on only if the register holds something else."""
    return _compare(_NOT_EQUAL, value)


def local_destination() -> list[bytes]:
    """Go on only with packets to an address of this host."""
    address_type, by_destination, local = 3, 2, 2
    return [
        _expression(
            "fib", wire.be32(1, REGISTER), wire.be32(2, address_type), wire.be32(3, by_destination)
        ),
        equal(struct.pack("=I", local)),
    ]


def destination_was_changed() -> list[bytes]:
    """Go on only with connections whose destination was translated."""
    ct_status, ips_dst_nat = 2, struct.pack("=I", 0x20)
    return [
        _expression("ct", wire.be32(2, ct_status), wire.be32(1, REGISTER)),
        _expression(
            "bitwise",
            wire.be32(1, REGISTER),
            wire.be32(2, REGISTER),
            wire.be32(3, 4),
            _nested_value(4, ips_dst_nat),
            _nested_value(5, bytes(4)),
        ),
        differs(bytes(4)),
    ]


def jump(chain: str) -> bytes:
    """Go on in another chain, then come back."""
    verdict = wire.nested(2, [wire.be32(1, _JUMP), wire.text(2, chain)])
    return _expression("immediate", wire.be32(1, 0), wire.nested(2, [verdict]))


def destination_nat(version: int, address: int, port: int) -> bytes:
    """Translate the destination to what two registers hold."""
    destination = 1
    return _expression(
        "nat",
        wire.be32(1, destination),
        wire.be32(2, _FAMILIES[version]),
        wire.be32(3, address),
        wire.be32(5, port),
    )


def masquerade() -> bytes:
    """Translate the source to the address of the interface that the packet leaves by."""
    return _expression("masq")


def interface_name(name: str) -> bytes:
    """Return a name as `meta` loads it."""
    return name.encode().ljust(16, b"\0")


def _compare(operation: int, value: bytes) -> bytes:
    return _expression(
        "cmp", wire.be32(1, REGISTER), wire.be32(2, operation), _nested_value(3, value)
    )


def _nested_value(kind: int, value: bytes) -> bytes:
    return wire.nested(kind, [wire.attribute(1, value)])


def _expression(name: str, *parts: bytes) -> bytes:
    return wire.nested(1, [wire.text(1, name), wire.nested(2, parts)])
