"""seccomp(2): a filter for our own system calls.

Spec:
    linux/seccomp.h, linux/filter.h; man seccomp(2).
"""

from __future__ import annotations

import ctypes
import os

from polypod.supervisor.kernel.call import LONG, POINTER, UINT, checked, function

_SECCOMP_SET_MODE_FILTER = 1
_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}[os.uname().machine]
INSTRUCTION_BYTES = 8
"""Size of struct sock_filter."""

_seccomp = function("syscall", LONG, UINT, UINT, POINTER)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def load_filter(program: bytes, flags: int) -> None:
    """Load an array of struct sock_filter; needs no_new_privs or CAP_SYS_ADMIN."""
    buffer = ctypes.create_string_buffer(program, len(program))
    wrapped = _Program(len(program) // INSTRUCTION_BYTES, ctypes.addressof(buffer))
    result = _seccomp(_SYS_SECCOMP, _SECCOMP_SET_MODE_FILTER, flags, ctypes.addressof(wrapped))
    checked(result, "seccomp")
