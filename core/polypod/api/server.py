"""The gRPC server on a unix socket that only its owner can open.

Spec:
    Reliability E14: path sockets of mode 0600 below a directory that nobody else can write.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from polypod.api.image_service import ImageService
from polypod.api.interceptors import CallWatch, Interceptor
from polypod.api.runtime_service import RuntimeService
from polypod.api.v1 import api_pb2_grpc as rpc
from polypod.plugin.errors import FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    from polypod.lifecycle.views import Lifecycle

log = logging.getLogger("polypod.api")

MAX_MESSAGE_BYTES = 16 << 20
"""What the kubelet's client accepts."""
MAX_SOCKET_PATH = 107
"""``sun_path`` of unix(7) is 108 bytes with its NUL."""


def socket_path(listen: str) -> Path:
    """Return the path of a ``unix:///path`` address.

    Raises:
        InvalidArgument: another scheme, a relative path, or one too long for a socket.
    """
    path = listen.removeprefix("unix://")
    if path == listen or not path.startswith("/"):
        raise InvalidArgument(f"server.listen is {listen!r}: give unix:///absolute/path")
    if len(path.encode()) > MAX_SOCKET_PATH:
        raise InvalidArgument(
            f"server.listen: a socket's path has at most {MAX_SOCKET_PATH} bytes, {path!r} has more"
        )
    return Path(path)


class ApiServer:
    """A started server; `start` answers when clients can connect."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        listen: str,
        *,
        ready: Callable[[], bool] = lambda: True,
        watch: CallWatch | None = None,
    ) -> None:
        """Choose where to listen; every call is answered UNAVAILABLE until ``ready`` says yes."""
        self._watch = watch
        self.path = socket_path(listen)
        self._lifecycle = lifecycle
        self._ready = ready
        self._server: grpc.aio.Server | None = None
        self._inode = 0

    async def start(self) -> None:
        """Bind the socket and serve.

        Raises:
            FailedPrecondition: another server answers there, or others may write its directory.
        """
        prepare_socket(self.path)
        server = grpc.aio.server(
            interceptors=(Interceptor(self._ready, self._watch),),
            options=(
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),
            ),
        )
        methods = _ByName(server)
        rpc.add_RuntimeServiceServicer_to_server(RuntimeService(self._lifecycle), methods)  # type: ignore[no-untyped-call]
        rpc.add_ImageServiceServicer_to_server(ImageService(self._lifecycle), methods)  # type: ignore[no-untyped-call]
        # The socket is born with the umask's mode: nobody may connect before the chmod.
        before = os.umask(0o177)
        try:
            server.add_insecure_port(f"unix://{self.path}")
            await server.start()
        except RuntimeError as error:
            raise FailedPrecondition(f"cannot listen on {self.path}: {error}") from error
        finally:
            os.umask(before)
        self.path.chmod(0o600)
        self._inode = self.path.stat().st_ino
        self._server = server
        log.info("listening on %s", self.path)

    async def wait(self) -> None:
        """Return when the server has been stopped."""
        if self._server is not None:
            await self._server.wait_for_termination()

    async def stop(self, grace_s: float = 5.0) -> None:
        """Take no new calls, let the running ones end for a while, remove the socket. Idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        await server.stop(grace_s)
        try:
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        except FileNotFoundError:
            pass  # grpc removes its own socket in some versions


class _ByName:
    """Takes handlers for a server that looks methods up by their names.

    For each *registered* method grpc.aio keeps a waiting task, and twice in every call it waits for all
    of them together: with CRI's methods that is a quarter of what a call costs.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Pass on."""
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, _service: str, _handlers: object) -> None:
        """Leave out; the generic handlers have the same methods."""


async def serve(
    lifecycle: Lifecycle, listen: str, stop: asyncio.Event, *, grace_s: float = 5.0
) -> None:
    """Serve until ``stop`` is set.

    Args:
        lifecycle: answers the calls; raises `Unavailable` until it has recovered.
        listen: ``unix:///path``.
        stop: set it (by a signal handler) to end.
        grace_s: how long running calls may go on.
    """
    server = ApiServer(lifecycle, listen)
    await server.start()
    try:
        await stop.wait()
    finally:
        await server.stop(grace_s)


def prepare_socket(path: Path) -> None:
    """Make the directory, check it, and remove a socket that nobody serves.

    Raises:
        FailedPrecondition: with what to do about it.
    """
    parent = path.parent
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = parent.stat()
    if facts.st_uid not in {0, os.geteuid()}:
        raise FailedPrecondition(
            f"{parent} belongs to uid {facts.st_uid}: a socket there is unsafe"
        )
    writable = facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if writable and not facts.st_mode & stat.S_ISVTX:
        raise FailedPrecondition(f"others can write {parent}: chmod go-w it, or listen elsewhere")
    if not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise FailedPrecondition(f"{path} exists and is no socket: move it away")
    if _answers(path):
        raise FailedPrecondition(f"another server answers on {path}: stop it first")
    path.unlink()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # busy or not ours to open: somebody has it
        return True
