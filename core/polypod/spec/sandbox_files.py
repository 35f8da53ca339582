"""``/etc/hostname``, ``hosts`` and ``resolv.conf`` of a sandbox: texts from what was checked word by word (E18).

The kubelet mounts a ``hosts`` of its own over ours; ours serves other clients.

Spec:
    kubernetes/cri-api api.proto, PodSandboxConfig.hostname and DNSConfig; resolv.conf(5), hosts(5).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Final

from polypod.plugin.errors import InvalidArgument
from polypod.plugin.requests import DnsConfig, NamespaceMode, SandboxConfig

# The kernel keeps 64 bytes (__NEW_UTS_LEN).
_HOSTNAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_SEARCH: Final = re.compile(r"\.|[A-Za-z0-9_]([A-Za-z0-9._-]{0,252})")
_OPTION: Final = re.compile(r"[A-Za-z0-9_-]{1,64}(:[A-Za-z0-9_.-]{1,64})?")
_SCOPE: Final = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_MAX_WORDS: Final = 64
_LOCALHOST: Final = (
    "127.0.0.1\tlocalhost",
    "::1\tlocalhost ip6-localhost ip6-loopback",
    "fe00::0\tip6-localnet",
    "ff00::0\tip6-mcastprefix",
    "ff02::1\tip6-allnodes",
    "ff02::2\tip6-allrouters",
)


def sandbox_files(
    config: SandboxConfig,
    *,
    node_hostname: str,
    node_resolv_conf: str,
    node_hosts: str,
    addresses: Sequence[str] = (),
) -> dict[str, str]:
    """Return the content of each file, by its name below ``/etc``.

    Args:
        config: a sandbox in the host's network keeps the node's name and hosts; an empty DNS
            configuration copies the node's resolv.conf.
        node_hostname: the node's name.
        node_resolv_conf: content of the node's file.
        node_hosts: content of the node's file.
        addresses: the pod's addresses as far as they are known; its name is given to them.

    Raises:
        InvalidArgument: a name, server, search domain or option is malformed.
    """
    on_host = config.security.namespaces.network is NamespaceMode.NODE
    name = sandbox_hostname(config, node_hostname)
    return {
        "hostname": f"{name}\n",
        "hosts": node_hosts if on_host else _hosts(name, addresses),
        "resolv.conf": _resolv_conf(config.dns, node_resolv_conf),
    }


def sandbox_hostname(config: SandboxConfig, node_hostname: str) -> str:
    """Return the host name of a sandbox: the node's in its network, or if none is asked for.

    Raises:
        InvalidArgument: the one asked for is no host name.
    """
    if config.hostname and not _HOSTNAME.fullmatch(config.hostname):
        raise InvalidArgument(
            f"hostname {config.hostname[:80]!r}: must be 1 to 64 letters, digits, '.', '-' or '_', with "
            "a letter or digit first and last"
        )
    on_host = config.security.namespaces.network is NamespaceMode.NODE
    return node_hostname if on_host or not config.hostname else config.hostname


def _hosts(name: str, addresses: Sequence[str]) -> str:
    short = name.partition(".")[0]
    names = name if short == name else f"{name} {short}"
    own = [f"{_address(item, 'address of the pod')}\t{names}" for item in addresses]
    return "".join(f"{line}\n" for line in (*_LOCALHOST, *own))


def _resolv_conf(dns: DnsConfig | None, node: str) -> str:
    if dns is None or not (dns.servers or dns.searches or dns.options):
        return node
    for field, words in (
        ("servers", dns.servers),
        ("searches", dns.searches),
        ("options", dns.options),
    ):
        if len(words) > _MAX_WORDS:
            raise InvalidArgument(f"dns_config.{field}: {len(words)} are more than {_MAX_WORDS}")
    lines = []
    if dns.searches:
        lines.append(
            "search " + " ".join(_word(item, _SEARCH, "searches") for item in dns.searches)
        )
    lines += [f"nameserver {_address(item, 'dns_config.servers')}" for item in dns.servers]
    if dns.options:
        lines.append("options " + " ".join(_word(item, _OPTION, "options") for item in dns.options))
    return "".join(f"{line}\n" for line in lines)


def _word(text: str, pattern: re.Pattern[str], field: str) -> str:
    if not pattern.fullmatch(text):
        raise InvalidArgument(f"dns_config.{field} {text[:80]!r}: is malformed")
    return text


def _address(text: str, field: str) -> str:
    plain, percent, scope = text.partition("%")
    try:
        ipaddress.ip_address(plain)
    except ValueError as error:
        raise InvalidArgument(f"{field} {text[:80]!r}: is no IP address") from error
    if percent and not _SCOPE.fullmatch(scope):
        raise InvalidArgument(f"{field} {text[:80]!r}: the zone is malformed")
    return text
