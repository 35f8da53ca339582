"""Who of the three lives for a state directory: each holds one byte of a file locked.

A record lock ends with its process, however that ends, and is not inherited by what it forks. So
there is never a second keeper, and a new keeper knows of whom it must wait for.

Spec:
    man fcntl(2), F_SETLK, F_GETLK.
"""

from __future__ import annotations

import fcntl
import os
import struct

ROLES = ("keeper", "supervisor", "logger")
_FILE = "lock"
_FLOCK = struct.Struct("@hhqqi")


class Presence:
    """The lock file; closing any descriptor of it would give the lock up, so there is only this one."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def open(cls, state: str) -> Presence:
        """Open, or make, the file of a state directory."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return cls(os.open(os.path.join(state, _FILE), flags, 0o600))

    def take(self, role: str, *, wait: bool) -> bool:
        """Become the one of this role; False if another one lives and we may not wait for its end."""
        how = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
        try:
            fcntl.lockf(self.fd, how, 1, ROLES.index(role))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def holder(self, role: str) -> int:
        """Return the pid of the one that lives, 0 if there is none."""
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, ROLES.index(role), 1, 0)
        kind, _whence, _start, _length, pid = _FLOCK.unpack(
            fcntl.fcntl(self.fd, fcntl.F_GETLK, asked)
        )
        return 0 if kind == fcntl.F_UNLCK else int(pid)
