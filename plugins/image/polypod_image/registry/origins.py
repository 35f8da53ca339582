"""Who a URL belongs to, and which other addresses it may send us to.

Spec:
    Reliability I7 (credentials to their origin alone), I8 (realms and redirects: no downgrade, no way to the
    host's own services).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from polypod.plugin import override
from polypod.plugin.errors import InvalidArgument

_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port."""

    scheme: str
    host: str
    port: int

    @override
    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if _PORTS[self.scheme] == self.port else f":{self.port}"
        return f"{self.scheme}://{host}{port}"

    @property
    def authority(self) -> str:
        """Return host and port as references write them."""
        return str(self).partition("://")[2]


def origin_of(url: str) -> Origin:
    """Return whom a URL belongs to.

    Raises:
        InvalidArgument: neither http nor https, without host, or a name and password in it.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidArgument(f"{url[:100]!r} is no URL: {error}") from None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise InvalidArgument(f"{url[:100]!r} is no URL of http or https with a host")
    if "@" in parts.netloc:
        raise InvalidArgument("a URL of a registry must not hold a user name")
    return Origin(parts.scheme, parts.hostname.lower(), port or _PORTS[parts.scheme])


def is_loopback(host: str) -> bool:
    """Return whether a host is written as this machine: ``localhost`` or a loopback address."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = address_of(host)
    return address is not None and address.is_loopback


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that a host is written as; IPv4 within IPv6 counts as IPv4."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def is_own(host: str) -> bool:
    """Return whether an address leads to this host or what only this host sees (169.254.169.254)."""
    address = address_of(host)
    if address is None:
        return is_loopback(host)
    return (
        address.is_loopback
        or address.is_link_local
        or address.is_unspecified
        or address.is_multicast
    )


def why_not(target: Origin, base: Origin, *, what: str) -> str:
    """Return why a registry may not send us to a place; ``""`` if it may.

    Args:
        target: where it sends us.
        base: the endpoint that does so.
        what: ``redirect`` or ``token realm``, for the text.
    """
    if target.scheme == "http" and base.scheme == "https":
        return f"{what} from https to http ({target}) is not followed"
    if target.host == base.host or not is_own(target.host):
        return ""
    if is_loopback(base.host) and is_loopback(target.host):
        return ""
    return f"{what} to {target} is not followed: it leads to this host itself"
