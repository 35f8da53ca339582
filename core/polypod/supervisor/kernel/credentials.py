"""Users, capabilities, no_new_privs, keyrings: what a process may do.

Spec:
    linux/capability.h, linux/prctl.h, linux/keyctl.h; man capabilities(7), prctl(2), keyctl(2).
"""

from __future__ import annotations

import ctypes
import os

from polypod.supervisor.kernel.call import INT, LONG, POINTER, checked, function

PR_SET_KEEPCAPS = 8
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4
CAP_SYS_PTRACE = 19
CAP_SYS_ADMIN = 21
_CAPABILITY_VERSION_3 = 0x20080522
_KEYCTL_JOIN_SESSION_KEYRING = 1
_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219}[os.uname().machine]

_prctl = function("prctl", INT, *(ctypes.c_ulong,) * 4)
_capget = function("capget", POINTER, POINTER)
_capset = function("capset", POINTER, POINTER)
_keyctl = function("syscall", LONG, INT, POINTER)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def prctl(option: int, first: int = 0, second: int = 0) -> int:
    """Call prctl with two arguments."""
    return checked(_prctl(option, first, second, 0, 0), f"prctl {option}")


def capget() -> tuple[int, int, int]:
    """Return our (effective, permitted, inheritable) sets as masks."""
    header = _Header(_CAPABILITY_VERSION_3, 0)
    data = (_Data * 2)()
    checked(_capget(ctypes.addressof(header), ctypes.addressof(data)), "capget")
    low, high = data
    return (
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def become_root() -> None:
    """Become user and group 0 of a user namespace that we have just entered; its rights are ours already."""
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set our sets."""
    header = _Header(_CAPABILITY_VERSION_3, 0)
    data = (_Data * 2)()
    for index, half in enumerate(data):
        shift = 32 * index
        half.effective = effective >> shift & 0xFFFFFFFF
        half.permitted = permitted >> shift & 0xFFFFFFFF
        half.inheritable = inheritable >> shift & 0xFFFFFFFF
    checked(_capset(ctypes.addressof(header), ctypes.addressof(data)), "capset")


def join_new_session_keyring() -> None:
    """Leave the session keyring that we inherited for a new, nameless one."""
    checked(_keyctl(_SYS_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING, None), "keyctl")
