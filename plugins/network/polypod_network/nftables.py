"""One nftables table per address family: a set of pod addresses, and one rule that masquerades them.

A pod costs one set element (some 10 µs); the rules never change, however many pods there are. We
speak nfnetlink ourselves, so no ``nft`` program needs to be on the host; ``nft list ruleset`` shows
the table as people know it.

Spec:
    linux/netfilter/nf_tables.h, nfnetlink.h; the tests read the table back through nft(8).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address

from polypod_network import wire
from polypod_network.transport import Request

Address = IPv4Address | IPv6Address

_SUBSYSTEM = 10 << 8
_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE = 0, 2, 3, 6
_NEWSET, _NEWSETELEM, _DELSETELEM = 9, 12, 14
_SET_NAME = "pods"
_CHAIN_NAME = "postrouting"
_POSTROUTING_HOOK = 4
_SOURCE_NAT_PRIORITY = 100
_REGISTER_1 = 1
_PAYLOAD_NETWORK = 1
_META_OIFNAME = 7
_CMP_NEQ = 1
_IFNAMSIZ = 16
# nft(8)'s own numbers for the types of set keys: only its listing uses them.
_KEY_TYPES = {4: 7, 6: 8}
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_SOURCE_OFFSETS = {4: 12, 6: 8}
_SIZES = {4: 4, 6: 16}


def base_ruleset(table: str, bridge: str, version: int, pods: Iterable[Address]) -> list[Request]:
    """Make the table anew, with all pods in it, in one transaction: no packet sees it half-made."""
    return [
        _request(_NEWTABLE, version, [wire.text(1, table)], f"add table {table}", create=True),
        _request(_DELTABLE, version, [wire.text(1, table)], f"delete table {table}"),
        _request(_NEWTABLE, version, [wire.text(1, table)], f"add table {table}", create=True),
        _new_set(table, version),
        _new_chain(table, version),
        _masquerade_rule(table, bridge, version),
        *(add_pod(table, address) for address in pods),
    ]


def delete_table(table: str, version: int) -> list[Request]:
    """Delete the table; adding it first makes this right when there is none."""
    return [
        _request(_NEWTABLE, version, [wire.text(1, table)], f"add table {table}", create=True),
        _request(_DELTABLE, version, [wire.text(1, table)], f"delete table {table}"),
    ]


def add_pod(table: str, address: Address) -> Request:
    """Add a pod's address to the set; one that is in it is fine."""
    return _element(_NEWSETELEM, table, address, (errno.EEXIST,))


def delete_pod(table: str, address: Address) -> Request:
    """Take a pod's address out of the set."""
    return _element(_DELSETELEM, table, address, (errno.ENOENT,))


def _request(
    kind: int,
    version: int,
    parts: Sequence[bytes],
    what: str,
    *,
    create: bool = False,
    tolerated: tuple[int, ...] = (),
) -> Request:
    header = struct.pack("!BBH", _FAMILIES[version], 0, 0)
    flags = wire.NLM_F_CREATE if create else 0
    payload = header + b"".join(parts)
    return Request(_SUBSYSTEM | kind, flags, payload, f"nftables: {what}", tolerated)


def _new_set(table: str, version: int) -> Request:
    return _request(
        _NEWSET,
        version,
        [
            wire.text(1, table),
            wire.text(2, _SET_NAME),
            wire.be32(3, 0),
            wire.be32(4, _KEY_TYPES[version]),
            wire.be32(5, _SIZES[version]),
            wire.be32(10, 1),
        ],
        f"add set {table} {_SET_NAME}",
        create=True,
    )


def _new_chain(table: str, version: int) -> Request:
    hook = wire.nested(4, [wire.be32(1, _POSTROUTING_HOOK), wire.be32(2, _SOURCE_NAT_PRIORITY)])
    return _request(
        _NEWCHAIN,
        version,
        [wire.text(1, table), wire.text(3, _CHAIN_NAME), hook, wire.text(7, "nat")],
        f"add chain {table} {_CHAIN_NAME}",
        create=True,
    )


def _masquerade_rule(table: str, bridge: str, version: int) -> Request:
    """``ip saddr @pods oifname != "bridge" masquerade``."""
    interface = bridge.encode().ljust(_IFNAMSIZ, b"\0")
    expressions = [
        _expression(
            "payload",
            wire.be32(1, _REGISTER_1),
            wire.be32(2, _PAYLOAD_NETWORK),
            wire.be32(3, _SOURCE_OFFSETS[version]),
            wire.be32(4, _SIZES[version]),
        ),
        _expression("lookup", wire.text(1, _SET_NAME), wire.be32(2, _REGISTER_1), wire.be32(4, 1)),
        _expression("meta", wire.be32(2, _META_OIFNAME), wire.be32(1, _REGISTER_1)),
        _expression(
            "cmp",
            wire.be32(1, _REGISTER_1),
            wire.be32(2, _CMP_NEQ),
            wire.nested(3, [wire.attribute(1, interface)]),
        ),
        _expression("masq"),
    ]
    return _request(
        _NEWRULE,
        version,
        [wire.text(1, table), wire.text(2, _CHAIN_NAME), wire.nested(4, expressions)],
        f"add rule {table} {_CHAIN_NAME} masquerade",
        create=True,
    )


def _expression(name: str, *parts: bytes) -> bytes:
    return wire.nested(1, [wire.text(1, name), wire.nested(2, parts)])


def _element(kind: int, table: str, address: Address, tolerated: tuple[int, ...]) -> Request:
    key = wire.nested(1, [wire.attribute(1, address.packed)])
    elements = wire.nested(3, [wire.nested(1, [key])])
    return _request(
        kind,
        address.version,
        [wire.text(1, table), wire.text(2, _SET_NAME), elements],
        f"{'add' if kind == _NEWSETELEM else 'delete'} pod {address}",
        create=kind == _NEWSETELEM,
        tolerated=tolerated,
    )
