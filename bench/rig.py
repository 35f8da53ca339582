"""The server under measurement, and pods as performance.md defines one."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import time
from dataclasses import dataclass

from bench.processes import ServerCgroup, ours
from demo.server import OwnServer
from polypod.client import CriClient, CriError, pb

IMAGE = "localhost/bench:latest"
SUBNETS = ("10.234.0.0/20", "fd00:10:234::/64")


@dataclass(frozen=True, slots=True)
class Pod:
    """One sandbox with one container that sleeps."""

    sandbox_id: str
    container_id: str


class Rig:
    """A private server with an image; makes and removes pods through its socket."""

    def __init__(self, *, simulated: bool) -> None:
        self.simulated = simulated
        self.cgroup = ServerCgroup()
        self.server = OwnServer(
            "bench", simulated=simulated, subnets=SUBNETS, on_start=self.cgroup.take
        )
        self.logs = self.server.place / "logs"
        self.logs.mkdir()
        self.image = IMAGE
        self.busybox = shutil.which("busybox") or "busybox"
        self._numbers = itertools.count(1)
        self._cri: CriClient | None = None

    @property
    def cri(self) -> CriClient:
        """The connection to the server."""
        if self._cri is None:
            raise RuntimeError("the server was not started")
        return self._cri

    async def start(self) -> None:
        """Start the server, and give it the image."""
        await self.start_server()
        if self.simulated:
            self.image = await self.cri.pull_image("localhost/demo:latest")
            return
        words = ("image", "from-host", self.busybox, "--name", IMAGE, "--load")
        await asyncio.to_thread(self.server.run, *words)
        self.image = (await self.cri.image_status(IMAGE)).image.id

    async def start_server(self) -> None:
        """Start the daemon and connect; also after `OwnServer.stop`."""
        if self._cri is not None:
            await self._cri.close()
        self.server.start()
        await self.server.ready()
        self._cri = CriClient(self.server.endpoint)

    def pids(self) -> dict[str, int]:
        """Return role → pid of the server's processes."""
        return ours(self.server.pid, self.server.state)

    def cpu_s(self) -> float:
        """Return the processor time that these took so far."""
        return self.cgroup.cpu_s(list(self.pids().values()) if self.cgroup.path is None else [])

    def words(self, *words: str) -> list[str]:
        """Return a command of the image."""
        return list(words) if self.simulated else [self.busybox, *words]

    async def clear(self) -> None:
        """Remove all pods, whatever a part left."""
        for pod in await self.cri.list_sandboxes():
            try:
                await self.cri.stop_sandbox(pod.id)
                await self.cri.remove_sandbox(pod.id)
            except CriError as error:
                print(f"bench: {error}")

    def take_down(self) -> bool:
        """Remove everything that the bench made."""
        clean = self.server.take_down()
        if clean:
            self.cgroup.remove()
        return clean

    # Pods

    def pod_config(self, *, host_network: bool = False) -> pb.PodSandboxConfig:
        """Return a pod with DNS and a log directory."""
        number = next(self._numbers)
        network = pb.NODE if host_network else pb.POD
        options = pb.NamespaceOption(network=network, pid=pb.CONTAINER, ipc=pb.POD)
        return pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(
                name=f"bench-{number}", namespace="bench", uid=f"{os.getpid()}-{number}"
            ),
            hostname="" if host_network else f"bench-{number}",
            log_directory=str(self.logs / str(number)),
            dns_config=pb.DNSConfig(servers=["192.0.2.53"], searches=["bench.example"]),
            linux=pb.LinuxPodSandboxConfig(
                security_context=pb.LinuxSandboxSecurityContext(namespace_options=options)
            ),
        )

    def container_config(
        self, pod: pb.PodSandboxConfig, command: list[str], mounts: list[pb.Mount] | None = None
    ) -> pb.ContainerConfig:
        """Return a container with a memory limit, cpu shares, a seccomp profile and a log file."""
        return pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name="main"),
            image=pb.ImageSpec(image=self.image),
            command=command,
            log_path="main.log",
            mounts=mounts or [],
            linux=pb.LinuxContainerConfig(
                resources=pb.LinuxContainerResources(
                    memory_limit_in_bytes=64 << 20, cpu_shares=512
                ),
                security_context=pb.LinuxContainerSecurityContext(
                    namespace_options=pod.linux.security_context.namespace_options,
                    seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault),
                ),
            ),
        )

    async def pod_ready(self, *, host_network: bool = False) -> tuple[Pod, float]:
        """Make a pod: RunPodSandbox, CreateContainer, StartContainer; return it and the ms."""
        config = self.pod_config(host_network=host_network)
        container = self.container_config(config, self.words("sleep", "100000"))
        began = time.perf_counter()
        sandbox_id = await self.cri.run_sandbox(config)
        container_id = await self.cri.create_container(sandbox_id, container, config)
        await self.cri.start_container(container_id)
        return Pod(sandbox_id, container_id), (time.perf_counter() - began) * 1e3

    async def pod_gone(self, pod: Pod) -> float:
        """Remove a pod: StopContainer(0), RemoveContainer, Stop- and RemovePodSandbox; the ms."""
        began = time.perf_counter()
        await self.cri.stop_container(pod.container_id, 0)
        await self.cri.remove_container(pod.container_id)
        await self.cri.stop_sandbox(pod.sandbox_id)
        await self.cri.remove_sandbox(pod.sandbox_id)
        return (time.perf_counter() - began) * 1e3

    async def pods(self, count: int, *, concurrency: int = 4) -> list[Pod]:
        """Make many pods."""
        made: list[Pod] = []

        async def worker(numbers: list[int]) -> None:
            while numbers:
                numbers.pop()
                made.append((await self.pod_ready())[0])

        numbers = list(range(count))
        await asyncio.gather(*(worker(numbers) for _ in range(concurrency)))
        return made
