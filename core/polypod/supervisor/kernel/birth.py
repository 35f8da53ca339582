"""System calls of a birth behind a seccomp filter: each carries a key in its last argument, which none of them has.

They are such as few programs use, because a filter that looks at an argument has to be run at each call.
All memory is made before the filter is loaded.

Spec:
    asm/unistd_64.h, asm-generic/unistd.h, linux/sched.h, linux/socket.h; man clone(2), capset(2),
    sendmmsg(2), readv(2), ppoll(2), setsid(2), ioctl_tty(2).
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import termios

from polypod.supervisor.kernel.call import checked
from polypod.supervisor.kernel.process import CLONE_PARENT, CLONE_PIDFD

_CLONE, _CAPSET, _SENDMMSG, _READV, _PPOLL, _SETSID, _IOCTL = NUMBERS = {
    "x86_64": (56, 126, 307, 19, 271, 112, 16),
    "aarch64": (220, 91, 269, 65, 73, 157, 29),
}[os.uname().machine]
"""What is let through by the key."""
PID = struct.Struct("=i")
"""What the supervisor is told of the process that goes on; its pidfd comes with it."""
_CAPABILITY_VERSION_3 = 0x20080522
_CAPABILITIES = struct.Struct("=Ii6I")
_HEADER_BYTES = 8
_RIGHTS = struct.Struct("=QiiiI")
"""struct cmsghdr with one descriptor, and its padding."""
_MESSAGE = struct.Struct("@PIPNPNiI4x")
"""struct mmsghdr."""
_RIGHTS_BYTES = 20
_VECTOR = struct.Struct("@PN")
_POLL = struct.Struct("=ihh")

# The interpreter's lock is kept: a child of clone must own it to go on in Python.
_syscall = ctypes.PyDLL(None, use_errno=True).syscall
_syscall.argtypes = (ctypes.c_long, *(ctypes.c_ulong,) * 6)
_syscall.restype = ctypes.c_long


class Birth:
    """The calls of one birth, in the order of its methods."""

    def __init__(self, sock: int, status: int, gate: int, key: int) -> None:
        """Make everything that they take.

        Args:
            sock: on which the supervisor is told.
            status: a pipe that nobody reads any more when the supervisor is gone.
            gate: a pipe from which the go is read.
            key: of the filter, 64 bits.
        """
        self._sock, self._gate, self._key = sock, gate, key
        self._capabilities = ctypes.create_string_buffer(_CAPABILITIES.size)
        self._pidfd = ctypes.c_int(-1)
        self._pid = ctypes.create_string_buffer(PID.size)
        self._said = _buffer(_VECTOR.pack(ctypes.addressof(self._pid), PID.size))
        self._rights = ctypes.create_string_buffer(_RIGHTS.size)
        self._message = _buffer(
            _MESSAGE.pack(
                *(0, 0, ctypes.addressof(self._said), 1),
                *(ctypes.addressof(self._rights), _RIGHTS.size, 0, 0),
            )
        )
        self._go = ctypes.create_string_buffer(1)
        self._heard = _buffer(_VECTOR.pack(ctypes.addressof(self._go), 1))
        self._poll = _buffer(_POLL.pack(status, 0, 0))
        self._now = ctypes.create_string_buffer(16)

    def _call(self, what: str, number: int, *arguments: int) -> int:
        padding = (0,) * (5 - len(arguments))
        return checked(_syscall(number, *arguments, *padding, self._key), what)

    def give_up(self, effective: int, permitted: int, inheritable: int) -> None:
        """Keep these capabilities, as masks, and no others."""
        low, high = 0xFFFFFFFF, 32
        lows = (effective & low, permitted & low, inheritable & low)
        highs = (effective >> high, permitted >> high, inheritable >> high)
        _CAPABILITIES.pack_into(self._capabilities, 0, _CAPABILITY_VERSION_3, 0, *lows, *highs)
        header = ctypes.addressof(self._capabilities)
        self._call("capset", _CAPSET, header, header + _HEADER_BYTES)

    def clone(self) -> int:
        """Clone into the pid namespace that was chosen for children; return the pid, 0 in the child."""
        flags = CLONE_PARENT | CLONE_PIDFD
        return self._call("clone", _CLONE, flags, 0, ctypes.addressof(self._pidfd))

    def tell(self, pid: int) -> None:
        """Send the supervisor pid and pidfd."""
        PID.pack_into(self._pid, 0, pid)
        rights = (_RIGHTS_BYTES, socket.SOL_SOCKET, socket.SCM_RIGHTS, self._pidfd.value, 0)
        _RIGHTS.pack_into(self._rights, 0, *rights)
        self._call("sendmmsg", _SENDMMSG, self._sock, ctypes.addressof(self._message), 1, 0)

    def start_session(self, *, terminal: bool) -> None:
        """Lead a session, in the new process, with stdin as its terminal where it is one."""
        self._call("setsid", _SETSID)
        if terminal:
            self._call("ioctl TIOCSCTTY", _IOCTL, 0, termios.TIOCSCTTY, 0)

    def may_go(self) -> bool:
        """Wait for the go; False if who gave it is gone, and has told that this launch failed."""
        if self._call("readv", _READV, self._gate, ctypes.addressof(self._heard), 1) != 1:
            return False
        # Nobody reads our status any more then.
        polled = ctypes.addressof(self._poll), 1, ctypes.addressof(self._now)
        return self._call("ppoll", _PPOLL, *polled) == 0


def _buffer(content: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(content, len(content))
