"""A network that connects nothing: addresses are handed out and taken back, no link is made."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from polypod.plugin.errors import InvalidArgument, ResourceExhausted
from polypod.plugin.ids import SandboxId
from polypod.plugin.network import (
    Attachment,
    AttachRequest,
    Network,
    NetworkContext,
    NetworkStatus,
    NetworkType,
)
from polypod.testing.faults import Faults

Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network
DEFAULT_SUBNETS = ("192.0.2.0/24", "2001:db8::/120")
"""Documentation addresses (RFC 5737, RFC 3849): nobody takes them for reachable."""


class MemoryNetwork:
    """Implements `polypod.plugin.network.Network`. Leases are noted below ``root`` if there is one."""

    def __init__(
        self,
        subnets: Sequence[str] = DEFAULT_SUBNETS,
        *,
        root: Path | None = None,
        faults: Faults | None = None,
    ) -> None:
        self.faults = faults or Faults()
        self.leases: dict[SandboxId, tuple[str, ...]] = {}
        self._subnets = _parsed(subnets)
        self._note = root / "leases.json" if root is not None else None
        if self._note is not None and self._note.exists():
            noted: Mapping[str, list[str]] = json.loads(self._note.read_text())
            self.leases = {SandboxId(name): tuple(ips) for name, ips in noted.items()}

    async def attach(self, request: AttachRequest, /) -> Attachment:
        """Lease one address of each subnet; a second call for a sandbox returns the same."""
        await self.faults.hit("attach")
        sandbox_id = request.sandbox_id
        if sandbox_id not in self.leases:
            self.leases[sandbox_id] = tuple(self._free(subnet) for subnet in self._subnets)
            self._write_note()
        return Attachment(self.leases[sandbox_id], {"interface": "eth0"})

    async def detach(self, sandbox_id: SandboxId, attachment: Attachment | None, /) -> None:
        """Take the addresses back."""
        del attachment
        await self.faults.hit("detach")
        if self.leases.pop(sandbox_id, None) is not None:
            self._write_note()

    async def attached(self) -> Sequence[SandboxId]:
        """Return who holds a lease."""
        await self.faults.hit("attached")
        return list(self.leases)

    async def configure(self, pod_cidrs: Sequence[str], /) -> None:
        """Use other subnets from the next attach on."""
        if pod_cidrs:
            self._subnets = _parsed(pod_cidrs)

    async def status(self) -> NetworkStatus:
        """Return that it is ready, unless a fault says otherwise."""
        try:
            await self.faults.hit("network_status")
        except Exception as error:  # noqa: BLE001 - whatever was injected is the reason
            return NetworkStatus(ready=False, reason="Injected", message=str(error))
        return NetworkStatus(ready=True)

    async def close(self) -> None:
        """There are no sockets to let go of."""
        return

    def _free(self, subnet: Subnet) -> str:
        taken = {ip for ips in self.leases.values() for ip in ips}
        for host in subnet.hosts():
            # The first address is the gateway's by custom.
            if str(host) not in taken and host != subnet[1]:
                return str(host)
        raise ResourceExhausted(
            f"no address is left in {subnet}: remove sandboxes or configure a larger subnet"
        )

    def _write_note(self) -> None:
        if self._note is not None:
            fresh = self._note.with_name(".leases.json")
            fresh.write_text(json.dumps(self.leases))
            fresh.replace(self._note)


def _parsed(subnets: Sequence[str]) -> tuple[Subnet, ...]:
    try:
        return tuple(ipaddress.ip_network(each) for each in subnets)
    except ValueError as error:
        raise InvalidArgument(f"network.subnets: {error}") from error


async def _open(context: NetworkContext) -> Network:
    subnets = context.options.get("subnets", DEFAULT_SUBNETS)
    if not isinstance(subnets, (list, tuple)):
        raise InvalidArgument(f"network.subnets: {subnets!r} is not a list")
    return MemoryNetwork([str(each) for each in subnets], root=context.root)


MEMORY_NETWORK = NetworkType(
    name="memory",
    summary="addresses without links, for the simulator",
    open=_open,
)
