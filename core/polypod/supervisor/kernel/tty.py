"""Pseudo terminals.

Spec:
    asm-generic/ioctls.h, linux/major.h; man ioctl_tty(2), pts(4).
"""

from __future__ import annotations

import fcntl
import os
import struct
import termios

_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441

PTMX = os.makedev(5, 2)
"""The multiplexer: opening it makes a pty."""
PEER_MAJORS = range(136, 144)
"""UNIX98_PTY_SLAVE_MAJOR and those after it: the container's side of a pty."""


def unlock_peer(master: int) -> None:
    """Allow the peer to be opened."""
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))


def open_peer(master: int) -> int:
    """Open the peer of a master by descriptor, whatever its path leads to (E4)."""
    fd: int = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    return fd


def set_size(terminal: int, width: int, height: int) -> None:
    """Set the size in characters."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))


def set_controlling(terminal: int) -> None:
    """Make a terminal the one of our session."""
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
