"""seccomp(2): a filter for our own system calls.

Spec:
    linux/seccomp.h, linux/filter.h; man seccomp(2).
"""

from __future__ import annotations

import ctypes
import os
import struct

from polypod.supervisor.kernel.call import LONG, POINTER, UINT, checked, function

_SECCOMP_SET_MODE_FILTER = 1
_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}[os.uname().machine]
INSTRUCTION_BYTES = 8
"""Size of struct sock_filter."""

# linux/filter.h, linux/seccomp.h, linux/audit.h
_INSTRUCTION = struct.Struct("=HBBI")
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER, _ARCHITECTURE, _LAST_ARGUMENT = 0, 4, 56
_ALLOW = 0x7FFF0000
_OURS = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[os.uname().machine]

_seccomp = function("syscall", LONG, UINT, UINT, POINTER)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def with_key(program: bytes, key: int, numbers: tuple[int, ...]) -> bytes:
    """Return a filter that lets some system calls through if their sixth argument is a key.

    Which these are is seen by their number, so that the kernel goes on to allow most others without asking.

    Args:
        program: an array of struct sock_filter.
        key: 64 bits.
        numbers: of system calls that have no sixth argument.
    """
    keyed = 3 + len(numbers)
    rest = keyed + 5
    head = [
        _load(_ARCHITECTURE),
        _jump(1, _OURS, 2, rest),
        _load(_NUMBER),
        *(_jump(at, number, keyed, at + 1) for at, number in enumerate(numbers[:-1], 3)),
        _jump(keyed - 1, numbers[-1], keyed, rest),
        _load(_LAST_ARGUMENT),
        _jump(keyed + 1, key & 0xFFFFFFFF, keyed + 2, rest),
        _load(_LAST_ARGUMENT + 4),
        _jump(keyed + 3, key >> 32, keyed + 4, rest),
        _INSTRUCTION.pack(_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(head) + program


def _load(offset: int) -> bytes:
    return _INSTRUCTION.pack(_LOAD_WORD, 0, 0, offset)


def _jump(at: int, value: int, equal: int, other: int) -> bytes:
    return _INSTRUCTION.pack(_JUMP_IF_EQUAL, equal - at - 1, other - at - 1, value)


def load_filter(program: bytes, flags: int) -> None:
    """Load an array of struct sock_filter; needs no_new_privs or CAP_SYS_ADMIN."""
    buffer = ctypes.create_string_buffer(program, len(program))
    wrapped = _Program(len(program) // INSTRUCTION_BYTES, ctypes.addressof(buffer))
    result = _seccomp(_SYS_SECCOMP, _SECCOMP_SET_MODE_FILTER, flags, ctypes.addressof(wrapped))
    checked(result, "seccomp")
