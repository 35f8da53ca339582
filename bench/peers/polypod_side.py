"""polypod as one side of the comparison."""

from __future__ import annotations

import asyncio

from bench.peers.side import BUSYBOX, Archives, wait_ready
from bench.pods import PodMaker
from bench.processes import ServerCgroup
from demo.server import OwnServer
from polypod.client import CriClient


class PolypodSide:
    """A private polypod server.

    Args:
        number: tells the servers of one run apart: subnets, cgroups.
    """

    name = "polypod"

    def __init__(self, number: int) -> None:
        self.cgroup = ServerCgroup(f"polypod-{number}")
        self._server = OwnServer(
            f"peers{number}",
            simulated=False,
            subnets=(f"10.236.{number * 16}.0/20",),
            on_start=self.cgroup.take,
        )
        self.place = self._server.place
        self._pods: PodMaker | None = None

    @property
    def pods(self) -> PodMaker:
        """What makes pods."""
        if self._pods is None:
            raise RuntimeError("polypod was not started")
        return self._pods

    async def start(self, archives: Archives | None) -> None:
        """Start it, and give it the busybox image; it has no use for a sandbox image."""
        await self.start_daemon()
        if archives is not None:
            path = str(archives.busybox)
            await asyncio.to_thread(self._server.run, "image", "load", path)

    async def start_daemon(self) -> None:
        """Start the daemon and connect."""
        if self._pods is not None:
            await self._pods.cri.close()
        self._server.start()
        cri = CriClient(self._server.endpoint)
        self._pods = PodMaker(cri, BUSYBOX, program=("/bin/busybox",), logs=self.place / "logs")
        await wait_ready(cri)

    def stop_daemon(self) -> None:
        """SIGTERM; it leaves with pods running."""
        self._server.stop()

    async def take_down(self) -> bool:
        """Remove pods, processes and directories."""
        if self._pods is not None:
            await self._pods.cri.close()
        clean = await asyncio.to_thread(self._server.take_down)
        if clean:
            self.cgroup.remove()
        return clean

    def log_tail(self) -> str:
        """Return the end of the daemon's log."""
        return self._server.log_tail()
