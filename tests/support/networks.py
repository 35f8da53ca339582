"""A host and pods of a test's own, as network namespaces: nothing of the real host's network is touched."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from polypod.boot.namespace_paths import NamespacePaths
from polypod.plugin.ids import SandboxId, new_id
from polypod.plugin.network import AttachRequest, Network
from polypod.plugin.requests import PodMetadata, PortMapping

T = TypeVar("T")
CNI_BIN_DIRS = ("/opt/cni/bin", "/usr/lib/cni")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def own_namespace() -> int:
    """Return a descriptor of this thread's network namespace."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def enter(namespace: int) -> None:
    """Move this thread into a network namespace."""
    if _libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def unshare() -> None:
    """Move this thread into a new network namespace."""
    if _libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")


@contextlib.contextmanager
def own_host() -> Iterator[None]:
    """Play the host in a new namespace: of this thread, and so of threads and programs it starts."""
    before = own_namespace()
    unshare()
    try:
        run("ip", "link", "set", "lo", "up")
        yield
    finally:
        enter(before)
        os.close(before)


def in_thread(function: Callable[[], T]) -> T:
    """Run in a thread of its own: a network namespace belongs to a thread."""
    result: list[tuple[T | None, BaseException | None]] = []

    def body() -> None:
        try:
            result.append((function(), None))
        except BaseException as error:
            result.append((None, error))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    value, error = result[0]
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def run(*words: str) -> str:
    """Run a program in this thread's namespace and return what it prints."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


class Pod:
    """A network namespace with a netlink socket inside, as the supervisor makes them."""

    def __init__(self, sandbox_id: SandboxId | None = None) -> None:
        self.id = sandbox_id or SandboxId(new_id())
        self.fd, self.netlink = in_thread(self._make)

    @staticmethod
    def _make() -> tuple[int, socket.socket]:
        unshare()
        return own_namespace(), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)

    def request(self, *ports: PortMapping, **annotations: str) -> AttachRequest:
        metadata = PodMetadata("pod", "uid", "default")
        return AttachRequest(
            self.id,
            metadata,
            self.fd,
            self.netlink.fileno(),
            port_mappings=ports,
            annotations=annotations,
        )

    def socket(
        self, kind: int = socket.SOCK_STREAM, family: int = socket.AF_INET, protocol: int = 0
    ) -> socket.socket:
        return self.inside(lambda: socket.socket(family, kind, protocol))

    def inside(self, function: Callable[[], T]) -> T:
        """Call something in a thread that has joined the namespace."""

        def body() -> T:
            enter(self.fd)
            return function()

        return in_thread(body)

    def close(self) -> None:
        self.netlink.close()
        os.close(self.fd)


class Subject:
    """A `polypod.testing.network_suite.NetworkSubject` with real namespaces."""

    exceptions: Mapping[str, str] = {}

    def __init__(self, opened: Callable[[], object]) -> None:
        self._opened = opened
        self._pods: dict[SandboxId, Pod] = {}

    async def open(self) -> Network:
        return await self._opened()  # type: ignore[misc]

    async def request(self, sandbox_id: SandboxId, /) -> AttachRequest:
        self._pods[sandbox_id] = Pod(sandbox_id)
        return self._pods[sandbox_id].request()

    async def discard(self, request: AttachRequest, /) -> None:
        self._pods.pop(request.sandbox_id).close()

    def close(self) -> None:
        for pod in self._pods.values():
            pod.close()


def with_paths(network: Network, directory: Path) -> NamespacePaths:
    """Wrap a network that wants paths as core does, with the paths below a test's directory."""
    return NamespacePaths(network, directory / "markers", directory / "netns")
