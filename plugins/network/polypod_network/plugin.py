"""The entry point: offers the native bridge, and networks by CNI."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from polypod.plugin.hooks import Hooks, hookimpl, override
from polypod.plugin.network import Network, NetworkContext, NetworkType


class NetworkPlugin(Hooks):
    """Offers ``bridge`` and ``cni``."""

    @override
    @hookimpl
    def polypod_network_types(self) -> Sequence[NetworkType]:
        """Offer both."""
        return (
            NetworkType(
                name="bridge",
                summary="veth pairs on a bridge of ours: netlink, nftables, own leases",
                open=_open_bridge,
                unusable=_why_unusable(),
            ),
            NetworkType(
                name="cni",
                summary="whatever the CNI configuration of this host says, by its plugins",
                open=_open_cni,
                needs_path=True,
                unusable="" if os.geteuid() == 0 else "needs root to execute CNI plugins",
            ),
        )


async def _open_bridge(context: NetworkContext) -> Network:
    # Imported when it is opened: offering it costs nothing.
    from polypod_network.bridge import open_bridge

    return await open_bridge(context)


async def _open_cni(context: NetworkContext) -> Network:
    from polypod_network.cni.network import open_cni

    return await open_cni(context)


def _why_unusable() -> str:
    if os.geteuid() != 0:
        return "needs root (CAP_NET_ADMIN) to make links and nftables rules"
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12).close()
    except OSError as error:
        return f"the kernel has no nfnetlink: {error}"
    return ""


plugin = NetworkPlugin()
