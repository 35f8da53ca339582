"""One nftables table per address family: pods that are masqueraded, host ports that lead to pods.

A pod costs one set element (some 10 µs), a host port three or four; the rules never change, however many
there are. As nft(8) writes it, for IPv4::

    set pods      { type ipv4_addr }
    map ports     { type inet_proto . inet_service : ipv4_addr . inet_service }
    map ports_at  { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service }
    set published { type ipv4_addr . inet_proto . inet_service }

**The node's loopback.** A connection to 127.0.0.1:PORT from the host must reach the pod, and no other host
may reach 127.0.0.1 (A6), so ``route_localnet``, the usual way, is out: it is off for a reason. Instead
``loopback_out`` puts the bridge's address in the place of 127.0.0.1 as the source before connection
tracking sees the packet, so that nothing about the connection is special to routing, and ``loopback_in``
puts 127.0.0.1 back as the destination of the answer after the last translation. Both match what the kernel
itself would never take from another interface.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

from polypod_network import nftmessages as nft
from polypod_network.hostports import HostPort
from polypod_network.transport import Request

Address = IPv4Address | IPv6Address

_ADDRESS_TYPES = {4: "ipv4_addr", 6: "ipv6_addr"}
_SOURCE = {4: 12, 6: 8}
_DESTINATION = {4: 16, 6: 24}
_SIZES = {4: 4, 6: 16}
_LOOPBACK: dict[int, Address] = {4: ip_address("127.0.0.1"), 6: ip_address("::1")}
_FIRST_OF_LOOPBACK = b"\x7f"
_RAW, _DESTINATION_NAT, _SOURCE_NAT, _AFTER_NAT = -300, -100, 100, 150
"""Priorities of hooks, as nft(8) names them: raw, dstnat, srcnat; and one after the last translation."""


def base_ruleset(table: str, bridge: str, gateway: Address, *, masquerade: bool) -> list[Request]:
    """Make the table anew; with the elements in one transaction, no packet sees it half-made.

    Args:
        table: its name.
        bridge: the interface behind which the pods are.
        gateway: the bridge's own address; its family is the table's.
        masquerade: hide pods behind the host's addresses when they talk to others.
    """
    version = gateway.version
    return [
        *delete_table(table, version),
        nft.add_table(table, version),
        *_sets(table, version),
        *_chains(table, version),
        *_forwarding_rules(table, gateway, bridge),
        *_source_rules(table, bridge, version, masquerade=masquerade),
    ]


def delete_table(table: str, version: int) -> list[Request]:
    """Delete the table; adding it first makes this right when there is none."""
    return [nft.add_table(table, version), nft.delete_table(table, version)]


def add_pod(table: str, address: Address, ports: Iterable[HostPort] = ()) -> list[Request]:
    """Add a pod's address and the host ports that lead to it; what is there is fine."""
    version = address.version
    requests = [nft.add_element(table, "pods", version, address.packed, f"pod {address}")]
    for port in _of(version, ports):
        where, key = _forwarded(port)
        data = address.packed + _port(port.target)
        requests.append(nft.add_element(table, where, version, key, str(port), data))
    for key in _published(address, ports):
        what = f"port of pod {address}"
        requests.append(nft.add_element(table, "published", version, key, what))
    return requests


def delete_pod(table: str, address: Address, ports: Iterable[HostPort] = ()) -> list[Request]:
    """Take a pod's address and its host ports out."""
    version = address.version
    requests = []
    for port in _of(version, ports):
        where, key = _forwarded(port)
        requests.append(nft.delete_element(table, where, version, key, str(port)))
    for key in _published(address, ports):
        what = f"port of pod {address}"
        requests.append(nft.delete_element(table, "published", version, key, what))
    requests.append(nft.delete_element(table, "pods", version, address.packed, f"pod {address}"))
    return requests


# Elements


def _of(version: int, ports: Iterable[HostPort]) -> list[HostPort]:
    return [port for port in ports if port.version == version]


def _forwarded(port: HostPort) -> tuple[str, bytes]:
    """Return the map and the key of a host port."""
    key = _protocol(port.protocol) + _port(port.port)
    if port.address is None:
        return "ports", key
    return "ports_at", port.address.packed + key


def _published(address: Address, ports: Iterable[HostPort]) -> list[bytes]:
    """Return the pod's side of its host ports, each once: two host ports may lead to one."""
    keys = {
        address.packed + _protocol(port.protocol) + _port(port.target)
        for port in _of(address.version, ports)
    }
    return sorted(keys)


def _protocol(number: int) -> bytes:
    return struct.pack("!Bxxx", number)


def _port(number: int) -> bytes:
    return struct.pack("!Hxx", number)


# Rules


def _sets(table: str, version: int) -> list[Request]:
    address = _ADDRESS_TYPES[version]
    port = ("inet_proto", "inet_service")
    target = (address, "inet_service")
    return [
        nft.add_set(table, "pods", version, 1, (address,)),
        nft.add_set(table, "ports", version, 2, port, target),
        nft.add_set(table, "ports_at", version, 3, (address, *port), target),
        nft.add_set(table, "published", version, 4, (address, *port)),
    ]


