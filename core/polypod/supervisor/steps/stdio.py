"""Standard streams and terminals."""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import stat

from polypod.plan import operations
from polypod.supervisor.kernel import mounts, tty
from polypod.supervisor.steps.context import Context


def use_stdio(op: operations.UseStdio, context: Context) -> None:
    """Put sources on 0, 1, 2."""
    for number, source in enumerate((op.stdin, op.stdout, op.stderr)):
        fd = context.source(source) if source else context.null
        os.dup2(fd, number)
        if op.uid > 0 and source:
            # /dev/stdout leads to /proc/self/fd/1: opening it asks for the pipe's owner. A stream
            # whose owner cannot be changed works as it is, it just cannot be opened again.
            with contextlib.suppress(OSError):
                os.fchown(number, op.uid, -1)


def open_terminal(op: operations.OpenTerminal, context: Context) -> None:
    """Open a pty of the container's own devpts; its peer by descriptor, never by name (E4)."""
    master = _open_multiplexer(context)
    tty.unlock_peer(master)
    peer = tty.open_peer(master)
    found = os.fstat(peer)
    if not stat.S_ISCHR(found.st_mode) or os.major(found.st_rdev) not in tty.PEER_MAJORS:
        raise OSError(errno.ENOTTY, "the terminal's peer is not a terminal")
    if op.width and op.height:
        tty.set_size(master, op.width, op.height)
    os.fchown(peer, op.uid, -1)
    if op.bind_console:
        _bind_console(peer, context)
    _send(master, context.source(op.console))
    os.close(master)
    for number in (0, 1, 2):
        os.dup2(peer, number)
    context.has_terminal = True
    if not context.is_born_last:
        tty.set_controlling(peer)
    os.close(peer)


def _open_multiplexer(context: Context) -> int:
    """Look before opening: what a volume has put there may be any device or a pipe."""
    place = context.open_beneath("/dev/pts/ptmx", os.O_PATH | os.O_NOFOLLOW)
    try:
        found = os.fstat(place)
        if not stat.S_ISCHR(found.st_mode) or found.st_rdev != tty.PTMX:
            raise OSError(errno.ENOTTY, "/dev/pts/ptmx is not the terminal multiplexer")
        own = os.readlink("self", dir_fd=context.proc)
        flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
        return os.open(f"{own}/fd/{place}", flags, dir_fd=context.proc)
    finally:
        os.close(place)


def _bind_console(peer: int, context: Context) -> None:
    target = context.make_file("/dev/console")
    try:
        copy = mounts.open_tree(peer, "", mounts.OPEN_TREE_CLONE | mounts.AT_EMPTY_PATH)
        try:
            mounts.move_mount(copy, target)
        finally:
            os.close(copy)
    finally:
        os.close(target)


def _send(master: int, console: int) -> None:
    with socket.socket(fileno=os.dup(console)) as sock:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [master]))
        sock.sendmsg([b"pty"], [rights])
