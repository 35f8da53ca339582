"""Kernel parameters of a pod: only those that belong to a namespace which the pod has (E9).

They are written by our own code through a procfs of the pod, never by a helper's command line. A name
or value that could mean something else anywhere is refused all the same.

Spec:
    kubernetes/cri-api api.proto, LinuxPodSandboxConfig.sysctls; Documentation/admin-guide/sysctl/;
    CVE-2022-0811 and CVE-2022-0532.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final

from polypod.plugin.errors import InvalidArgument

_IPC: Final = frozenset(
    f"kernel.{name}"
    for name in (
        "msgmax",
        "msgmnb",
        "msgmni",
        "msg_next_id",
        "sem",
        "sem_next_id",
        "shm_next_id",
        "shm_rmid_forced",
        "shmall",
        "shmmax",
        "shmmni",
    )
)
_IPC_TREE: Final = "fs.mqueue."
_NETWORK_TREE: Final = "net."
# An interface's name may hold dots, which is what the form with slashes is for.
_NAME: Final = re.compile(r"[a-z0-9][A-Za-z0-9_-]*([./][A-Za-z0-9][A-Za-z0-9_-]*)+")
_VALUE: Final = re.compile(r"[A-Za-z0-9_.,:/-]+( [A-Za-z0-9_.,:/-]+)*")
_MAX_NAME: Final = 253
_MAX_VALUE: Final = 1024
_SWAPPED: Final = str.maketrans("./", "/.")


def checked_sysctls(
    values: Mapping[str, str],
    *,
    host_network: bool,
    host_ipc: bool,
    extra_allowed: frozenset[str] = frozenset(),
) -> dict[str, str]:
    """Return what may be set, names in the form with dots (``net.ipv4.conf.eth0/7.forwarding``).

    Args:
        values: name → value as requested; names in either form of sysctl(8).
        host_network: the pod uses the host's network namespace.
        host_ipc: the pod uses the host's IPC namespace.
        extra_allowed: further names, in the form with dots, that the handler's configuration vouches for.

    Raises:
        InvalidArgument: a name or value is malformed, a parameter belongs to no namespace or to one that
            the pod shares with the host, or two names mean the same.
    """
    found: dict[str, str] = {}
    for given, value in values.items():
        name = _normalised(given)
        _check_scope(name, host_network=host_network, host_ipc=host_ipc, extra=extra_allowed)
        if len(value) > _MAX_VALUE or not _VALUE.fullmatch(value):
            raise InvalidArgument(
                f"sysctls {name}: value {value[:80]!r} may hold letters, digits, '_.,:/-' and single "
                "spaces between words"
            )
        if name in found:
            raise InvalidArgument(f"sysctls {given!r}: {name} is given twice")
        found[name] = value
    return found


def of_namespaces(values: Mapping[str, str], kinds: Collection[str]) -> dict[str, str]:
    """Return those that belong to namespaces of these kinds; elsewhere they would change somebody else's.

    Args:
        values: as `checked_sysctls` returned them.
        kinds: as in runtime-spec (``network``, ``ipc`` …).
    """
    return {name: value for name, value in values.items() if _kind(name) in kinds}


def _kind(name: str) -> str:
    if name.startswith(_NETWORK_TREE):
        return "network"
    # What a configuration vouches for beside these is a name of the pod's.
    return "ipc" if name in _IPC or name.startswith(_IPC_TREE) else "uts"


def _normalised(given: str) -> str:
    """Return a name with dots between directories: the separator that comes first tells the form."""
    if len(given) > _MAX_NAME or not _NAME.fullmatch(given):
        raise InvalidArgument(f"sysctls {given[:80]!r}: is no name of a kernel parameter")
    first = next(char for char in given if char in "./")
    return given if first == "." else given.translate(_SWAPPED)


def _check_scope(name: str, *, host_network: bool, host_ipc: bool, extra: frozenset[str]) -> None:
    if name in extra:
        return
    if name.startswith(_NETWORK_TREE):
        shared, namespace = host_network, "network"
    elif name in _IPC or name.startswith(_IPC_TREE):
        shared, namespace = host_ipc, "IPC"
    else:
        raise InvalidArgument(
            f"sysctls {name}: belongs to no namespace of a pod, it would change the host; allowed are "
            "net.*, fs.mqueue.*, kernel.shm*, kernel.msg* and kernel.sem*"
        )
    if shared:
        raise InvalidArgument(
            f"sysctls {name}: the pod uses the host's {namespace} namespace, it would change the host"
        )
