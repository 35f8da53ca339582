"""A tap beside the pod's interface, and every frame of the one sent out of the other.

The guest has the pod's MAC and addresses; the kernel of the host takes part in nothing: frames are
redirected before its own stack sees them.

Spec:
    linux/if_tun.h; kernel Documentation/networking/tuntap.rst.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from polypod_vm_child.netlink import Netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_INTERFACE = "eth0"
"""What CRI networks call a pod's interface."""
_TAP = "polypodtap0"
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x2, 0x1000, 0x4000


class Splice:
    """What is there at the start; without an interface there is nothing to join.

    Without ``host`` nothing is even looked at: the network may be the host's own.
    """

    def __init__(self, host: str) -> None:
        self.tap = -1
        self.facts: dict[str, Any] = {"mac": "", "mtu": 0, "addresses": [], "routes": []}
        if not host:
            return
        if os.stat("/proc/self/ns/net").st_ino == int(host):
            text = "this is the host's own network: its interface is not taken"
            raise PermissionError(errno.EPERM, text)
        netlink = Netlink()
        try:
            self._join(netlink)
        finally:
            netlink.close()

    def _join(self, netlink: Netlink) -> None:
        ours = next((link for link in netlink.links() if link.name == _INTERFACE), None)
        if ours is None:
            return
        self.facts = {
            "mac": ours.mac,
            "mtu": ours.mtu,
            "addresses": netlink.addresses(ours.index),
            "routes": netlink.routes(ours.index),
        }
        self.tap = _open_tap()
        tap = next(link for link in netlink.links() if link.name == _TAP)
        netlink.set_up(tap.index, ours.mtu)
        netlink.redirect(ours.index, tap.index)
        netlink.redirect(tap.index, ours.index)


def _open_tap() -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    request = struct.pack("16sH22x", _TAP.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
    fcntl.ioctl(fd, _TUNSETIFF, request)
    return fd
