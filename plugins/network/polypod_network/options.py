"""The ``[network]`` table of the configuration, checked."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from polypod.plugin.errors import InvalidArgument
from polypod_network.links import Network, parse_network

DEFAULT_SUBNETS = ("10.231.0.0/16", "fd00:10:231::/64")
_INTERFACE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
_KEYS = {"subnets", "bridge", "mtu", "masquerade"}


@dataclass(frozen=True, slots=True)
class BridgeOptions:
    """How the bridge network is set up."""

    subnets: tuple[Network, ...]
    bridge: str
    mtu: int
    """Bytes; 0 leaves the kernel's."""
    masquerade: bool

    @property
    def table(self) -> str:
        """The name of the nftables tables."""
        return f"polypod-{self.bridge}"


def parse(options: Mapping[str, object], root: Path) -> BridgeOptions:
    """Check the table.

    Args:
        options: ``subnets`` (list of CIDRs, at most one per family), ``bridge`` (interface name),
            ``mtu``, ``masquerade``; other networks' tables (``cni``) are left alone.
        root: the bridge's default name is made from it, so that two servers on a host differ.

    Raises:
        InvalidArgument: naming the key and the value.
    """
    unknown = {
        key for key, value in options.items() if key not in _KEYS and not isinstance(value, Mapping)
    } - {"type"}
    if unknown:
        msg = f"network.{sorted(unknown)[0]}: unknown key; the bridge knows {sorted(_KEYS)}"
        raise InvalidArgument(msg)
    return BridgeOptions(
        subnets=_subnets(options.get("subnets") or DEFAULT_SUBNETS),
        bridge=_bridge_name(options.get("bridge") or _default_name(root)),
        mtu=_number(options, "mtu"),
        masquerade=bool(options.get("masquerade", True)),
    )


def _default_name(root: Path) -> str:
    return "pp" + hashlib.sha256(str(root).encode()).hexdigest()[:10]


def _subnets(value: object) -> tuple[Network, ...]:
    if not isinstance(value, (list, tuple)) or not value:
        msg = f"network.subnets: {value!r} is not a list of CIDRs"
        raise InvalidArgument(msg)
    found: list[Network] = []
    for item in value:
        try:
            found.append(parse_network(str(item)))
        except ValueError as error:
            msg = f"network.subnets: {item!r}: {error}"
            raise InvalidArgument(msg) from error
    versions = [item.version for item in found]
    if len(set(versions)) != len(versions):
        msg = "network.subnets: at most one subnet of IPv4 and one of IPv6"
        raise InvalidArgument(msg)
    for item in found:
        if item.num_addresses < 4:
            msg = f"network.subnets: {item} is too small for a gateway and a pod"
            raise InvalidArgument(msg)
    return tuple(found)


def _bridge_name(value: object) -> str:
    if isinstance(value, str) and _INTERFACE_NAME.fullmatch(value):
        return value
    msg = f"network.bridge: {value!r} is not an interface name (15 characters at most)"
    raise InvalidArgument(msg)


def _number(options: Mapping[str, object], key: str) -> int:
    value = options.get(key, 0)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65535:
        return value
    msg = f"network.{key}: {value!r} is not a number from 0 to 65535"
    raise InvalidArgument(msg)
