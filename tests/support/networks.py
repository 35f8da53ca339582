"""A host and pods of a test's own, as network namespaces: nothing of the real host's network is touched."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from polypod.boot.namespace_paths import NamespacePaths
from polypod.plugin.ids import SandboxId, new_id
from polypod.plugin.network import AttachRequest, Network, NetworkContext
from polypod.plugin.requests import PodMetadata, PortMapping
from polypod_network.cni.network import CniNetwork

T = TypeVar("T")
CNI_BIN_DIRS = ("/opt/cni/bin", "/usr/lib/cni")
_SCRIPT = Path(__file__).with_name("cni_plugin.sh")
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
        # A new interface looks two seconds long for others with its address; nobody else is here.
        Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")
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


class Cni:
    """A directory of configurations, plugins of ours, and the network that is made of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.conf = path / "net.d"
        self.bin = path / "bin"
        self.ipam = path / "ipam"
        self.conf.mkdir()
        self.bin.mkdir()
        self.timeout_s = 20.0
        self.inner: CniNetwork
        self._opened: list[NamespacePaths] = []

    def script(self, name: str = "faulty") -> dict[str, object]:
        """Put our plugin there; return its configuration."""
        shutil.copy(_SCRIPT, self.bin / name)
        (self.bin / name).chmod(0o755)
        return {"type": name}

    def bridge(self, **more: object) -> dict[str, object]:
        """Return a configuration of the field's bridge, with 13 IPv4 addresses."""
        ipam = {
            "type": "host-local",
            "dataDir": str(self.ipam),
            "ranges": [[{"subnet": "10.214.0.0/28"}], [{"subnet": "fd14::/112"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        }
        return {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": ipam, **more}

    def configure(
        self,
        *plugins: Mapping[str, object],
        version: str = "1.0.0",
        name: str = "net",
        **more: object,
    ) -> None:
        tree = {"cniVersion": version, "name": name, "plugins": list(plugins), **more}
        (self.conf / "10-net.conflist").write_text(json.dumps(tree))

    def plan(self, command: str, what: str) -> None:
        """Say what our plugin does next."""
        (self.bin / f"plan-{command}").write_text(what)

    def calls(self) -> list[str]:
        """Return the commands that our plugins got."""
        path = self.bin / "calls"
        return [line.split()[1] for line in path.read_text().splitlines()] if path.exists() else []

    def stdin(self, command: str) -> dict[str, Any]:
        """Return what our plugin was told last."""
        found: dict[str, Any] = json.loads((self.bin / f"stdin-{command}").read_text())
        return found

    def leases(self) -> list[str]:
        """Return the addresses that host-local holds."""
        return sorted(each.name for each in self.ipam.rglob("*") if each.name[0] in "1f")

    def bound(self) -> list[str]:
        """Return the namespaces that have a path."""
        return [each.name for each in (self.path / "netns").glob("*")]

    async def open(self, **more: object) -> NamespacePaths:
        """Open the network, again to play a restart; ``inner`` is what core does not see."""
        table = {
            "conf_dir": str(self.conf),
            "bin_dirs": [str(self.bin), *CNI_BIN_DIRS],
            "timeout_s": self.timeout_s,
            **more,
        }
        self.inner = await CniNetwork(NetworkContext({"cni": table}, self.path, self.path)).open()
        self._opened.append(with_paths(self.inner, self.path))
        return self._opened[-1]

    async def close(self) -> None:
        for network in self._opened:
            await network.close()
