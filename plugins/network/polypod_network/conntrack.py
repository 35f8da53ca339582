"""Connection tracking: entries that must not outlive, or predate, a host port are deleted.

Spec:
    linux/netfilter/nfnetlink_conntrack.h. The bits of ``CTA_FILTER`` stand in the kernel's nf_internals.h alone;
    a kernel before 5.8 does not know it and refuses.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Sequence

from polypod_network import transport, wire
from polypod_network.hostports import Address, HostPort
from polypod_network.transport import Request

TCP = 6
_SUBSYSTEM = 1 << 8
_DELETE = 2
_TUPLE_ORIGINAL, _TUPLE_REPLY, _FILTER = 1, 2, 25
_TUPLE_IP, _TUPLE_PROTOCOL = 1, 2
_IP_SOURCE = {4: 1, 6: 3}
_PROTOCOL_NUMBER, _PROTOCOL_DESTINATION_PORT = 1, 3
_FILTER_ORIGINAL, _FILTER_REPLY = 1, 2
_F_IP_SOURCE, _F_PROTOCOL_NUMBER, _F_DESTINATION_PORT = 1 << 0, 1 << 3, 1 << 5
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


def forget(sock: socket.socket, addresses: Iterable[Address], ports: Sequence[HostPort]) -> None:
    """Delete entries that lead to the pod, and those to its host ports, of protocols without connections.

    Raises:
        OSError: the kernel cannot select entries (before 5.8), or has no connection tracking.
    """
    requests = [to_pod(address) for address in addresses]
    requests += [to_host_port(port) for port in ports if port.protocol != TCP]
    transport.send_batch(sock, requests)


def to_pod(address: Address) -> Request:
    """Delete what is answered by a pod."""
    source = wire.attribute(_IP_SOURCE[address.version], address.packed)
    parts = [
        wire.nested(_TUPLE_REPLY, [wire.nested(_TUPLE_IP, [source])]),
        wire.nested(
            _FILTER,
            [wire.u32(_FILTER_ORIGINAL, 0), wire.u32(_FILTER_REPLY, _F_IP_SOURCE)],
        ),
    ]
    return _delete(address.version, parts, f"connections to {address}")


def to_host_port(port: HostPort) -> Request:
    """Delete what was sent to a port, whichever address of the host it was sent to."""
    protocol = [
        wire.attribute(_PROTOCOL_NUMBER, bytes([port.protocol])),
        wire.attribute(_PROTOCOL_DESTINATION_PORT, struct.pack("!H", port.port)),
    ]
    flags = _F_PROTOCOL_NUMBER | _F_DESTINATION_PORT
    parts = [
        wire.nested(_TUPLE_ORIGINAL, [wire.nested(_TUPLE_PROTOCOL, protocol)]),
        wire.nested(_FILTER, [wire.u32(_FILTER_ORIGINAL, flags), wire.u32(_FILTER_REPLY, 0)]),
    ]
    return _delete(port.version, parts, f"connections to {port}")


def _delete(version: int, parts: Sequence[bytes], what: str) -> Request:
    header = struct.pack("!BBH", _FAMILIES[version], 0, 0)
    return Request(_SUBSYSTEM | _DELETE, 0, header + b"".join(parts), f"delete {what}")
