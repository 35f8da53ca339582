"""Host ports: what a pod's port mappings mean, per address family, and what takes what from whom."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from polypod.plugin.errors import InvalidArgument
from polypod.plugin.hooks import override
from polypod.plugin.requests import PortMapping, Protocol

Address = IPv4Address | IPv6Address

PROTOCOLS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
_NAMES = {number: protocol.name for protocol, number in PROTOCOLS.items()}


@dataclass(frozen=True, slots=True)
class HostPort:
    """One port of the host, in one address family, that leads to a pod."""

    version: int
    """4 or 6."""
    protocol: int
    """IP protocol number."""
    address: Address | None
    """Of the host; None: any of them."""
    port: int
    target: int
    """The pod's port."""

    @override
    def __str__(self) -> str:
        """Return it as people write it."""
        where = "any address" if self.address is None else str(self.address)
        return f"host port {self.port}/{_NAMES[self.protocol]} of {where} (IPv{self.version})"

    def overlaps(self, other: HostPort) -> bool:
        """Tell whether one packet could be meant for both."""
        return (
            (self.version, self.protocol, self.port) == (other.version, other.protocol, other.port)
        ) and (self.address is None or other.address is None or self.address == other.address)


def host_ports(
    mappings: Iterable[PortMapping], versions: Sequence[int], what: str
) -> tuple[HostPort, ...]:
    """Return what is to be forwarded; mappings without a host port ask for nothing.

    Args:
        mappings: of the request.
        versions: the families that pods have addresses of.
        what: whose they are, for the error text.

    Raises:
        InvalidArgument: an address is none, has a family that pods have not, or one host port is to lead
            to two ports.
    """
    found: list[HostPort] = []
    for mapping in mappings:
        if not mapping.host_port:
            continue
        for each in _of_mapping(mapping, versions, what):
            clash = next((other for other in found if other.overlaps(each)), None)
            if clash is not None and clash != each:
                raise InvalidArgument(
                    f"{what}: {each} is to lead to port {each.target}, and {clash} to "
                    f"port {clash.target}"
                )
            if clash is None:
                found.append(each)
    return tuple(found)


def _of_mapping(mapping: PortMapping, versions: Sequence[int], what: str) -> list[HostPort]:
    address = _host_address(mapping.host_ip, what)
    wanted = versions if address is None else [address.version]
    if not set(wanted) <= set(versions):
        raise InvalidArgument(
            f"{what}: host IP {mapping.host_ip} of port {mapping.host_port}: pods have no "
            f"IPv{wanted[0]} address (network.subnets)"
        )
    if address is not None and address.is_unspecified:
        address = None
    return [
        HostPort(
            version,
            PROTOCOLS[mapping.protocol],
            address,
            mapping.host_port,
            mapping.container_port,
        )
        for version in wanted
    ]


def _host_address(text: str, what: str) -> Address | None:
    if not text:
        return None
    try:
        address = ip_address(text)
    except ValueError:
        raise InvalidArgument(f"{what}: host IP {text!r} is no IP address") from None
    if address.version == 6 and address.scope_id:
        raise InvalidArgument(f"{what}: host IP {text}: a zone cannot be forwarded")
    return address
