"""As much of rtnetlink as a pod's interface needs: read it on the host, make it in the guest.

Spec:
    linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/pkt_sched.h, linux/pkt_cls.h,
    linux/tc_act/tc_mirred.h; man rtnetlink(7), tc-mirred(8), tc-u32(8).
"""

from __future__ import annotations

import os
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_TC = struct.Struct("=BxxxiIII")
_REQUEST, _ACK, _DUMP, _CREATE, _EXCL = 1, 4, 0x300, 0x400, 0x200
_ERROR, _DONE = 2, 3
_NEWLINK, _GETLINK, _NEWADDR, _GETADDR, _NEWROUTE, _GETROUTE = 16, 18, 20, 22, 24, 26
_NEWQDISC, _NEWTFILTER = 36, 44
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU = 1, 3, 4
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC = 1, 4, 5, 7
_RT_TABLE_MAIN, _RTPROT_KERNEL, _RTPROT_STATIC = 254, 2, 4
_SCOPE_LINK, _SCOPE_UNIVERSE, _UNICAST = 253, 0, 1
_IFF_UP = 1
_NODAD = 0x02
_READ_BYTES = 64 * 1024
_INGRESS = 0xFFFFFFF1
_INGRESS_HANDLE = 0xFFFF0000
_EVERY_PROTOCOL = 0x0300  # htons(ETH_P_ALL)
_TCA_KIND, _TCA_OPTIONS = 1, 2
_U32_SEL, _U32_ACT = 5, 7
_ACT_KIND, _ACT_OPTIONS, _MIRRED_PARMS = 1, 2, 2
_TERMINAL, _STOLEN, _REDIRECT = 1, 4, 1


class Link:
    """One interface as it is."""

    __slots__ = ("index", "mac", "mtu", "name")

    def __init__(self, index: int, name: str, mac: str, mtu: int) -> None:
        self.index = index
        self.name = name
        self.mac = mac
        self.mtu = mtu


