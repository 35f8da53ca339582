"""Pods through any CRI socket: made, counted, removed. One pod is one sandbox with one container."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from polypod.client import CriClient, CriError, pb

_numbers = itertools.count(1)
LINE = b"0123456789" * 9 + b" the log\n"
_TAG_BYTES = 30
"""What a CRI log adds to a line at least: a time without fractions, the stream, a tag, spaces."""
LOG_LIMIT_S = 300.0


@dataclass(frozen=True, slots=True)
class Pod:
    """One sandbox with one container that sleeps."""

    sandbox_id: str
    container_id: str


@dataclass(frozen=True, slots=True)
class Cycle:
    """What it took to make some pods and to remove them."""

    ready_ms: list[float]
    gone_ms: list[float]
    ready_s: float
    """For all of them, at their concurrency."""
    gone_s: float


class PodMaker:
    """Makes and removes pods.

    Args:
        cri: the connection.
        image: that the containers run.
        program: what stands before each command: a busybox in the image, or nothing.
        logs: a directory for log directories.
        cgroup_parent: of the pods; empty leaves it to the server.
    """

    def __init__(
        self,
        cri: CriClient,
        image: str,
        *,
        program: Sequence[str],
        logs: Path,
        cgroup_parent: str = "",
    ) -> None:
        self.cri = cri
        self.image = image
        self._program = list(program)
        self._logs = logs
        self._cgroup_parent = cgroup_parent

    def words(self, *words: str) -> list[str]:
        """Return a command of the image."""
        return [*self._program, *words]

    def pod_config(self, *, host_network: bool = False) -> pb.PodSandboxConfig:
        """Return a pod with DNS and a log directory."""
        number = next(_numbers)
        network = pb.NODE if host_network else pb.POD
        options = pb.NamespaceOption(network=network, pid=pb.CONTAINER, ipc=pb.POD)
        return pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(
                name=f"bench-{number}", namespace="bench", uid=f"{os.getpid()}-{number}"
            ),
            hostname="" if host_network else f"bench-{number}",
            log_directory=str(self._logs / str(number)),
            dns_config=pb.DNSConfig(servers=["192.0.2.53"], searches=["bench.example"]),
            linux=pb.LinuxPodSandboxConfig(
                cgroup_parent=self._cgroup_parent,
                security_context=pb.LinuxSandboxSecurityContext(namespace_options=options),
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

    async def ready(
        self, *, host_network: bool = False, handler: str = "", limited: bool = True
    ) -> tuple[Pod, float]:
        """Make a pod: RunPodSandbox, CreateContainer, StartContainer; return it and the ms.

        Args:
            host_network: it has none of its own.
            handler: that it names; empty leaves it to the server.
            limited: its container has a memory limit, which not every handler can set.
        """
        config = self.pod_config(host_network=host_network)
        container = self.container_config(config, self.words("sleep", "100000"))
        if not limited:
            container.linux.ClearField("resources")
        began = time.perf_counter()
        sandbox_id = await self.cri.run_sandbox(config, handler)
        container_id = await self.cri.create_container(sandbox_id, container, config)
        await self.cri.start_container(container_id)
        return Pod(sandbox_id, container_id), (time.perf_counter() - began) * 1e3

    async def gone(self, pod: Pod) -> float:
        """Remove a pod: StopContainer(0), RemoveContainer, Stop- and RemovePodSandbox; the ms."""
        began = time.perf_counter()
        await self.cri.stop_container(pod.container_id, 0)
        await self.cri.remove_container(pod.container_id)
        await self.cri.stop_sandbox(pod.sandbox_id)
        await self.cri.remove_sandbox(pod.sandbox_id)
        return (time.perf_counter() - began) * 1e3

    async def many(self, count: int, *, concurrency: int = 4) -> list[Pod]:
        """Make many pods."""
        made: list[Pod] = []

        async def make(_number: int) -> None:
            made.append((await self.ready())[0])

        await crowd(make, range(count), concurrency)
        return made

    async def cycle(self, pods: int, concurrency: int, *, host_network: bool) -> Cycle:
        """Make pods, then remove them, so many at a time."""
        made: list[Pod] = []
        ready: list[float] = []
        gone: list[float] = []

        async def make(_number: int) -> None:
            pod, took_ms = await self.ready(host_network=host_network)
            made.append(pod)
            ready.append(took_ms)

        async def remove(number: int) -> None:
            gone.append(await self.gone(made[number]))

        ready_s = await crowd(make, range(pods), concurrency)
        gone_s = await crowd(remove, range(pods), concurrency)
        return Cycle(ready, gone, ready_s, gone_s)

    async def clear(self) -> None:
        """Remove all pods, whatever a part left."""

        async def remove(number: int) -> None:
            pod = found[number]
            try:
                await self.cri.stop_sandbox(pod.id)
                await self.cri.remove_sandbox(pod.id)
            except CriError as error:
                print(f"bench: {error}")

        found = await self.cri.list_sandboxes()
        await crowd(remove, range(len(found)), 4)

    async def exec_true(self, pod: Pod) -> float:
        """ExecSync of ``true``; return the ms."""
        began = time.perf_counter()
        answer = await self.cri.exec_sync(pod.container_id, self.words("true"), 10)
        took_ms = (time.perf_counter() - began) * 1e3
        if answer.exit_code != 0:
            raise RuntimeError(f"true answered {answer.exit_code}: {answer.stderr!r}")
        return took_ms

    async def log_file(self, lines: Path) -> float:
        """Let a container write a file of `LINE`s to its stdout; return the seconds until all is logged."""
        config = self.pod_config()
        mounts = [pb.Mount(host_path=str(lines.parent), container_path="/data", readonly=True)]
        words = self.words("cat", f"/data/{lines.name}")
        container = self.container_config(config, words, mounts)
        sandbox_id = await self.cri.run_sandbox(config)
        container_id = await self.cri.create_container(sandbox_id, container, config)
        log = Path(config.log_directory) / "main.log"
        size = lines.stat().st_size
        began = time.perf_counter()
        await self.cri.start_container(container_id)
        # One that copies may still be at it when the container has ended.
        async with asyncio.timeout(LOG_LIMIT_S):
            while (
                await self.cri.container_status(container_id)
            ).status.state == pb.CONTAINER_RUNNING:
                await asyncio.sleep(0.005)
            while log.stat().st_size < size + size // len(LINE) * _TAG_BYTES:
                await asyncio.sleep(0.005)
        took_s = time.perf_counter() - began
        await self.cri.stop_sandbox(sandbox_id)
        await self.cri.remove_sandbox(sandbox_id)
        log.unlink()
        return took_s


async def crowd(
    work: Callable[[int], Awaitable[None]], numbers: Sequence[int], concurrency: int
) -> float:
    """Do the work for every number, so many at a time; return the seconds."""
    left = list(reversed(numbers))

    async def worker() -> None:
        while left:
            await work(left.pop())

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())
    return time.perf_counter() - began


def write_lines(path: Path, size: int) -> int:
    """Write at least so many bytes of `LINE`s; return how many."""
    block = LINE * 10_000
    with path.open("wb") as file:
        for _ in range(size // len(block) + 1):
            file.write(block)
    return path.stat().st_size
