"""Results of ADD in their two forms: what a pod was given, whatever version its network speaks.

Spec:
    containernetworking/cni SPEC.md, section 5 (Result types); the 0.2.0 form has ``ip4`` and ``ip6``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_interface


def addresses(result: Mapping[str, object], interface: str) -> tuple[str, ...]:
    """Return the addresses of a pod's interface without prefix lengths, one of each family.

    CRI reports one primary address and others, and a kubelet reads the first of each family; IPv4
    or IPv6 first, as the plugin has it.

    Raises:
        ValueError: the result is malformed.
    """
    found: dict[int, str] = {}
    for text in _texts(result, interface):
        ip = ip_interface(text).ip
        found.setdefault(ip.version, str(ip))
    return tuple(found.values())


def _texts(result: Mapping[str, object], interface: str) -> Iterator[str]:
    for key in ("ip4", "ip6"):
        old = result.get(key)
        if isinstance(old, Mapping):
            yield str(old.get("ip", ""))
    listed = result.get("ips") or []
    interfaces = result.get("interfaces") or []
    if not isinstance(listed, list) or not isinstance(interfaces, list):
        msg = "ips and interfaces must be lists"
        raise ValueError(msg)
    for each in listed:
        if not isinstance(each, Mapping):
            msg = f"ips has {each!r}: not an object"
            raise ValueError(msg)
        if _is_the_pods(each.get("interface"), interfaces, interface):
            yield str(each.get("address", ""))


def _is_the_pods(index: object, interfaces: list[object], name: str) -> bool:
    """Tell whether an address is that of the pod's interface: one without an index is."""
    if index is None:
        return True
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(interfaces):
        msg = f"an address is of interface {index!r}, of {len(interfaces)}"
        raise ValueError(msg)
    link = interfaces[index]
    return isinstance(link, Mapping) and bool(link.get("sandbox")) and link.get("name") == name
