"""The server under measurement, with an image, and what makes pods on it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence

from bench.pods import PodMaker
from bench.processes import ServerCgroup, base_of_cgroups, ours, usage_s
from demo.server import OwnServer
from polypod.client import CriClient

IMAGE = "localhost/bench:latest"
SUBNETS = ("10.234.0.0/20", "fd00:10:234::/64")


class Rig:
    """A private server with an image.

    Args:
        simulated: only the simulator.
        name: tells the directories and cgroups of two rigs apart.
        subnets: of its pods.
        settings: further ``key=value`` words of its configuration.
    """

    def __init__(
        self,
        *,
        simulated: bool,
        name: str = "bench",
        subnets: Sequence[str] = SUBNETS,
        settings: Sequence[str] = (),
    ) -> None:
        self.simulated = simulated
        self.cgroup = ServerCgroup(name)
        self.server = OwnServer(
            name,
            simulated=simulated,
            subnets=subnets,
            on_start=self.cgroup.take,
            settings=settings,
        )
        self._image = IMAGE
        self._busybox = shutil.which("busybox") or "busybox"
        self._pods: PodMaker | None = None

    @property
    def started(self) -> bool:
        """Whether the server was reached at least once."""
        return self._pods is not None

    @property
    def pods(self) -> PodMaker:
        """What makes pods; another one after each start of the server."""
        if self._pods is None:
            raise RuntimeError("the server was not started")
        return self._pods

    @property
    def cri(self) -> CriClient:
        """The connection to the server."""
        return self.pods.cri

    async def start(self) -> None:
        """Start the server, and give it the image."""
        await self.start_server()
        if self.simulated:
            self._image = await self.cri.pull_image("localhost/demo:latest")
        else:
            words = ("image", "from-host", self._busybox, "--name", IMAGE, "--load")
            await asyncio.to_thread(self.server.run, *words)
            self._image = (await self.cri.image_status(IMAGE)).image.id
        self.pods.image = self._image

    async def start_server(self) -> None:
        """Start the daemon and connect; also after `OwnServer.stop`."""
        if self._pods is not None:
            await self._pods.cri.close()
        self.server.start()
        await self.server.ready()
        self._pods = PodMaker(
            CriClient(self.server.endpoint),
            self._image,
            program=() if self.simulated else (self._busybox,),
            logs=self.server.place / "logs",
        )

    def pids(self) -> dict[str, int]:
        """Return role → pid of the server's processes."""
        return ours(self.server.pid, self.server.state)

    def cpu_s(self) -> float:
        """Return the processor time that these took so far."""
        return self.cgroup.cpu_s(list(self.pids().values()) if self.cgroup.path is None else [])

    def pods_cpu_s(self) -> float:
        """Return the processor time that pods took so far, as far as the host's cgroups count it."""
        base = base_of_cgroups()
        return usage_s(base / self.server.cgroup_parent.strip("/")) if base is not None else 0.0

    def take_down(self) -> bool:
        """Remove everything that the bench made."""
        clean = self.server.take_down()
        if clean:
            self.cgroup.remove()
        return clean
