"""The guest's own interface: the pod's addresses and routes."""

from __future__ import annotations

import time

from polypod_vm_child.netlink import Link, Netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_APPEARS_S = 60.0
_LOOPBACK = "lo"


def configure(network: dict[str, Any]) -> None:
    """Bring the loopback up, and the interface with the pod's MAC as the network plugin left it on the host.

    Args:
        network: ``mac`` (``""``: there is none), ``mtu``, ``addresses`` and ``routes``.

    Raises:
        OSError: the interface does not appear, or the kernel refuses something.
    """
    netlink = Netlink()
    try:
        for link in netlink.links():
            if link.name == _LOOPBACK:
                netlink.set_up(link.index)
        if network["mac"]:
            _configure(netlink, _wait_for(netlink, network["mac"]), network)
    finally:
        netlink.close()


def _wait_for(netlink: Netlink, mac: str) -> Link:
    deadline = time.monotonic() + _APPEARS_S
    while True:
        for link in netlink.links():
            if link.mac == mac:
                return link
        if time.monotonic() > deadline:
            text = f"no interface with the address {mac} appears in the guest"
            raise FileNotFoundError(2, text)
        time.sleep(0.005)


def _configure(netlink: Netlink, link: Link, network: dict[str, Any]) -> None:
    netlink.set_up(link.index, int(network["mtu"]))
    for address, prefix in network["addresses"]:
        netlink.add_address(link.index, address, int(prefix))
    # Routes on the link itself first: the others lead through their gateways.
    for target, prefix, gateway in sorted(network["routes"], key=lambda each: bool(each[2])):
        netlink.add_route(link.index, target, int(prefix), gateway)
