"""The opened observer: the socket that plugins connect to, the programs that are started, the report."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Coroutine
from importlib.metadata import version
from pathlib import Path
from typing import Any

from polypod.plugin import FailedPrecondition
from polypod.plugin.observer import ObserverServices
from polypod_nri import launching
from polypod_nri.connection import Gone
from polypod_nri.peer import EVENTS, Peer
from polypod_nri.relay import Relay
from polypod_nri.settings import Settings

log = logging.getLogger(__name__)

_KEPT = 32
"""Closed plugins that the report still names."""


class NriObserver:
    """Implements `polypod.plugin.Observer`."""

    def __init__(self, services: ObserverServices, settings: Settings) -> None:
        self._services = services
        self._settings = settings
        self.relay = Relay(services, settings)
        self._peers: list[Peer] = []
        self._closed: deque[Peer] = deque(maxlen=_KEPT)
        self._programs: list[launching.Launched] = []
        self._failed: list[dict[str, str]] = []
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._version = version("polypod")

    async def open(self) -> None:
        """Start the programs, then listen.

        Raises:
            FailedPrecondition: the socket cannot be made.
        """
        directories = Path(self._settings.plugin_dir), Path(self._settings.config_dir)
        programs = launching.discover(*directories)
        # All at once: one that hangs costs its time limit and not the others'.
        await asyncio.gather(*(self._launch(program) for program in programs))
        if self._settings.socket:
            self._listener = _listen(Path(self._settings.socket))
            self._spawn(self._accept(self._listener))
        self._report()
        log.info("NRI is on socket=%s", self._settings.socket or "none")

    async def close(self) -> None:
        """Take leave of all plugins, end those that were started, remove the socket."""
        if self._listener is not None:
            self._listener.close()
            Path(self._settings.socket).unlink(missing_ok=True)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(peer.close() for peer in tuple(self._peers)))
        await self.relay.close()
        await asyncio.gather(*(program.stop() for program in self._programs))

    async def _launch(self, program: launching.Program) -> None:
        title = f"{program.index}-{program.name}"
        try:
            launched = await launching.Launched.start(program)
        except OSError as error:
            log.error("NRI plugin not started name=%s path=%s: %s", title, program.path, error)
            self._failed.append({"name": title, "state": "closed", "reason": str(error)})
            return
        self._programs.append(launched)
        peer = self._peer(launched.sock, (program.index, program.name))
        await self._introduce(peer, program.config)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _address = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("NRI: no plugin can connect for a moment: %s", error)
                await asyncio.sleep(0.1)
                continue
            if _peer_uid(sock) not in {0, os.geteuid()}:
                log.warning("NRI: a process of user %d was turned away", _peer_uid(sock))
                sock.close()
                continue
            self._spawn(self._introduce(self._peer(sock), ""))

    def _peer(self, sock: socket.socket, identity: tuple[str, str] | None = None) -> Peer:
        sock.setblocking(False)
        peer = Peer(
            sock,
            self._settings,
            asked=self.relay.asked,
            changed=self._became,
            identity=identity,
        )
        self._peers.append(peer)
        return peer

    async def _introduce(self, peer: Peer, config: str) -> None:
        try:
            await peer.introduce(config, self._version)
        except Gone as error:
            log.warning("NRI plugin not taken in name=%s: %s", peer.title, error)
            return
        self.relay.join(peer)

    def _became(self, peer: Peer) -> None:
        if not peer.alive and peer in self._peers:
            self._peers.remove(peer)
            self._closed.append(peer)
            self.relay.leave(peer)
            log.warning("NRI plugin closed name=%s: %s", peer.title, peer.reason)
        self._report()

    def _report(self) -> None:
        here = {peer.title for peer in self._peers}
        closed = {peer.title: peer for peer in self._closed if peer.title not in here}
        plugins = [_described(peer) for peer in (*self._peers, *closed.values())]
        self._services.report(
            {
                "socket": self._settings.socket,
                "required": list(self._settings.required),
                "plugins": [*plugins, *self._failed],
            }
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _described(peer: Peer) -> dict[str, object]:
    return {
        "name": peer.title,
        "pid": peer.pid,
        "kind": "started" if peer.launched else "connected by itself",
        "state": peer.state,
        "reason": peer.reason,
        "events": [name for name in EVENTS if peer.wants(name)],
    }


def _listen(path: Path) -> socket.socket:
    """Return a listening socket that root alone may connect to (E14)."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _answers(path):
            raise FailedPrecondition(
                f"{path}: another server listens there; give this one another plugins.nri.socket"
            )
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen()
    except OSError as error:
        listener.close()
        raise FailedPrecondition(f"plugins.nri.socket {path}: {error.strerror}") from error
    except FailedPrecondition:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
        probe.settimeout(1)
        probe.connect(str(path))
        return True
    return False


def _peer_uid(sock: socket.socket) -> int:
    uid: int = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
    return uid