def _chains(table: str, version: int) -> list[Request]:
    hooks = (
        ("loopback_out", "filter", nft.OUTPUT, _RAW),
        ("prerouting", "nat", nft.PREROUTING, _DESTINATION_NAT),
        ("output", "nat", nft.OUTPUT, _DESTINATION_NAT),
        ("postrouting", "nat", nft.POSTROUTING, _SOURCE_NAT),
        ("loopback_in", "filter", nft.INPUT, _AFTER_NAT),
    )
    return [
        nft.add_chain(table, "host_ports", version),
        *(
            nft.add_chain(table, name, version, kind=kind, hook=hook, priority=priority)
            for name, kind, hook, priority in hooks
        ),
    ]


def _forwarding_rules(table: str, gateway: Address, bridge: str) -> list[Request]:
    version = gateway.version
    size = _SIZES[version]

    def rule(chain: str, *expressions: bytes) -> Request:
        return nft.add_rule(table, chain, version, expressions)

    to_host_ports = (*nft.local_destination(), nft.jump("host_ports"))
    # Into other registers than the key's, and never looked at.
    nowhere = nft.register_after(32)
    nat = nft.destination_nat(version, nft.REGISTER, nft.register_after(size))
    return [
        rule("prerouting", *_not_to_loopback(version), *to_host_ports),
        rule("output", *to_host_ports),
        rule("host_ports", *_address_key(version), nft.lookup("ports_at", into=1), nat),
        rule("host_ports", *_port_key(0), nft.lookup("ports", into=1), nat),
        *(
            rule("loopback_out", *_to_loopback(version), *key, nft.lookup(name, into=nowhere), *src)
            for src in [nft.store(_SOURCE[version], gateway.packed)]
            for name, key in (("ports_at", _address_key(version)), ("ports", _port_key(0)))
        ),
        rule("loopback_in", *_loopback_answer(gateway, bridge)),
    ]


def _source_rules(table: str, bridge: str, version: int, *, masquerade: bool) -> list[Request]:
    """``ip saddr @pods oifname != "bridge" masquerade``, and for pods that meet by a host port the same.

    Without the second, a pod would answer its neighbour directly, who asked the host.
    """
    from_pods = (nft.load(nft.NETWORK, _SOURCE[version], _SIZES[version]), nft.lookup("pods"))
    name = nft.interface_name(bridge)
    hairpin = (
        *from_pods,
        nft.meta(nft.OIFNAME),
        nft.equal(name),
        *nft.destination_was_changed(),
        *_address_key(version),
        nft.lookup("published"),
        nft.masquerade(),
    )
    outgoing = (*from_pods, nft.meta(nft.OIFNAME), nft.differs(name), nft.masquerade())
    wanted = (outgoing, hairpin) if masquerade else (hairpin,)
    return [nft.add_rule(table, "postrouting", version, each) for each in wanted]


def _address_key(version: int) -> tuple[bytes, ...]:
    """``ip daddr . meta l4proto . th dport``."""
    size = _SIZES[version]
    return (nft.load(nft.NETWORK, _DESTINATION[version], size), *_port_key(size))


def _port_key(after: int) -> tuple[bytes, ...]:
    """``meta l4proto . th dport``, behind a number of bytes."""
    first = nft.register_after(after) if after else nft.REGISTER
    return (
        nft.meta(nft.L4PROTO, first),
        nft.load(nft.TRANSPORT, 2, 2, nft.register_after(after + 4)),
    )


def _not_to_loopback(version: int) -> tuple[bytes, ...]:
    """Of what comes from outside, let packets to the loopback fail as they always do.

    Without that, a mapping of 127.0.0.1 would be open to whoever sends such a packet. IPv6 drops it
    before any hook.
    """
    if version == 6:
        return ()
    return (nft.load(nft.NETWORK, _DESTINATION[4], 1), nft.differs(_FIRST_OF_LOOPBACK))


def _to_loopback(version: int) -> tuple[bytes, ...]:
    source = (
        nft.load(nft.NETWORK, _SOURCE[version], _SIZES[version]),
        nft.equal(_LOOPBACK[version].packed),
    )
    if version == 6:
        return source
    return (*source, nft.load(nft.NETWORK, _DESTINATION[4], 1), nft.equal(_FIRST_OF_LOOPBACK))


def _loopback_answer(gateway: Address, bridge: str) -> Sequence[bytes]:
    version = gateway.version
    whole = _LOOPBACK[version].packed
    loopback = _FIRST_OF_LOOPBACK if version == 4 else whole
    return (
        nft.meta(nft.IIFNAME),
        nft.equal(nft.interface_name(bridge)),
        nft.load(nft.NETWORK, _SOURCE[version], len(loopback)),
        nft.equal(loopback),
        nft.load(nft.NETWORK, _DESTINATION[version], _SIZES[version]),
        nft.equal(gateway.packed),
        *nft.store(_DESTINATION[version], whole),
    )
