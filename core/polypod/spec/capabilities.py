"""Capability sets of a container from the default set, and what the request adds and drops."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from polypod.plugin.oci import CapabilitySets
from polypod.plugin.requests import Capabilities

_log = logging.getLogger(__name__)

# linux/capability.h, in the order of the bits.
ALL_CAPABILITIES: Final[tuple[str, ...]] = tuple(
    f"CAP_{name}"
    for name in [
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "LINUX_IMMUTABLE",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_ADMIN",
        "NET_RAW",
        "IPC_LOCK",
        "IPC_OWNER",
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_CHROOT",
        "SYS_PTRACE",
        "SYS_PACCT",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_NICE",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "MKNOD",
        "LEASE",
        "AUDIT_WRITE",
        "AUDIT_CONTROL",
        "SETFCAP",
        "MAC_OVERRIDE",
        "MAC_ADMIN",
        "SYSLOG",
        "WAKE_ALARM",
        "BLOCK_SUSPEND",
        "AUDIT_READ",
        "PERFMON",
        "BPF",
        "CHECKPOINT_RESTORE",
    ]
)

DEFAULT_CAPABILITIES: Final[frozenset[str]] = frozenset(
    f"CAP_{name}"
    for name in [
        "CHOWN",
        "DAC_OVERRIDE",
        "FSETID",
        "FOWNER",
        "MKNOD",
        "NET_RAW",
        "SETGID",
        "SETUID",
        "SETFCAP",
        "SETPCAP",
        "NET_BIND_SERVICE",
        "SYS_CHROOT",
        "KILL",
        "AUDIT_WRITE",
    ]
)

_EVERYTHING: Final = "ALL"


def capability_sets(
    request: Capabilities, *, privileged: bool, grantable: frozenset[str] | None = None
) -> CapabilitySets:
    """Return the five sets of a container's process.

    ``ALL`` is applied first, additions before drops, so that "add ALL, drop NET_RAW" and "drop ALL, add
    NET_RAW" both mean what they say. The inheritable set is empty (E7) except for ambient capabilities,
    which the kernel keeps only while they are permitted and inheritable.

    Args:
        request: names with or without ``CAP_``, in any case.
        privileged: every capability, whatever else is asked.
        grantable: what this host can grant; the rest is logged and left out (E23). None = everything.

    Spec:
        kubernetes/cri-api api.proto, Capability; runtime-spec config.md, process.capabilities.
    """
    chosen = set(ALL_CAPABILITIES) if privileged else _chosen(request)
    ambient = chosen if _asks_all(request.add_ambient) else _names(request.add_ambient)
    chosen = chosen | ambient
    if grantable is not None:
        _warn("cannot be granted on this host and are left out", chosen - grantable)
        chosen = chosen & grantable
        ambient = ambient & grantable
    whole, inherited = _ordered(chosen), _ordered(ambient)
    return CapabilitySets(
        bounding=whole,
        effective=whole,
        inheritable=inherited,
        permitted=whole,
        ambient=inherited,
    )


def normalise(name: str) -> str:
    """Return a capability's name as the kernel's headers have it."""
    upper = name.strip().upper()
    return upper if upper == _EVERYTHING or upper.startswith("CAP_") else f"CAP_{upper}"


def _chosen(request: Capabilities) -> set[str]:
    added, dropped = _names(request.add), _names(request.drop)
    base = set(DEFAULT_CAPABILITIES)
    if _asks_all(request.add):
        base = set(ALL_CAPABILITIES)
    if _asks_all(request.drop):
        # Additions named one by one survive a drop of everything.
        base = set()
    return (base | added) - dropped


def _asks_all(names: Iterable[str]) -> bool:
    return any(normalise(name) == _EVERYTHING for name in names)


def _names(names: Iterable[str]) -> set[str]:
    wanted = {normalise(name) for name in names} - {_EVERYTHING}
    known = wanted.intersection(ALL_CAPABILITIES)
    _warn("are unknown and left out", wanted - known)
    return known


def _ordered(names: set[str]) -> tuple[str, ...]:
    return tuple(name for name in ALL_CAPABILITIES if name in names)


def _warn(why: str, names: set[str]) -> None:
    if names:
        _log.warning("capabilities %s %s", ", ".join(sorted(names)), why)
