"""What the bridge network takes: nftables, bridge and veth, forwarding."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from polypod.doctor.child import outcome
from polypod.doctor.row import Row, State

_NETLINK_NETFILTER = 12
_GETGEN = 10 << 8 | 16
"""NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN: asks for the generation of the ruleset; changes nothing."""
FORWARDING = {
    "IPv4": Path("/proc/sys/net/ipv4/ip_forward"),
    "IPv6": Path("/proc/sys/net/ipv6/conf/all/forwarding"),
}


def nftables() -> Row:
    """Pods are masqueraded by nftables sets."""
    if os.geteuid() != 0:
        return Row("nftables", State.MISSING, "not tried: that takes root")
    request = struct.pack("IHHII", 20, _GETGEN, 0x1, 1, 0) + bytes(4)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
            sock.settimeout(5.0)
            sock.send(request)
            answer = sock.recv(65536)
    except OSError as error:
        return Row("nftables", State.MISSING, f"modprobe nf_tables ({error.strerror or error})")
    length, kind = struct.unpack_from("IH", answer)
    if kind == 2 and length >= 20:  # NLMSG_ERROR
        number = -struct.unpack_from("i", answer, 16)[0]
        return Row("nftables", State.MISSING, f"modprobe nf_tables ({os.strerror(number)})")
    return Row("nftables", State.OK, "answers")


def links() -> Row:
    """A pod's link is a veth pair on a bridge; tried in a namespace of our own."""
    if os.geteuid() != 0:
        return Row("bridge and veth", State.MISSING, "not tried: that takes root")
    problem = outcome("links")
    if problem:
        return Row("bridge and veth", State.MISSING, f"modprobe bridge veth ({problem})")
    return Row("bridge and veth", State.OK, "could be made in a namespace of our own")


def forwarding(files: dict[str, Path] | None = None) -> Row:
    """Pods reach beyond the host through it; the bridge network turns it on."""
    states = []
    for family, path in (files or FORWARDING).items():
        try:
            on = path.read_text().strip() != "0"
        except OSError:
            states.append(f"{family} not in the kernel")
        else:
            states.append(f"{family} {'on' if on else 'off, the network turns it on'}")
    return Row("IP forwarding", State.OK, "; ".join(states))
