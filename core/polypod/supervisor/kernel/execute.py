"""execve(2) with everything prepared: after a seccomp filter nothing else may be asked of the kernel."""

from __future__ import annotations

import ctypes

from polypod.supervisor.kernel.call import POINTER, TEXT, function

_execve = function("execve", TEXT, POINTER, POINTER)


class Vectors:
    """Arguments and environment as the kernel wants them."""

    __slots__ = ("_argv", "_argv_at", "_envp", "_envp_at")

    def __init__(self, args: list[bytes], env: list[bytes]) -> None:
        self._argv = (ctypes.c_char_p * (len(args) + 1))(*args, None)
        self._envp = (ctypes.c_char_p * (len(env) + 1))(*env, None)
        self._argv_at = ctypes.addressof(self._argv)
        self._envp_at = ctypes.addressof(self._envp)

    def execute(self, path: bytes) -> int:
        """Execute a file; returns only if that failed: the errno."""
        _execve(path, self._argv_at, self._envp_at)
        return ctypes.get_errno()
