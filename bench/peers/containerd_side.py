"""Debian's containerd with runc and the CNI plugins as one side of the comparison.

It is configured as its own documentation does it: overlayfs, cgroupfs, one bridge with masquerading. It
gets directories, a socket, a bridge and a cgroup parent of its own; see `alone` for the rest of the host.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from bench.peers import kernel
from bench.peers.side import BUSYBOX, PAUSE, READY_S, Archives, wait_ready
from bench.pods import PodMaker
from bench.processes import ServerCgroup
from polypod.client import CriClient, CriError

PROGRAMS: Final = {
    "containerd": "containerd",
    "ctr": "containerd",
    "containerd-shim-runc-v2": "containerd",
    "runc": "runc",
    "iptables": "iptables",
}
"""Program → the Debian package that has it."""
PLUGINS: Final = Path("/usr/lib/cni")
LEAVE_S: Final = 30.0
SETTLE_S: Final = 10.0
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CONFIG: Final = """\
version = 2
root = {root}
state = {state}
disabled_plugins = [
    "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]

[grpc]
address = {socket}

[debug]
level = "warn"

[plugins."io.containerd.internal.v1.opt"]
path = {opt}

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = {pause}
restrict_oom_score_adj = true
disable_tcp_service = true
stream_server_address = "127.0.0.1"
stream_server_port = "0"
netns_mounts_under_state_dir = true

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = {plugins}
conf_dir = {conf_dir}
"""


def config_text(place: Path, state: Path) -> str:
    """Return the configuration of a containerd that lives below two directories.

    ``restrict_oom_score_adj`` lets it start pods where negative scores cannot be had.
    """
    quoted = {
        "root": place / "root",
        "state": state,
        "socket": place / "cri.sock",
        "opt": place / "opt",
        "pause": PAUSE,
        "plugins": PLUGINS,
        "conf_dir": place / "cni",
    }
    return _CONFIG.format(**{key: json.dumps(str(value)) for key, value in quoted.items()})


def cni_text(place: Path, number: int) -> str:
    """Return the network: a bridge with masquerading and host ports, as containerd's own script writes it."""
    bridge = {
        "type": "bridge",
        "bridge": f"bench-cni{number}",
        "isGateway": True,
        "ipMasq": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(place / "leases"),
            "ranges": [[{"subnet": f"10.237.{number * 16}.0/20"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return json.dumps({"cniVersion": "1.0.0", "name": "bench", "plugins": [bridge, ports]})


class ContainerdSide:
    """A private containerd.

    Args:
        number: tells the servers of one run apart: subnets, bridges, cgroups.
    """

    name = "containerd"

    def __init__(self, number: int) -> None:
        self.cgroup = ServerCgroup(f"containerd-{number}")
        self.place = Path(tempfile.mkdtemp(prefix="bench-containerd-"))
        self._state = Path(tempfile.mkdtemp(prefix="bench-containerd-", dir="/run"))
        self._socket = self.place / "cri.sock"
        self._parent = f"/polypod-bench-peer-{os.getpid()}-{number}"
        self._log = self.place / "log"
        self._pods: PodMaker | None = None
        self._process: subprocess.Popen[bytes] | None = None
        (self.place / "cni").mkdir()
        (self.place / "cni" / "10-bench.conflist").write_text(cni_text(self.place, number))
        (self.place / "config.toml").write_text(config_text(self.place, self._state))

    @property
    def pods(self) -> PodMaker:
        """What makes pods."""
        if self._pods is None:
            raise RuntimeError("containerd was not started")
        return self._pods

    async def start(self, archives: Archives | None) -> None:
        """Start it, and give it sandbox image and busybox image."""
        await self.start_daemon()
        if archives is not None:
            for archive, name in ((archives.pause, PAUSE), (archives.busybox, BUSYBOX)):
                await asyncio.to_thread(self._import, archive)
                await self._until_listed(name)

    def _import(self, archive: Path) -> None:
        words = ["ctr", "--address", str(self._socket), "--namespace", "k8s.io", "images", "import"]
        done = subprocess.run([*words, str(archive)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"ctr images import {archive}: {done.stderr.strip()}")

    async def _until_listed(self, name: str) -> None:
        """Wait until its CRI part has heard of an image."""
        async with asyncio.timeout(READY_S):
            while not (await self.pods.cri.image_status(name)).HasField("image"):
                await asyncio.sleep(0.05)

    async def start_daemon(self) -> None:
        """Start the daemon and connect."""
        if self._pods is not None:
            await self._pods.cri.close()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["containerd", "--config", str(self.place / "config.toml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{PATH}"},
            )
        self.cgroup.take(self._process.pid)
        cri = CriClient(f"unix://{self._socket}")
        self._pods = PodMaker(
            cri,
            BUSYBOX,
            program=("/bin/busybox",),
            logs=self.place / "logs",
            cgroup_parent=self._parent,
        )
        await wait_ready(cri)

    def stop_daemon(self) -> None:
        """SIGTERM; the shims and their pods go on."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(LEAVE_S)

    async def take_down(self) -> bool:
        """Remove pods, processes, cgroups, mounts and directories."""
        if self._pods is not None:
            with suppress(CriError):
                await self._pods.clear()
            await self._pods.cri.close()
        await asyncio.to_thread(self.stop_daemon)
        # Shims that still stand, and what they hold, are ours: their cgroups say so.
        own = kernel.cgroups(self._parent)
        await _end(lambda: [*self.cgroup.pids(), *kernel.members(own)])
        kernel.remove_cgroups(own)
        kernel.unmount_below(self.place)
        kernel.unmount_below(self._state)
        clean = not self.cgroup.pids() and not kernel.cgroups(self._parent)
        if clean:
            self.cgroup.remove()
            shutil.rmtree(self.place)
            shutil.rmtree(self._state)
        else:
            print(f"something is left; see {self.place}", file=sys.stderr)
        return clean

    def log_tail(self) -> str:
        """Return the end of the daemon's log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])


async def _end(pids: Callable[[], list[int]]) -> None:
    """Give processes a moment to leave by themselves, then kill those that are still there."""
    waited_s = 0.0
    while (left := pids()) and waited_s < SETTLE_S:
        if waited_s > SETTLE_S / 2:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.1)
        waited_s += 0.1
