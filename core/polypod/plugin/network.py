"""The contract of a network: give a sandbox addresses, take them back, whatever fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from polypod.plugin.ids import SandboxId
from polypod.plugin.requests import PodMetadata, PortMapping


@dataclass(frozen=True, slots=True)
class NetworkContext:
    """What an opened network is given."""

    options: Mapping[str, object]
    """``[network]`` of the configuration: ``subnets``, ``bridge``, ``cni.conf_dir`` …"""
    root: Path
    """Own directory that survives a reboot (leases)."""
    state: Path


@dataclass(frozen=True, slots=True)
class NetworkType:
    """What a plugin offers."""

    name: str
    summary: str
    open: Callable[[NetworkContext], Awaitable[Network]]
    needs_path: bool = False
    """It takes the namespace as a path (CNI); core binds it at ``/run/netns/polypod-ID`` then."""
    unusable: str = ""


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """One sandbox to connect."""

    sandbox_id: SandboxId
    metadata: PodMetadata
    namespace: int
    """nsfs descriptor of the sandbox's network namespace; the caller's."""
    netlink: int
    """NETLINK_ROUTE socket created inside it; the caller's, free for use during the call."""
    path: Path | None = None
    """Only if the type `needs_path`."""
    port_mappings: tuple[PortMapping, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a sandbox was given; core stores it and hands it back at detach."""

    ips: tuple[str, ...]
    """First the primary one; CRI reports it as ``ip``, the others as ``additional_ips``."""
    result: Mapping[str, object] = field(default_factory=dict)
    """JSON values; the network's own notes (a CNI result, an interface's name)."""


@dataclass(frozen=True, slots=True)
class NetworkStatus:
    """CRI's NetworkReady condition."""

    ready: bool
    reason: str = ""
    message: str = ""


class Network(Protocol):
    """One way to connect sandboxes."""

    async def attach(self, request: AttachRequest, /) -> Attachment:
        """Connect a sandbox. On failure, and on cancellation, no address and no interface stays taken.

        Raises:
            ResourceExhausted: no address is left.
        """
        ...

    async def detach(self, sandbox_id: SandboxId, attachment: Attachment | None, /) -> None:
        """Take everything back; works when the namespace is gone. Idempotent; unknown ids succeed.

        The interface itself dies with the namespace: nothing here waits for the kernel to delete it.
        """
        ...

    async def attached(self) -> Sequence[SandboxId]:
        """Return the sandboxes that hold a lease: recovery detaches those without a record."""
        ...

    async def configure(self, pod_cidrs: Sequence[str], /) -> None:
        """UpdateRuntimeConfig: the node's pod CIDRs. May be ignored where subnets are configured."""
        ...

    async def status(self) -> NetworkStatus:
        """Return whether pods can be connected now."""
        ...

    async def close(self) -> None:
        """Let go of sockets; connected sandboxes stay connected."""
        ...