class Netlink:
    """A NETLINK_ROUTE socket in our network namespace."""

    def __init__(self) -> None:
        flags = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._sock = socket.socket(socket.AF_NETLINK, flags, socket.NETLINK_ROUTE)
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    # Reading

    def links(self) -> list[Link]:
        """Return all interfaces."""
        found = []
        for body in self._ask(_GETLINK, _LINK.pack(0, 0, 0, 0, 0), _DUMP):
            index = _LINK.unpack_from(body)[2]
            table = _attributes(body[_LINK.size :])
            mac = ":".join(f"{byte:02x}" for byte in table.get(_IFLA_ADDRESS, b""))
            name = table[_IFLA_IFNAME].rstrip(b"\0").decode()
            found.append(Link(index, name, mac, int.from_bytes(table[_IFLA_MTU], "little")))
        return found

    def addresses(self, index: int) -> list[tuple[str, int]]:
        """Return (address, prefix length) of an interface; link-local ones are left out."""
        found = []
        for body in self._ask(_GETADDR, _ADDRESS.pack(0, 0, 0, 0, 0), _DUMP):
            family, prefix, _flags, scope, owner = _ADDRESS.unpack_from(body)
            table = _attributes(body[_ADDRESS.size :])
            raw = table.get(_IFA_LOCAL) or table.get(_IFA_ADDRESS)
            if owner == index and scope != _SCOPE_LINK and raw is not None:
                found.append((socket.inet_ntop(family, raw), prefix))
        return found

    def routes(self, index: int) -> list[tuple[str, int, str]]:
        """Return (destination, prefix length, gateway) of the routes that somebody has made."""
        found = []
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
            for body in self._ask(_GETROUTE, request, _DUMP):
                fields = _ROUTE.unpack_from(body)
                table = _attributes(body[_ROUTE.size :])
                if fields[0] != family or fields[4] != _RT_TABLE_MAIN:
                    continue
                owner = int.from_bytes(table.get(_RTA_OIF, b""), "little")
                if owner != index or fields[5] == _RTPROT_KERNEL or fields[7] != _UNICAST:
                    continue
                empty = bytes(4 if family == socket.AF_INET else 16)
                target = socket.inet_ntop(family, table.get(_RTA_DST, empty))
                raw = table.get(_RTA_GATEWAY)
                gateway = socket.inet_ntop(family, raw) if raw else ""
                found.append((target, fields[1], gateway))
        return found

    # Making

    def set_up(self, index: int, mtu: int = 0) -> None:
        """Bring an interface up."""
        body = _LINK.pack(0, 0, index, _IFF_UP, _IFF_UP)
        if mtu:
            body += _attribute(_IFLA_MTU, struct.pack("=I", mtu))
        self._ask(_NEWLINK, body)

    def add_address(self, index: int, address: str, prefix: int) -> None:
        """Give an interface an address; nobody else has it, so it is not looked for."""
        family, raw = _raw(address)
        body = _ADDRESS.pack(family, prefix, _NODAD if family == socket.AF_INET6 else 0, 0, index)
        body += _attribute(_IFA_LOCAL, raw) + _attribute(_IFA_ADDRESS, raw)
        self._ask(_NEWADDR, body, _CREATE | _EXCL)

    def add_route(self, index: int, target: str, prefix: int, gateway: str) -> None:
        """Add a route through an interface."""
        family, raw = _raw(target)
        scope = _SCOPE_UNIVERSE if gateway or family == socket.AF_INET6 else _SCOPE_LINK
        body = _ROUTE.pack(family, prefix, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, scope, _UNICAST, 0)
        if prefix:
            body += _attribute(_RTA_DST, raw)
        if gateway:
            body += _attribute(_RTA_GATEWAY, _raw(gateway)[1])
        body += _attribute(_RTA_OIF, struct.pack("=i", index))
        self._ask(_NEWROUTE, body, _CREATE | _EXCL)

    def redirect(self, source: int, target: int) -> None:
        """Send every frame that arrives on one interface out of another one.

        By u32, which matches everything with a key of no bits: not every kernel has ``matchall``.
        """
        kind = _attribute(_TCA_KIND, b"ingress\0")
        self._ask(_NEWQDISC, _TC.pack(0, source, _INGRESS_HANDLE, _INGRESS, 0) + kind, _CREATE)
        selector = struct.pack("=BBBxHHhhI", _TERMINAL, 0, 1, 0, 0, 0, 0, 0)
        selector += struct.pack("=IIii", 0, 0, 0, 0)
        parms = struct.pack("=IIiiiiI", 0, 0, _STOLEN, 0, 0, _REDIRECT, target)
        action = _attribute(_ACT_KIND, b"mirred\0")
        action += _attribute(_ACT_OPTIONS, _attribute(_MIRRED_PARMS, parms))
        options = _attribute(_U32_SEL, selector) + _attribute(_U32_ACT, _attribute(1, action))
        body = _TC.pack(0, source, 0, _INGRESS_HANDLE, 1 << 16 | _EVERY_PROTOCOL)
        body += _attribute(_TCA_KIND, b"u32\0") + _attribute(_TCA_OPTIONS, options)
        self._ask(_NEWTFILTER, body, _CREATE | _EXCL)

    def _ask(self, kind: int, body: bytes, flags: int = 0) -> list[bytes]:
        """Send one request; return the bodies of a dump's answers."""
        self._sequence += 1
        length = _HEADER.size + len(body)
        header = _HEADER.pack(length, kind, flags | _REQUEST | _ACK, self._sequence, 0)
        self._sock.send(header + body)
        found: list[bytes] = []
        while True:
            for code, answer in _messages(self._sock.recv(_READ_BYTES)):
                if code == _DONE:
                    return found
                if code == _ERROR:
                    number = -int(struct.unpack_from("=i", answer)[0])
                    if number:
                        raise OSError(number, f"rtnetlink request {kind}: {os.strerror(number)}")
                    return found
                found.append(answer)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, code, _flags, _sequence, _port = _HEADER.unpack_from(data, offset)
        yield code, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _attribute(kind: int, payload: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + bytes(-length % 4)


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind & 0x3FFF] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found


def _raw(address: str) -> tuple[int, bytes]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address)
