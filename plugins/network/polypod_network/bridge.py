"""The native bridge network: a veth pair per pod on one bridge, addresses from our own leases.

Nothing is executed and nothing waits for the kernel to delete an interface: a pod's interface dies
with its namespace. The order of an attach is lease (committed), link, firewall; a detach takes the
firewall element out first and ends the lease last, so that an address is never in use twice.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_interface
from pathlib import Path
from typing import TypeVar

from polypod.plugin.errors import BackendError, InvalidArgument
from polypod.plugin.ids import SandboxId
from polypod.plugin.network import (
    Attachment,
    AttachRequest,
    NetworkContext,
    NetworkStatus,
)
from polypod_network import links, transport
from polypod_network.firewall import Firewall
from polypod_network.hostports import Address, host_ports
from polypod_network.leases import Lease, Leases
from polypod_network.links import Interface, Network
from polypod_network.options import BridgeOptions, parse

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_FORWARDING = {
    4: Path("/proc/sys/net/ipv4/ip_forward"),
    6: Path("/proc/sys/net/ipv6/conf/all/forwarding"),
}


class BridgeNetwork:
    """`polypod.plugin.network.Network` on one bridge of the host."""

    def __init__(self, context: NetworkContext) -> None:
        self._context = context
        self._configured = bool(context.options.get("subnets"))
        self._options = parse(context.options, context.root)
        self._leases = Leases(context.root / "leases.sqlite", self._options.subnets)
        self._bridge_index = 0
        # rtnl serialises the kernel's side anyway: two threads keep it busy, more only queue.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="polypod-network")
        self._local = threading.local()
        self._sockets: list[socket.socket] = []
        self._firewall = self._make_firewall()

    async def open(self) -> BridgeNetwork:
        """Make the bridge and the firewall tables, or find them."""
        await self._run(self._set_up)
        return self

    async def attach(self, request: AttachRequest, /) -> Attachment:
        """See `polypod.plugin.network.Network.attach`."""
        link = link_name(request.sandbox_id)
        versions = [subnet.version for subnet in self._options.subnets]
        ports = host_ports(request.port_mappings, versions, f"sandbox {request.sandbox_id}")
        lease = self._leases.take(request.sandbox_id, link, ports)
        work = asyncio.ensure_future(self._run(self._connect, request, link, lease))
        try:
            await asyncio.shield(work)
        except BaseException:
            # The thread cannot be interrupted: let it end, then take back what it made.
            await asyncio.gather(work, return_exceptions=True)
            await self._run(self._undo_connect, link, lease)
            self._leases.give_back(request.sandbox_id)
            raise
        return Attachment(
            ips=tuple(str(item) for item in lease.addresses),
            result={"interface": link, "bridge": self._options.bridge},
        )

    async def detach(self, sandbox_id: SandboxId, _attachment: Attachment | None, /) -> None:
        """See `polypod.plugin.network.Network.detach`; the leases say all that is needed."""
        held = self._leases.held(sandbox_id)
        if not held.addresses:
            return
        await self._run(self._disconnect, link_name(sandbox_id), held)
        self._leases.give_back(sandbox_id)

    async def attached(self) -> Sequence[SandboxId]:
        """See `polypod.plugin.network.Network.attached`."""
        return self._leases.sandboxes()

    async def configure(self, pod_cidrs: Sequence[str], /) -> None:
        """Take the node's pod CIDRs as subnets, unless configuration names its own."""
        wanted = [item for item in pod_cidrs if item]
        if not wanted:
            return
        options = {**self._context.options, "subnets": wanted}
        parsed = parse(options, self._context.root)
        if self._configured or parsed.subnets == self._options.subnets:
            _log.info("pod CIDRs %s: network.subnets stays %s", wanted, self._options.subnets)
            return
        if self._leases.sandboxes():
            msg = f"pod CIDRs {wanted}: pods still hold addresses of {self._options.subnets}"
            raise InvalidArgument(msg)
        self._leases.close()
        self._options = parsed
        self._leases = Leases(self._context.root / "leases.sqlite", parsed.subnets)
        self._firewall = self._make_firewall()
        await self._run(self._set_up)

    async def status(self) -> NetworkStatus:
        """See `polypod.plugin.network.Network.status`."""
        try:
            up = await self._run(self._look)
        except OSError as error:
            return NetworkStatus(ready=False, reason="BridgeMissing", message=str(error))
        if not up:
            message = (
                f"bridge {self._options.bridge} is down: ip link set {self._options.bridge} up"
            )
            return NetworkStatus(ready=False, reason="BridgeDown", message=message)
        return NetworkStatus(ready=True)

    async def close(self) -> None:
        """See `polypod.plugin.network.Network.close`."""
        self._threads.shutdown(wait=True)
        for sock in self._sockets:
            sock.close()
        self._leases.close()

    async def destroy(self) -> None:
        """Take the bridge and the tables off the host (`polypod down`)."""
        await self._run(self._tear_down)

    # What follows runs on the network's own threads.

    async def _run(self, function: Callable[..., _T], *arguments: object) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, function, *arguments)

    def _route(self) -> socket.socket:
        return self._socket("route", transport.NETLINK_ROUTE)

    def _netfilter(self) -> socket.socket:
        return self._socket("netfilter", transport.NETLINK_NETFILTER)

    def _socket(self, name: str, family: int) -> socket.socket:
        found: socket.socket | None = getattr(self._local, name, None)
        if found is None:
            found = transport.open_socket(family)
            setattr(self._local, name, found)
            self._sockets.append(found)
        return found

    def _make_firewall(self) -> Firewall:
        options = self._options
        return Firewall(
            options.table,
            options.bridge,
            [gateway(subnet).ip for subnet in options.subnets],
            masquerade=options.masquerade,
            netfilter=self._netfilter,
        )

    def _look(self) -> bool:
        """Tell whether the bridge is up, and mend the tables if somebody flushed them."""
        if self._firewall.missing():
            _log.warning("nftables table %s is gone: it is made again", self._options.table)
            self._firewall.rebuild(self._leases.all())
        return links.is_up(self._route(), self._options.bridge)

    def _set_up(self) -> None:
        options = self._options
        sock = self._route()
        transport.send_batch(sock, [links.bridge(options.bridge, options.mtu)])
        self._bridge_index = links.index_of(sock, options.bridge)
        gateways = [gateway(subnet) for subnet in options.subnets]
        transport.send_batch(sock, [links.address(self._bridge_index, item) for item in gateways])
        for subnet in options.subnets:
            _enable_forwarding(subnet.version)
        self._firewall.rebuild(self._leases.all())

    def _connect(self, request: AttachRequest, link: str, lease: Lease) -> None:
        pair = [self._pair(request, link)]
        if lease.ports:
            pair.append(links.hairpin(link))
        try:
            transport.send_batch(self._route(), pair)
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.EINVAL) or self._bridge_exists():
                raise
            # Somebody deleted the bridge: make it again, then once more.
            self._set_up()
            pair[0] = self._pair(request, link)
            transport.send_batch(self._route(), pair)
        self._configure_pod(request, lease.addresses)
        try:
            self._firewall.add(lease)
        except FileNotFoundError:
            # Somebody flushed the ruleset. The lease is in the book, so this adds it, too.
            self._firewall.rebuild(self._leases.all())

    def _pair(self, request: AttachRequest, link: str) -> transport.Request:
        return links.veth(
            link,
            bridge_index=self._bridge_index,
            namespace_fd=request.namespace,
            mtu=self._options.mtu,
            what=f"sandbox {request.sandbox_id[:13]}",
        )

    def _bridge_exists(self) -> bool:
        try:
            return links.index_of(self._route(), self._options.bridge) == self._bridge_index
        except OSError:
            return False

    def _configure_pod(self, request: AttachRequest, addresses: Sequence[Address]) -> None:
        options = self._options
        inside = [
            _interface(item, subnet)
            for item, subnet in zip(addresses, options.subnets, strict=True)
        ]
        gateways = [gateway(subnet) for subnet in options.subnets]
        with socket.socket(fileno=os.dup(request.netlink)) as sock:
            transport.prepare(sock)
            try:
                transport.send_batch(sock, links.pod_requests(inside, gateways))
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise
                # Not a fresh namespace: the interface has another index than the one we expect.
                index = links.index_of(sock, links.POD_INTERFACE)
                transport.send_batch(sock, links.pod_requests(inside, gateways, index))

    def _undo_connect(self, link: str, lease: Lease) -> None:
        failures: list[OSError] = []
        _try(failures, lambda: transport.send_batch(self._route(), [links.delete(link)]))
        self._disconnect(link, lease)
        if failures:
            msg = f"network of {link}: {failures[0]}"
            raise BackendError(msg) from failures[0]

    def _disconnect(self, link: str, lease: Lease) -> None:
        failures: list[OSError] = []
        _try(failures, self._firewall.remove, lease.addresses, lease.ports)
        if failures:
            msg = f"network of {link}: {failures[0]}"
            raise BackendError(msg) from failures[0]

    def _tear_down(self) -> None:
        transport.send_batch(self._route(), [links.delete(self._options.bridge)])
        self._firewall.destroy()


def link_name(sandbox_id: SandboxId) -> str:
    """Return the host end's name: made from the id, so that it is found without a record."""
    return f"pv{sandbox_id[:12]}"


def gateway(subnet: Network) -> Interface:
    """Return the bridge's own address: the first of the subnet."""
    return ip_interface(f"{subnet[1]}/{subnet.prefixlen}")


def _interface(address: Address, subnet: Network) -> Interface:
    return ip_interface(f"{address}/{subnet.prefixlen}")


def _enable_forwarding(version: int) -> None:
    path = _FORWARDING[version]
    try:
        if path.read_text().strip() == "0":
            path.write_text("1")
    except OSError as error:
        _log.warning("cannot enable IPv%s forwarding: %s", version, error)


def _try(failures: list[OSError], function: Callable[..., None], *arguments: object) -> None:
    """Go on after a failed step of a clean-up, and keep the failure."""
    try:
        function(*arguments)
    except OSError as error:
        failures.append(error)


async def open_bridge(context: NetworkContext) -> BridgeNetwork:
    """Open the network; the descriptor's ``open``."""
    return await BridgeNetwork(context).open()


__all__ = ["BridgeNetwork", "BridgeOptions", "gateway", "link_name", "open_bridge"]
