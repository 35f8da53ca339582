"""The bridge network's tables in the kernel, kept in step with the leases.

What is wrong with the tables is put right by making them anew from the leases: after a restart, and after
somebody flushed the host's ruleset.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable, Iterable, Sequence

from polypod.plugin.errors import FailedPrecondition
from polypod_network import conntrack, nftables, nftmessages, transport
from polypod_network.hostports import HostPort
from polypod_network.leases import Lease
from polypod_network.nftables import Address
from polypod_network.transport import Request

_log = logging.getLogger(__name__)


class Firewall:
    """One table per family. All methods block and run on the network's own threads."""

    def __init__(
        self,
        table: str,
        bridge: str,
        gateways: Sequence[Address],
        *,
        masquerade: bool,
        netfilter: Callable[[], socket.socket],
    ) -> None:
        """Describe it.

        Args:
            table: name of the tables.
            bridge: the interface behind which the pods are.
            gateways: its addresses, one per family.
            masquerade: hide pods behind the host's addresses when they talk to others.
            netfilter: returns this thread's NETLINK_NETFILTER socket.
        """
        self._table = table
        self._bridge = bridge
        self._gateways = tuple(gateways)
        self._masquerade = masquerade
        self._netfilter = netfilter

    def rebuild(self, leases: Iterable[Lease]) -> None:
        """Make the tables anew, each in one transaction, with all pods in them."""
        held = list(leases)
        for gateway in self._gateways:
            requests = nftables.base_ruleset(
                self._table, self._bridge, gateway, masquerade=self._masquerade
            )
            for lease in held:
                for address in lease.addresses:
                    if address.version == gateway.version:
                        requests += nftables.add_pod(self._table, address, lease.ports)
            self._send(requests)

    def add(self, lease: Lease) -> None:
        """Let a pod in, in one transaction.

        Raises:
            FileNotFoundError: a table is gone; `rebuild` is the remedy.
            FailedPrecondition: a host port leads elsewhere already, and no lease knows why.
        """
        requests: list[Request] = []
        for address in lease.addresses:
            requests += nftables.add_pod(self._table, address, lease.ports)
        try:
            self._send(requests)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise FailedPrecondition(
                    f"{error}: nft list table ip {self._table} shows who has it"
                ) from error
            raise
        self._forget_connections(lease.addresses, lease.ports)

    def remove(self, addresses: Iterable[Address], ports: Sequence[HostPort]) -> None:
        """Take a pod out; what is gone already is fine."""
        for address in addresses:
            requests = nftables.delete_pod(self._table, address, ports)
            try:
                self._send(requests)
            except FileNotFoundError:
                # One that is not there undoes them all.
                for each in requests:
                    self._send_if_there(each)
        self._forget_connections(addresses, ports)

    def missing(self) -> bool:
        """Tell whether a table is gone."""
        try:
            for gateway in self._gateways:
                request = nftmessages.get_table(self._table, gateway.version)
                transport.dump(self._netfilter(), request)
        except FileNotFoundError:
            return True
        return False

    def destroy(self) -> None:
        """Delete the tables."""
        for gateway in self._gateways:
            self._send(nftables.delete_table(self._table, gateway.version))

    def _forget_connections(self, addresses: Iterable[Address], ports: Sequence[HostPort]) -> None:
        """End what connection tracking remembers of host ports without connections.

        A client that keeps sending from one UDP port would reach, for as long as it does, what the port led
        to when it began.
        """
        if all(port.protocol == conntrack.TCP for port in ports):
            return
        try:
            conntrack.forget(self._netfilter(), addresses, ports)
        except OSError as error:
            _log.warning("old connections to host ports live on until they expire: %s", error)

    def _send_if_there(self, request: Request) -> None:
        try:
            self._send([request])
        except FileNotFoundError:
            return

    def _send(self, requests: Sequence[Request]) -> None:
        transport.send_batch(self._netfilter(), requests, envelope=True)
