"""Dispositions of the two signals that the C library keeps for itself and will not let anybody change.

Spec:
    man rt_sigaction(2), nptl(7). glibc's posix_spawn(3) leaves them ignored in what it starts if they had a
    handler before, and they have one in a program with threads that cancels some or changes its user.
    What was started so hands it on to everything that it executes, a container's program too.
"""

from __future__ import annotations

import os

from polypod.supervisor.kernel.call import INT, LONG, POINTER, SIZE, TEXT, checked, function

_SYS_RT_SIGACTION = {"x86_64": 13, "aarch64": 134}[os.uname().machine]
RESERVED = (32, 33)
"""SIGCANCEL and SIGSETXID: the first two of the kernel's real-time signals."""
_DEFAULT = bytes(64)
"""A ``struct sigaction`` and more: a handler of 0 is SIG_DFL, the rest means nothing with it."""
_MASK_BYTES = 8

_rt_sigaction = function("syscall", LONG, INT, TEXT, POINTER, SIZE)


def default_reserved() -> None:
    """Give them their default disposition, in this process and in whatever it executes from now on."""
    for number in RESERVED:
        result = _rt_sigaction(_SYS_RT_SIGACTION, number, _DEFAULT, None, _MASK_BYTES)
        checked(result, f"rt_sigaction {number}")
