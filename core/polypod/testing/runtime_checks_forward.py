"""Contract checks: port-forward of backends whose sandboxes have a localhost of their own.

The rootfs needs ``nc`` with ``-l``, ``-p`` and ``-e``, as busybox has it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

from polypod.plugin.ids import SandboxId, new_id
from polypod.plugin.runtime import Forwards
from polypod.testing.runtime_lab import RuntimeLab
from polypod.testing.suite import NotApplicable, Violation, expect, refused, soon

_PORT = 7007
_ECHO = f"echo ready; while :; do nc -l -p {_PORT} -e cat; done"
_LARGE = b"0123456789abcdef" * (64 * 1024)


def _forwards(lab: RuntimeLab) -> Forwards:
    if not isinstance(lab.backend, Forwards):
        raise NotApplicable("the backend has no Forwards")
    return lab.backend


async def _connected(lab: RuntimeLab, sandbox_id: SandboxId) -> socket.socket:
    """Connect to a server that may take a moment to listen (again)."""
    last = ""
    for _ in range(500):
        try:
            fd = await soon(_forwards(lab).forward(sandbox_id, _PORT), "forward")
        except Exception as error:  # noqa: BLE001 - nobody listens yet
            last = str(error)
            await asyncio.sleep(0.02)
            continue
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        return sock
    raise Violation(f"nobody could be connected to: {last}")


async def _read_all(sock: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    found = b""
    while piece := await loop.sock_recv(sock, 1 << 16):
        found += piece
    return found


async def _echo(lab: RuntimeLab, check: Callable[[SandboxId], Awaitable[None]]) -> None:
    _forwards(lab)
    sandbox = await lab.sandbox()
    box = await lab.run(sandbox, _ECHO)
    await box.says(b"ready")
    await check(sandbox.id)


async def check_forward_half_closes(lab: RuntimeLab) -> None:
    """What is written arrives, and the end of one direction is told while the other one still carries bytes."""

    async def check(sandbox_id: SandboxId) -> None:
        with await _connected(lab, sandbox_id) as sock:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(sock, b"over there")
            sock.shutdown(socket.SHUT_WR)
            # The server ends when its input does: so it was told, and still answers.
            found = await soon(_read_all(sock), "the echo ends")
            expect(found == b"over there", f"the echo is {found!r}")

    await _echo(lab, check)


async def check_forward_carries_much(lab: RuntimeLab) -> None:
    """A megabyte goes there and comes back whole, also when nobody reads at first."""

    async def check(sandbox_id: SandboxId) -> None:
        with await _connected(lab, sandbox_id) as sock:
            loop = asyncio.get_running_loop()
            sending = asyncio.ensure_future(loop.sock_sendall(sock, _LARGE))
            await asyncio.sleep(0.2)
            reading = asyncio.ensure_future(_read_all(sock))
            await soon(sending, "a megabyte is written")
            sock.shutdown(socket.SHUT_WR)
            found = await soon(reading, "the echo ends")
            expect(found == _LARGE, f"{len(found)} bytes came back, or others")

    await _echo(lab, check)


async def check_forward_client_that_leaves(lab: RuntimeLab) -> None:
    """A client that leaves ends its connection inside; the next one is served."""

    async def check(sandbox_id: SandboxId) -> None:
        for _ in range(3):
            with await _connected(lab, sandbox_id) as sock:
                await asyncio.get_running_loop().sock_sendall(sock, b"unread")

    await _echo(lab, check)


async def check_forward_where_nobody_listens_is_refused(lab: RuntimeLab) -> None:
    """A port that nobody listens on is refused with its number."""
    forwards = _forwards(lab)
    sandbox = await lab.sandbox()
    error = await refused(forwards.forward(sandbox.id, _PORT), "forward to nobody")
    expect(str(_PORT) in str(error), f"the error does not name the port: {error}")
    expect("refused" in str(error).lower(), f"the error does not say why: {error}")


async def check_forward_into_unknown_sandbox_is_refused(lab: RuntimeLab) -> None:
    """A sandbox that the backend does not have is refused."""
    unknown = SandboxId(new_id())
    await refused(_forwards(lab).forward(unknown, _PORT), "forward into nothing")


CHECKS = tuple(value for name, value in list(globals().items()) if name.startswith("check_"))
