"""Messages with descriptors between daemon, supervisor, logger and keeper.

A message is one packet of a unix SEQPACKET socket: a JSON object, and at most `MAX_FDS` descriptors by
SCM_RIGHTS. What is larger than `MAX_BYTES` travels in a sealed memfd. Packets keep their borders, so
there is no framing to get wrong; a packet that is cut off, too large or not an object is an error of
the sender, and its descriptors are closed.

Spec:
    man unix(7), cmsg(3).
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct

MAX_BYTES = 64 * 1024
"""Far below the socket's buffer: a packet near it fails with EMSGSIZE."""
MAX_FDS = 200
"""The kernel's own limit is 253 (SCM_MAX_FD)."""
_FD_SIZE = array.array("i").itemsize
_CREDENTIALS = struct.Struct("=iII")
_json = json.JSONEncoder(separators=(",", ":")).encode


class ChannelError(Exception):
    """The other side sent what is not a message; the connection is of no more use."""


def encode(message: dict[str, object]) -> bytes:
    """Return a message's packet; strings may hold surrogate escapes, so bytes survive as text."""
    packet = _json(message).encode()
    if len(packet) > MAX_BYTES:
        text = f"message of {len(packet)} bytes: at most {MAX_BYTES}, the rest goes into a memfd"
        raise ChannelError(text)
    return packet


def decode(packet: bytes) -> dict[str, object]:
    """Return the message of a packet."""
    try:
        message = json.loads(packet)
    except (ValueError, RecursionError) as error:
        text = f"not a message: {error}"
        raise ChannelError(text) from error
    if not isinstance(message, dict):
        text = f"not a message: {type(message).__name__} instead of an object"
        raise ChannelError(text)
    return message


def send(
    sock: socket.socket, message: dict[str, object], fds: list[int] | tuple[int, ...] = ()
) -> None:
    """Send one message; the descriptors stay the caller's.

    Raises:
        BlockingIOError: the socket is non-blocking and full.
        OSError: the other side is gone.
    """
    if len(fds) > MAX_FDS:
        text = f"{len(fds)} descriptors in one message: at most {MAX_FDS}"
        raise ChannelError(text)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([encode(message)], ancillary, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> tuple[dict[str, object], list[int]] | None:
    """Receive one message with its descriptors, which are the caller's; None when the peer left.

    Raises:
        BlockingIOError: the socket is non-blocking and nothing is there.
        ChannelError: not a message; its descriptors are closed.
    """
    packet, ancillary, flags, _address = sock.recvmsg(
        MAX_BYTES + 1, socket.CMSG_SPACE(MAX_FDS * _FD_SIZE), socket.MSG_CMSG_CLOEXEC
    )
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(data) - len(data) % _FD_SIZE
            fds.extend(array.array("i", data[:whole]))
    if not packet and not fds:
        return None
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            text = "message cut off by the kernel"
            raise ChannelError(text)
        return decode(packet), fds
    except ChannelError:
        close_all(fds)
        raise


def close_all(fds: list[int] | tuple[int, ...]) -> None:
    """Close descriptors, and clear a list of them: nobody shall close their numbers once more."""
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            continue
    if isinstance(fds, list):
        fds.clear()


def listen(path: str) -> socket.socket:
    """Listen on a path, mode 0600, replacing a socket that a dead process left.

    The directory is 0700 and ours, so nobody can put another socket there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    # Bound under another name and renamed: a client never finds a socket that does not listen yet.
    temporary = f"{path}.new"
    try:
        os.unlink(temporary)
    except FileNotFoundError:
        temporary = f"{path}.new"
    old_mask = os.umask(0o177)
    try:
        sock.bind(temporary)
    finally:
        os.umask(old_mask)
    sock.listen(64)
    os.rename(temporary, path)
    return sock


def connect(path: str) -> socket.socket:
    """Connect to a listening path; the peer must be our own user or root (E14).

    Raises:
        OSError: nobody listens.
        ChannelError: the peer is somebody else.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        sock.connect(path)
        check_peer(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def check_peer(sock: socket.socket) -> None:
    """Refuse a peer that runs as another user than we or root."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, uid, _gid = _CREDENTIALS.unpack(data)
    if uid not in (0, os.geteuid()):
        text = f"peer runs as uid {uid}: only root and uid {os.geteuid()} may talk here"
        raise ChannelError(text)
