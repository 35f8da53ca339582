"""Processes: clone3, pidfds, subreaper, dumpable.

Spec:
    linux/sched.h, linux/pidfd.h, linux/prctl.h; man clone3(2), pidfd_open(2), prctl(2).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

# asm-generic/unistd.h: the same numbers on every architecture that polypod runs on.
_SYS_PIDFD_SEND_SIGNAL = 424
_SYS_PIDFD_OPEN = 434
_SYS_CLONE3 = 435

CLONE_PIDFD = 0x1000
CLONE_PARENT = 0x8000
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36

# _IOWR(0xFF, 11, struct pidfd_info), its first published size.
_PIDFD_GET_INFO = (3 << 30) | (64 << 16) | (0xFF << 8) | 11
_PIDFD_INFO_EXIT = 1 << 3
_INFO = struct.Struct("=QQ11Ii")

_CLONE_ARGS = struct.Struct("=11Q")

# PyDLL keeps the interpreter lock: a child of clone3 must own it to go on in Python.
_locked = ctypes.PyDLL(None, use_errno=True)
_locked.syscall.restype = ctypes.c_long
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.prctl.argtypes = (
    ctypes.c_int,
    ctypes.c_ulong,
    ctypes.c_ulong,
    ctypes.c_ulong,
    ctypes.c_ulong,
)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def clone3(flags: int, exit_signal: int = 0) -> tuple[int, int]:
    """Clone this single-threaded process; return (pid, pidfd), in the child (0, -1).

    The child shares nothing but descriptors and must end in execve or ``os._exit``. With
    ``CLONE_PARENT`` the exit signal must be 0: the child inherits ours.
    """
    pidfd = ctypes.c_int(-1)
    arguments = ctypes.create_string_buffer(
        _CLONE_ARGS.pack(
            flags | CLONE_PIDFD, ctypes.addressof(pidfd), 0, 0, exit_signal, 0, 0, 0, 0, 0, 0
        )
    )
    pid = _locked.syscall(ctypes.c_long(_SYS_CLONE3), arguments, ctypes.c_size_t(_CLONE_ARGS.size))
    _check(pid, "clone3")
    return (0, -1) if pid == 0 else (pid, pidfd.value)


def pidfd_open(pid: int) -> int:
    """Return a descriptor of a process."""
    return _check(
        _libc.syscall(ctypes.c_long(_SYS_PIDFD_OPEN), ctypes.c_int(pid), ctypes.c_uint(0)),
        f"pidfd_open {pid}",
    )


def pidfd_send_signal(pidfd: int, signal: int) -> None:
    """Send a signal to exactly that process, never to another of the same pid."""
    result = _libc.syscall(
        ctypes.c_long(_SYS_PIDFD_SEND_SIGNAL),
        ctypes.c_int(pidfd),
        ctypes.c_int(signal),
        None,
        ctypes.c_uint(0),
    )
    _check(result, f"pidfd_send_signal {signal}")


def exit_status(pidfd: int) -> int | None:
    """Return the wait status of a process that somebody has reaped; None where it is not known.

    Kernels before 6.15 do not keep it.
    """
    buffer = bytearray(_INFO.pack(_PIDFD_INFO_EXIT, 0, *([0] * 11), 0))
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None
    fields = _INFO.unpack(buffer)
    return fields[-1] if fields[0] & _PIDFD_INFO_EXIT else None


def set_child_subreaper() -> None:
    """Become the parent of orphaned descendants."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl PR_SET_CHILD_SUBREAPER")


def set_not_dumpable() -> None:
    """Keep others in the same pid namespace from reading our memory and descriptors."""
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl PR_SET_DUMPABLE")


def set_name(name: str) -> None:
    """Set the name that ``ps`` shows; at most 15 bytes count."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _check(_libc.prctl(_PR_SET_NAME, ctypes.addressof(buffer), 0, 0, 0), "prctl PR_SET_NAME")
