"""Namespaces: unshare, setns.

Spec:
    man unshare(2), setns(2), namespaces(7).
"""

from __future__ import annotations

import ctypes
import os

from polypod.supervisor.kernel import process

FLAGS = {
    "mount": process.CLONE_NEWNS,
    "cgroup": process.CLONE_NEWCGROUP,
    "uts": process.CLONE_NEWUTS,
    "ipc": process.CLONE_NEWIPC,
    "user": process.CLONE_NEWUSER,
    "pid": process.CLONE_NEWPID,
    "network": process.CLONE_NEWNET,
}
"""Kinds as in runtime-spec → clone flags."""
FILES = {
    "mount": "mnt",
    "cgroup": "cgroup",
    "uts": "uts",
    "ipc": "ipc",
    "user": "user",
    "pid": "pid",
    "network": "net",
}
"""Kinds → names below ``/proc/PID/ns``."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.sethostname.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
_libc.setdomainname.argtypes = (ctypes.c_char_p, ctypes.c_size_t)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave shared namespaces for new ones."""
    _check(_libc.unshare(flags), f"unshare {flags:#x}")


def setns(descriptor: int, flags: int) -> None:
    """Join a namespace by its nsfs descriptor, or several by a pidfd."""
    _check(_libc.setns(descriptor, flags), f"setns {flags:#x}")


def sethostname(name: str) -> None:
    """Set the host name of our uts namespace."""
    raw = os.fsencode(name)
    _check(_libc.sethostname(raw, len(raw)), f"sethostname {name}")


def setdomainname(name: str) -> None:
    """Set the NIS domain name of our uts namespace."""
    raw = os.fsencode(name)
    _check(_libc.setdomainname(raw, len(raw)), f"setdomainname {name}")
