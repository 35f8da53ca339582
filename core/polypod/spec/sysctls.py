"""Sysctls of a pod: only those that belong to a namespace of its own, with values that can do no harm.

Spec:
    kubernetes/cri-api api.proto, LinuxPodSandboxConfig.sysctls; CVE-2022-0811, CVE-2022-0532 (E9).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from polypod.plugin.errors import InvalidArgument

_NAME: Final = re.compile(r"[a-z0-9_]+(?:[./][A-Za-z0-9_\-*]+)+")
_VALUE: Final = re.compile(r"[A-Za-z0-9_.,:\-/ \t]{0,1024}")
_IPC_NAMES: Final = frozenset(
    [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ]
)
_IPC_PREFIX: Final = "fs.mqueue."
_NETWORK_PREFIX: Final = "net."


def checked_sysctls(
    values: Mapping[str, str], *, host_network: bool, host_ipc: bool
) -> dict[str, str]:
    """Return the sysctls of a pod, names with dots between directories.

    Raises:
        InvalidArgument: a name is not namespaced, its namespace is the host's, or a name or value is
            malformed.
    """
    found: dict[str, str] = {}
    for name, value in values.items():
        dotted = _dotted(name)
        _check_namespace(name, dotted, host_network=host_network, host_ipc=host_ipc)
        if not _VALUE.fullmatch(value):
            raise InvalidArgument(
                f"sysctl {name}: value {value[:80]!r} holds characters that no sysctl needs"
            )
        if found.setdefault(dotted, value) != value:
            raise InvalidArgument(f"sysctl {name}: given twice with different values")
    return found


def _dotted(name: str) -> str:
    """Return one spelling: ``net/ipv4/conf/eth0.7/rp_filter`` keeps its inner dot as a slash."""
    if not _NAME.fullmatch(name) or ".." in name or "//" in name:
        raise InvalidArgument(f"sysctl {name[:80]!r}: not a name such as net.core.somaxconn")
    first = re.search(r"[./]", name)
    if first is not None and first[0] == "/":
        return name.translate(str.maketrans("./", "/."))
    return name


def _check_namespace(name: str, dotted: str, *, host_network: bool, host_ipc: bool) -> None:
    if dotted.startswith(_NETWORK_PREFIX):
        if host_network:
            raise InvalidArgument(f"sysctl {name}: the pod is in the host's network namespace")
    elif dotted in _IPC_NAMES or dotted.startswith(_IPC_PREFIX):
        if host_ipc:
            raise InvalidArgument(f"sysctl {name}: the pod is in the host's IPC namespace")
    else:
        raise InvalidArgument(
            f"sysctl {name}: not of a namespace of the pod's own; possible are net.*, fs.mqueue.*, "
            f"{', '.join(sorted(_IPC_NAMES))}"
        )
