"""TCP connections that begin inside a sandbox's network namespace: port-forward is one `connect`."""

from __future__ import annotations

import os
import select
import socket

from polypod.supervisor.server import Loop, Peer, Refusal, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from polypod.supervisor.server import Message


def address(message: Message) -> tuple[int, tuple[str, int]]:
    """Return (family, address) of a request; names are refused: we never wait for a resolver."""
    host, port = text(message, "host"), message.get("port")
    if type(port) is not int or not 0 < port < 65536:
        raise Refusal("InvalidArgument", f"connect: {port!r} is no port")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.inet_pton(family, host)
    except (OSError, ValueError) as error:
        raise Refusal("InvalidArgument", f"connect: {host!r} is no address") from error
    return family, (host, port)


def connect(
    loop: Loop, peer: Peer, number: object, sock: socket.socket, to: tuple[str, int]
) -> None:
    """Connect a non-blocking socket, and answer the request when that has ended.

    Raises:
        OSError: it failed at once.
    """

    def answer() -> None:
        failed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed:
            sock.close()
            loop.refuse(peer, number, OSError(failed, f"connect: {os.strerror(failed)}"))
        else:
            loop.answer(peer, number, {}, [sock.detach()])

    def ended(_events: int) -> None:
        loop.drop(sock.fileno())
        answer()

    try:
        sock.connect(to)
    except BlockingIOError:
        loop.add(sock.fileno(), ended, select.EPOLLOUT)
    except OSError:
        sock.close()
        raise
    else:
        answer()
