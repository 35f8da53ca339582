"""Links, addresses and routes: the rtnetlink requests of the bridge network, as data.

One message makes the veth pair, puts its host end on the bridge and its other end into the pod; one
batch inside the pod brings it up with addresses and routes. ``IFF_UP`` of the inner end cannot be
part of the first message (ENOTCONN), so the batch inside does it.

Spec:
    linux/if_link.h, linux/if_addr.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import hashlib
import socket
import struct
from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_network

from polypod_network import transport, wire
from polypod_network.transport import Request

Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_RTM_NEWADDR = 20
_RTM_NEWROUTE = 24
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER = 1, 3, 4, 10
_IFLA_LINKINFO, _IFLA_NET_NS_FD = 18, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_INFO_SLAVE_KIND, _IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
_IFLA_BRPORT_MODE = 4
_VETH_INFO_PEER = 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_NODAD = 0x02
_RTA_OIF, _RTA_GATEWAY = 4, 5
_IFF_UP = 1
_LOOPBACK_INDEX = 1
POD_INDEX = 2
"""The index of ``eth0``: we ask for it, a fresh namespace has only the loopback."""
POD_INTERFACE = "eth0"


def _link(index: int = 0, *, up: bool = False) -> bytes:
    flag = _IFF_UP if up else 0
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flag, flag)


def veth(host_name: str, *, bridge_index: int, namespace_fd: int, mtu: int, what: str) -> Request:
    """Make the pair: host end on the bridge and up, other end as ``eth0`` in the namespace."""
    mtu_part = wire.u32(_IFLA_MTU, mtu) if mtu else b""
    peer = (
        _link(POD_INDEX)
        + wire.text(_IFLA_IFNAME, POD_INTERFACE)
        + wire.u32(_IFLA_NET_NS_FD, namespace_fd)
        + mtu_part
    )
    payload = (
        _link(up=True)
        + wire.text(_IFLA_IFNAME, host_name)
        + wire.u32(_IFLA_MASTER, bridge_index)
        + mtu_part
        + wire.nested(
            _IFLA_LINKINFO,
            [
                wire.text(_IFLA_INFO_KIND, "veth"),
                wire.nested(_IFLA_INFO_DATA, [wire.attribute(_VETH_INFO_PEER, peer)]),
            ],
        )
    )
    flags = wire.NLM_F_CREATE | wire.NLM_F_EXCL
    return Request(_RTM_NEWLINK, flags, payload, f"make veth {host_name} for {what}")


def hairpin(host_name: str) -> Request:
    """Let a port of the bridge send back where it came from: a pod that asks for its own host port.

    Where the host filters bridged packets by its IP rules (br_netfilter), their new destination is found on
    the bridge, not by routing.
    """
    data = [wire.attribute(_IFLA_BRPORT_MODE, b"\1")]
    payload = (
        _link()
        + wire.text(_IFLA_IFNAME, host_name)
        + wire.nested(
            _IFLA_LINKINFO,
            [
                wire.text(_IFLA_INFO_SLAVE_KIND, "bridge"),
                wire.nested(_IFLA_INFO_SLAVE_DATA, data),
            ],
        )
    )
    return Request(_RTM_NEWLINK, 0, payload, f"let {host_name} send back")


def pod_requests(
    addresses: Sequence[Interface], gateways: Sequence[Interface], index: int = POD_INDEX
) -> list[Request]:
    """Everything inside a fresh pod namespace: loopback, ``eth0``, addresses, default routes."""
    requests = [
        loopback_up(),
        Request(_RTM_NEWLINK, 0, _link(index, up=True), f"bring up {POD_INTERFACE}"),
    ]
    requests += [address(index, item) for item in addresses]
    requests += [default_route(index, item) for item in gateways]
    return requests


def loopback_up() -> Request:
    """Bring up the loopback of a fresh namespace."""
    return Request(_RTM_NEWLINK, 0, _link(_LOOPBACK_INDEX, up=True), "bring up lo")


def address(index: int, item: Interface) -> Request:
    """Give an interface an address, without waiting for duplicate address detection."""
    family = socket.AF_INET if item.version == 4 else socket.AF_INET6
    packed = item.ip.packed
    payload = (
        struct.pack("=BBBBI", family, item.network.prefixlen, 0, 0, index)
        + wire.attribute(_IFA_LOCAL, packed)
        + wire.attribute(_IFA_ADDRESS, packed)
        + wire.u32(_IFA_FLAGS, _IFA_F_NODAD)
    )
    flags = wire.NLM_F_CREATE | wire.NLM_F_REPLACE
    return Request(_RTM_NEWADDR, flags, payload, f"add address {item}", (errno.EEXIST,))


def default_route(index: int, gateway: Interface) -> Request:
    """Route everything through the bridge's own address."""
    family = socket.AF_INET if gateway.version == 4 else socket.AF_INET6
    table_main, protocol_boot, scope_universe, unicast = 254, 3, 0, 1
    header = struct.pack(
        "=BBBBBBBBI", family, 0, 0, 0, table_main, protocol_boot, scope_universe, unicast, 0
    )
    payload = header + wire.u32(_RTA_OIF, index) + wire.attribute(_RTA_GATEWAY, gateway.ip.packed)
    return Request(_RTM_NEWROUTE, wire.NLM_F_CREATE, payload, f"add default route {gateway.ip}")


def bridge(name: str, mtu: int) -> Request:
    """Make the bridge, up; one that exists is fine."""
    payload = (
        _link(up=True)
        + wire.text(_IFLA_IFNAME, name)
        + (wire.u32(_IFLA_MTU, mtu) if mtu else b"")
        + wire.attribute(_IFLA_ADDRESS, _hardware_address(name))
        + wire.nested(_IFLA_LINKINFO, [wire.text(_IFLA_INFO_KIND, "bridge")])
    )
    return Request(
        _RTM_NEWLINK,
        wire.NLM_F_CREATE | wire.NLM_F_EXCL,
        payload,
        f"make bridge {name}",
        (errno.EEXIST,),
    )


def delete(name: str) -> Request:
    """Delete a link; one that is gone is fine. Waits for the kernel (12 ms and more)."""
    payload = _link() + wire.text(_IFLA_IFNAME, name)
    return Request(_RTM_DELLINK, 0, payload, f"delete link {name}", (errno.ENODEV,))


def index_of(sock: socket.socket, name: str) -> int:
    """Return an interface's index.

    Raises:
        OSError: ENODEV if there is none.
    """
    payload = _link() + wire.text(_IFLA_IFNAME, name)
    answers = transport.dump(sock, Request(_RTM_GETLINK, 0, payload, f"look up link {name}"))
    index: int = struct.unpack_from("=BxHi", answers[0])[2]
    return index


def is_up(sock: socket.socket, name: str) -> bool:
    """Tell whether an interface is administratively up. OSError ENODEV if there is none."""
    payload = _link() + wire.text(_IFLA_IFNAME, name)
    answers = transport.dump(sock, Request(_RTM_GETLINK, 0, payload, f"look up link {name}"))
    flags: int = struct.unpack_from("=BxHiI", answers[0])[3]
    return bool(flags & _IFF_UP)


def parse_network(value: str) -> Network:
    """Return a subnet; ValueError names what is wrong with it."""
    return ip_network(value, strict=True)


def _hardware_address(name: str) -> bytes:
    """A fixed address: a bridge that takes its ports' addresses changes its own with every pod."""
    return b"\x0a\x58" + hashlib.sha256(name.encode()).digest()[:4]
