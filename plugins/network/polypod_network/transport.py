"""Netlink sockets that send a batch and read its answers.

The kernel works on a request inside ``send``: these calls block as long as rtnl or nfnl is taken,
which is why `polypod_network.bridge` makes them on its own threads.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from polypod_network import wire

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLMSGERR_ATTR_MSG = 1
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200
_TIMEOUT = struct.pack("ll", 10, 0)
"""A struct timeval: a kernel that does not answer for ten seconds has failed."""
_HEADER = struct.Struct("=IHHII")


@dataclass(frozen=True, slots=True)
class Request:
    """One message of a batch."""

    kind: int
    flags: int
    payload: bytes
    what: str
    """For the error text: what it does, to what."""
    tolerated: tuple[int, ...] = ()
    """errno values that count as success."""


def open_socket(family: int) -> socket.socket:
    """Open a netlink socket of this thread's network namespace."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
    prepare(sock)
    return sock


def prepare(sock: socket.socket) -> None:
    """Ask for short acknowledgements with the kernel's own words in them, and a time limit."""
    for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
        sock.setsockopt(_SOL_NETLINK, option, 1)
    # Not settimeout(): Python would poll before each MSG_DONTWAIT read, and wait it out.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEOUT)


def send_batch(sock: socket.socket, requests: Sequence[Request], *, envelope: bool = False) -> None:
    """Send requests in one system call and wait for each acknowledgement.

    Args:
        sock: where to.
        requests: in order; rtnetlink goes on after a failed one, nfnetlink undoes them all.
        envelope: wrap them as one nfnetlink transaction.

    Raises:
        OSError: the first refusal that was not tolerated, with what it was about.
    """
    parts: list[bytes] = []
    expected: dict[int, Request] = {}
    if envelope:
        parts.append(_batch_mark(16))
    for sequence, request in enumerate(requests, start=1):
        flags = request.flags | wire.NLM_F_ACK
        parts.append(wire.message(request.kind, flags, sequence, request.payload))
        expected[sequence] = request
    if envelope:
        parts.append(_batch_mark(17))
    _drain(sock)
    sock.send(b"".join(parts))
    _read_acknowledgements(sock, expected)


def dump(sock: socket.socket, request: Request) -> list[bytes]:
    """Send a dump or a get request and return the payloads of all answers."""
    dumping = bool(request.flags & wire.NLM_F_DUMP)
    flags = request.flags if dumping else request.flags | wire.NLM_F_ACK
    _drain(sock)
    sock.send(wire.message(request.kind, flags, 1, request.payload))
    answers: list[bytes] = []
    while True:
        for kind, _flags, _sequence, payload in _messages(sock.recv(1 << 17)):
            if kind == _NLMSG_ERROR:
                _check(request, payload, 0)
                return answers
            if kind == _NLMSG_DONE:
                return answers
            answers.append(payload)


def _batch_mark(kind: int) -> bytes:
    subsystem_nftables = 10
    return wire.message(kind, 0, 0, struct.pack("!BBH", 0, 0, subsystem_nftables))


def _drain(sock: socket.socket) -> None:
    """Throw away what a request that timed out left behind."""
    while True:
        try:
            sock.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return


def _read_acknowledgements(sock: socket.socket, expected: dict[int, Request]) -> None:
    failure: OSError | None = None
    while expected:
        for kind, flags, sequence, payload in _messages(sock.recv(1 << 16)):
            request = expected.pop(sequence, None)
            if kind != _NLMSG_ERROR:
                continue
            if request is None:
                # nfnetlink answers the envelope itself when it refuses a whole batch.
                request = Request(0, 0, b"", "nftables transaction")
                expected.clear()
            try:
                _check(request, payload, flags)
            except OSError as error:
                failure = failure or error
                if error.errno == errno.EINVAL and sequence == 0:
                    expected.clear()
    if failure is not None:
        raise failure


def _messages(data: bytes) -> list[tuple[int, int, int, bytes]]:
    found = []
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _pid = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            break
        found.append((kind, flags, sequence, data[offset + _HEADER.size : offset + length]))
        offset += wire.align(length)
    return found


def _check(request: Request, payload: bytes, flags: int) -> None:
    (negative,) = struct.unpack_from("=i", payload)
    number = -negative
    if number == 0 or number in request.tolerated:
        return
    said = ""
    if flags & _NLM_F_ACK_TLVS:
        start = 4 + 16 if flags & _NLM_F_CAPPED else 4 + struct.unpack_from("=I", payload, 4)[0]
        raw = wire.attributes(payload[start:]).get(_NLMSGERR_ATTR_MSG, b"")
        said = raw.rstrip(b"\0").decode(errors="replace")
    detail = f": {said}" if said else ""
    raise OSError(number, f"{request.what}: {os.strerror(number)}{detail}")
