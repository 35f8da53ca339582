"""The console socket: a runtime connects to a path and sends the master of a pty; the logger gets it.

Spec:
    runc docs/terminals.md, "Detached New Terminal".
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from types import TracebackType

from polypod.plugin import BackendError

_FDS = 4


class ConsoleSocket:
    """A listening socket in a bundle. `path` is short enough for ``sun_path``, wherever the bundle is."""

    def __init__(self, bundle: Path, name: str) -> None:
        self._file = bundle / name
        self._directory = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.path = f"/proc/{os.getpid()}/fd/{self._directory}/{name}"
        self._socket.setblocking(False)
        self._socket.bind(self.path)
        self._socket.listen(1)

    def __enter__(self) -> ConsoleSocket:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()
        os.close(self._directory)
        self._file.unlink(missing_ok=True)

    async def forward(self, console: int) -> None:
        """Take the one master that comes, and send it on.

        Raises:
            BackendError: the runtime sent something else.
        """
        loop = asyncio.get_running_loop()
        peer, _address = await loop.sock_accept(self._socket)
        with peer:
            peer.setblocking(False)
            await _readable(loop, peer.fileno())
            data, fds, _flags, _peer = socket.recv_fds(peer, 4096, _FDS)
        try:
            if len(fds) != 1:
                raise BackendError(
                    f"the runtime sent {len(fds)} descriptors for a terminal, not one"
                )
            with socket.socket(fileno=os.dup(console)) as target:
                socket.send_fds(target, [data or b"pty"], fds)
        finally:
            for fd in fds:
                os.close(fd)


async def _readable(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
