"""The files that all containers of a pod share: ``hostname``, ``hosts``, ``resolv.conf``.

Spec:
    kubernetes/cri-api api.proto, PodSandboxConfig.hostname and .dns_config; man resolv.conf(5), hosts(5).
    Nothing that a client sent may begin a line of its own (E18).
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from polypod.plugin.errors import InvalidArgument
from polypod.plugin.requests import DnsConfig, NamespaceMode, SandboxConfig

_HOSTNAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.\-]{0,62}[A-Za-z0-9])?")
_DOMAIN: Final = re.compile(r"[A-Za-z0-9_.\-]{1,253}")
_OPTION: Final = re.compile(r"[A-Za-z0-9_\-]+(:[A-Za-z0-9_.\-]*)?")
_HOSTS: Final = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
fe00::0\tip6-mcastprefix
fe00::1\tip6-allnodes
fe00::2\tip6-allrouters
"""


def sandbox_files(
    config: SandboxConfig, *, node_hostname: str, node_resolv_conf: str, node_hosts: str
) -> dict[str, str]:
    """Return name → text.

    Args:
        config: the sandbox.
        node_hostname: of the node: what a pod on the host's network is called.
        node_resolv_conf: text of the node's file: what a pod without DNS config gets.
        node_hosts: text of the node's file: what a pod on the host's network gets.

    Raises:
        InvalidArgument: a value would break out of its line.
    """
    on_host = config.security.namespaces.network is NamespaceMode.NODE
    hostname = node_hostname if on_host or not config.hostname else _hostname(config.hostname)
    return {
        "hostname": f"{hostname}\n",
        "hosts": node_hosts if on_host and node_hosts else _HOSTS,
        "resolv.conf": _resolv_conf(config.dns, node_resolv_conf),
    }


def _hostname(name: str) -> str:
    if not _HOSTNAME.fullmatch(name):
        raise InvalidArgument(
            f"hostname {name[:80]!r}: letters, digits, '-' and '.', at most 64 of them, were expected"
        )
    return name


def _resolv_conf(dns: DnsConfig | None, node: str) -> str:
    if dns is None or not (dns.servers or dns.searches or dns.options):
        return node
    lines = []
    if dns.searches:
        lines.append(" ".join(["search", *map(_domain, dns.searches)]))
    lines += [f"nameserver {_server(each)}" for each in dns.servers]
    if dns.options:
        lines.append(" ".join(["options", *map(_option, dns.options)]))
    return "\n".join(lines) + "\n"


def _server(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError as error:
        raise InvalidArgument(f"dns_config.servers {text[:80]!r}: not an IP address") from error
    return text


def _domain(text: str) -> str:
    if not _DOMAIN.fullmatch(text):
        raise InvalidArgument(f"dns_config.searches {text[:80]!r}: not a domain")
    return text


def _option(text: str) -> str:
    if not _OPTION.fullmatch(text):
        raise InvalidArgument(f"dns_config.options {text[:80]!r}: such as ndots:5 was expected")
    return text
