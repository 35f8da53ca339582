"""How a system call is called: types fixed at import, errno turned into OSError."""

from __future__ import annotations

import ctypes
import os

INT = ctypes.c_int
LONG = ctypes.c_long
UINT = ctypes.c_uint
SIZE = ctypes.c_size_t
TEXT = ctypes.c_char_p
POINTER = ctypes.c_void_p

_libc = ctypes.CDLL(None, use_errno=True)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Call(Protocol):
        """A function of the C library; -1 means errno."""

        def __call__(self, *arguments: Any) -> int: ...  # noqa: ANN401 - whatever the types say


def function(name: str, *types: type[Any]) -> Call:
    """Return a function of the C library with fixed argument types.

    Each call makes an object of its own, so that ``syscall`` can be had once per kernel call.
    """
    prototype = ctypes.CFUNCTYPE(LONG if name == "syscall" else INT, *types, use_errno=True)
    return prototype((name, _libc))


def checked(result: int, what: str) -> int:
    """Return what a call returned, or raise its errno; ``what`` names call and argument."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
