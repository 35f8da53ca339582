"""The interfaces of pods, read through the netlink socket that was made inside each network namespace.

One pass over all pods in one thread. The sockets are otherwise used while a pod is attached and detached
only; an answer that somebody before us did not fetch is recognised by its number, and dropped.

Spec:
    rtnetlink(7), RTM_GETLINK; linux/if_link.h, ``struct rtnl_link_stats64``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from polypod.lifecycle.views import Interface
from polypod.plugin.ids import SandboxId

log = logging.getLogger(__name__)

_GETLINK, _NEWLINK, _DONE, _ERROR = 18, 16, 3, 2
_REQUEST_DUMP: Final = 0x301
_NAME, _STATS64 = 3, 23
_HEADER: Final = struct.Struct("=IHHII")
_LINK: Final = struct.Struct("=BxHiII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_COUNTERS: Final = struct.Struct("=8Q")
"""rx and tx packets, rx and tx bytes, rx and tx errors, rx and tx dropped: the first eight."""
_LOOPBACK: Final = 0x8
_ANSWER_BYTES: Final = 32 * 1024
_PATIENCE_MS: Final = 1000


class PodInterfaces:
    """Implements `polypod.lifecycle.ports.Interfaces`."""

    def __init__(self) -> None:
        self._number = os.getpid() << 8 & 0xFFFFFFFF

    async def read(
        self, sockets: Mapping[SandboxId, int], /
    ) -> Mapping[SandboxId, Sequence[Interface]]:
        """See `Interfaces.read`."""
        # Copies: a pod that ends meanwhile closes its own, and the number may be another file's then.
        copies = {sandbox_id: os.dup(fd) for sandbox_id, fd in sockets.items()}
        # Not awaited alone: the thread goes on if the caller leaves, and closes the copies.
        work = asyncio.get_running_loop().run_in_executor(None, self._read_all, copies)
        return await asyncio.shield(work)

    def _read_all(self, sockets: Mapping[SandboxId, int]) -> dict[SandboxId, list[Interface]]:
        found: dict[SandboxId, list[Interface]] = {}
        for sandbox_id, fd in sockets.items():
            self._number = self._number + 1 & 0xFFFFFFFF
            try:
                found[sandbox_id] = links(fd, self._number)
            except (OSError, TimeoutError, struct.error) as error:
                log.warning("interfaces of sandbox %s: %s", sandbox_id, error)
            finally:
                os.close(fd)
        return found


def links(fd: int, number: int) -> list[Interface]:
    """Return the interfaces of a network namespace, without its loopback.

    Args:
        fd: a NETLINK_ROUTE socket made inside it.
        number: of the question; not used on this socket before.

    Raises:
        OSError: the kernel refused.
        TimeoutError: it said nothing for a second.
    """
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0, fileno=fd)
    try:
        size = _HEADER.size + _LINK.size
        question = _HEADER.pack(size, _GETLINK, _REQUEST_DUMP, number, 0) + _LINK.pack(
            0, 0, 0, 0, 0
        )
        link.send(question)
        return list(_answers(link, number))
    finally:
        link.detach()


def _answers(link: socket.socket, number: int) -> Iterator[Interface]:
    waiting = select.poll()
    waiting.register(link.fileno(), select.POLLIN)
    while True:
        if not waiting.poll(_PATIENCE_MS):
            raise TimeoutError("the kernel did not answer")
        for kind, sequence, body in _messages(link.recv(_ANSWER_BYTES, socket.MSG_DONTWAIT)):
            if sequence != number:
                continue
            if kind == _DONE:
                return
            if kind == _ERROR:
                code = -struct.unpack_from("=i", body)[0]
                raise OSError(code, os.strerror(code))
            if kind == _NEWLINK:
                yield from _interface(body)


def _messages(data: bytes) -> Iterator[tuple[int, int, memoryview]]:
    view, at = memoryview(data), 0
    while at + _HEADER.size <= len(view):
        length, kind, _flags, sequence, _port = _HEADER.unpack_from(view, at)
        if length < _HEADER.size:
            return
        yield kind, sequence, view[at + _HEADER.size : at + length]
        at += length + 3 & ~3


def _interface(body: memoryview) -> Iterator[Interface]:
    if len(body) < _LINK.size:
        return
    _family, _type, _index, flags, _change = _LINK.unpack_from(body)
    if flags & _LOOPBACK:
        return
    name, counters = "", None
    at = _LINK.size
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            break
        if kind == _NAME:
            name = bytes(body[at + 4 : at + length]).rstrip(b"\0").decode(errors="replace")
        elif kind == _STATS64 and length >= _ATTRIBUTE.size + _COUNTERS.size:
            counters = _COUNTERS.unpack_from(body, at + 4)
        at += length + 3 & ~3
    if counters is not None:
        rx_packets, tx_packets, rx_bytes, tx_bytes, rx_errors, tx_errors, rx_lost, tx_lost = (
            counters
        )
        yield Interface(
            name,
            rx_bytes=rx_bytes,
            rx_packets=rx_packets,
            rx_errors=rx_errors,
            rx_dropped=rx_lost,
            tx_bytes=tx_bytes,
            tx_packets=tx_packets,
            tx_errors=tx_errors,
            tx_dropped=tx_lost,
        )
