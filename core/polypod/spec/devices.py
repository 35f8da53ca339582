"""Devices of a container: nodes and the cgroup rules that let it use them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from polypod.plugin.errors import InvalidArgument
from polypod.plugin.oci import DeviceRule, OciDevice
from polypod.spec.paths import container_path

_ACCESS: Final = frozenset("rwm")
_TYPES: Final = ("c", "b", "u", "p")

DEFAULT_DEVICES: Final = tuple(
    OciDevice(f"/dev/{name}", "c", major, minor, 0o666, 0, 0)
    for name, major, minor in (
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    )
)
"""What every container has (runtime-spec config-linux.md, default devices)."""

_DEFAULT_RULES: Final = (
    DeviceRule(allow=False),
    # Making a node is harmless without the right to open it, and CAP_MKNOD is a default.
    DeviceRule(allow=True, type="c", access="m"),
    DeviceRule(allow=True, type="b", access="m"),
    *(DeviceRule(True, "c", device.major, device.minor) for device in DEFAULT_DEVICES),
    DeviceRule(allow=True, type="c", major=5, minor=1),
    DeviceRule(allow=True, type="c", major=5, minor=2),
    # Terminals of any devpts instance.
    DeviceRule(allow=True, type="c", major=136),
)


@dataclass(frozen=True, slots=True)
class HostDevice:
    """A device node of the host as the caller found it, and where the container shall have it.

    A CRI device that is a directory comes as one of these per node below it, links resolved.
    """

    container_path: str
    type: str
    major: int
    minor: int
    file_mode: int = 0o600
    uid: int = 0
    gid: int = 0
    access: str = "rwm"


def device_nodes(
    asked: Iterable[HostDevice], host: Iterable[HostDevice] = ()
) -> tuple[OciDevice, ...]:
    """Return the nodes to make beside the default ones.

    Args:
        asked: those that the request names; they win over ``host`` where paths are equal.
        host: every device of the host, for a privileged container.

    Raises:
        InvalidArgument: a path, type or access is malformed.
    """
    defaults = {device.path for device in DEFAULT_DEVICES}
    nodes = {node.path: node for node in map(_node, host) if node.path not in defaults}
    nodes.update({node.path: node for node in map(_node, asked)})
    return tuple(nodes.values())


def device_rules(asked: Iterable[HostDevice], *, privileged: bool) -> tuple[DeviceRule, ...]:
    """Return the cgroup rules: everything for privileged, else the defaults and what is asked."""
    if privileged:
        return (DeviceRule(allow=True),)
    rules = tuple(
        DeviceRule(True, item.type, item.major, item.minor, device_access(item.access))
        for item in asked
        if item.type in ("b", "c", "u")
    )
    return _DEFAULT_RULES + rules


def device_access(permissions: str) -> str:
    """Return cgroup permissions in the kernel's order.

    Raises:
        InvalidArgument: not a non-empty subset of ``rwm``.
    """
    given = set(permissions)
    if not given or not given <= _ACCESS or len(given) != len(permissions):
        raise InvalidArgument(f"devices.permissions {permissions!r}: must be some of r, w, m")
    return "".join(char for char in "rwm" if char in given)


def _node(device: HostDevice) -> OciDevice:
    if device.type not in _TYPES:
        raise InvalidArgument(f"device {device.container_path}: type {device.type!r} is unknown")
    device_access(device.access)
    path = container_path(device.container_path, "devices.container_path")
    if path == "/":
        raise InvalidArgument("devices.container_path '/': must name a file")
    return OciDevice(
        path,
        device.type,
        device.major,
        device.minor,
        device.file_mode & 0o7777,
        device.uid,
        device.gid,
    )
