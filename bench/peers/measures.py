"""The measurements on both sides in turns: one side, the other one, and again. Each leaves no pod behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from bench.peers.rows import Gathered
from bench.peers.side import Side, cpu_s, memory_mib
from bench.pods import write_lines
from polypod.client import pb

SETTLE_S = 0.5
"""What follows an answer, such as a shim that ends, counts with the call before."""
CONCURRENCY = (1, 4, 10)
POD_AIM, RATE_AIM, EXEC_AIM, MEMORY_AIM = 1 / 10, 8.0, 1 / 5, 1 / 4


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured on each side."""

    rounds: int = 4
    batch: int = 10
    """Pods of one round, or twice the concurrency where that is more."""
    execs: int = 25
    """In each round."""
    crowd: int = 100
    """Pods for memory, lists and restarts."""
    calls: int = 20
    restarts: int = 3
    log_mb: int = 200
    logs: int = 2
    tree_files: int = 12_000
    tree_mb: int = 210
    pulls: int = 3

    @classmethod
    def quick(cls) -> Sizes:
        """Return enough to see that it works."""
        return cls(2, 2, 5, 4, 3, 1, 5, 1, 600, 6, 1)


async def pods(gathered: Gathered, sides: Sequence[Side], sizes: Sizes) -> None:
    """Latency, throughput and processor time of pods, both networks, three concurrencies."""
    for side in sides:
        await side.pods.cycle(3, 1, host_network=False)  # caches, the bridge, the image's form
    for host_network in (False, True):
        for concurrency in CONCURRENCY:
            for _ in range(sizes.rounds):
                for side in sides:
                    count = max(sizes.batch, 2 * concurrency)
                    await _round(gathered, side, count, concurrency, host_network=host_network)


async def _round(
    gathered: Gathered, side: Side, count: int, concurrency: int, *, host_network: bool
) -> None:
    before_s = cpu_s(side)
    cycle = await side.pods.cycle(count, concurrency, host_network=host_network)
    await asyncio.sleep(SETTLE_S)
    took_ms = (cpu_s(side) - before_s) * 1e3 / count
    where = f"{'host' if host_network else 'pod'} network, {concurrency} at a time"
    aim = None if host_network else POD_AIM
    alone = aim if concurrency == 1 else None
    rate_aim = None if host_network or concurrency != max(CONCURRENCY) else RATE_AIM
    gathered.add(side.name, f"pod_ready, {where}", "ms", cycle.ready_ms, aim=alone)
    gathered.add(side.name, f"pod_gone, {where}", "ms", cycle.gone_ms)
    rate = [count / cycle.ready_s]
    gathered.add(side.name, f"pods ready, {where}", "1/s", rate, aim=rate_aim, more_is_better=True)
    gathered.add(side.name, f"CPU per pod cycle, {where}", "ms", [took_ms], aim=alone)


async def execs(gathered: Gathered, sides: Sequence[Side], sizes: Sizes) -> None:
    """ExecSync(true), one at a time."""
    made = {side.name: (await side.pods.ready())[0] for side in sides}
    for _ in range(sizes.rounds):
        for side in sides:
            before_s = cpu_s(side)
            taken = [await side.pods.exec_true(made[side.name]) for _ in range(sizes.execs)]
            await asyncio.sleep(SETTLE_S)
            cpu_ms = (cpu_s(side) - before_s) * 1e3 / sizes.execs
            gathered.add(side.name, "ExecSync(true)", "ms", taken, aim=EXEC_AIM)
            gathered.add(side.name, "CPU per ExecSync", "ms", [cpu_ms])


async def crowd(gathered: Gathered, sides: Sequence[Side], sizes: Sizes) -> None:
    """With many pods on both sides: memory, list calls, restarts of the daemon."""
    count = sizes.crowd
    for side in sides:
        gathered.add(side.name, "memory without pods (PSS)", "MiB", [memory_mib(side)])
    for side in sides:
        await side.pods.many(count)
    await asyncio.sleep(SETTLE_S)
    for side in sides:
        what = f"memory with {count} pods (PSS)"
        gathered.add(side.name, what, "MiB", [memory_mib(side)], aim=MEMORY_AIM)
    for _ in range(sizes.calls):
        for side in sides:
            await _lists(gathered, side, count)
    for _ in range(sizes.restarts):
        for side in sides:
            await _restart(gathered, side, count)


async def _lists(gathered: Gathered, side: Side, count: int) -> None:
    calls: dict[str, Callable[[], Awaitable[Sequence[object]]]] = {
        "ListPodSandbox": side.pods.cri.list_sandboxes,
        "ListContainers": side.pods.cri.list_containers,
        "ListContainerStats": side.pods.cri.list_container_stats,
    }
    for name, call in calls.items():
        began = time.perf_counter()
        found = await call()
        took_ms = (time.perf_counter() - began) * 1e3
        if len(found) != count:
            raise RuntimeError(f"{side.name}: {name} answered {len(found)} of {count}")
        gathered.add(side.name, f"{name} of {count}", "ms", [took_ms])


async def _restart(gathered: Gathered, side: Side, count: int) -> None:
    await asyncio.to_thread(side.stop_daemon)
    began = time.perf_counter()
    await side.start_daemon()
    took_s = time.perf_counter() - began
    found = await side.pods.cri.list_containers()
    running = [each for each in found if each.state == pb.CONTAINER_RUNNING]
    if len(running) != count:
        raise RuntimeError(f"{side.name}: after a restart {len(running)} of {count} run")
    gathered.add(side.name, f"restart with {count} pods, until lists answer", "s", [took_s])


async def logs(gathered: Gathered, sides: Sequence[Side], sizes: Sizes) -> None:
    """Bytes of lines per second from a container's stdout into its CRI log file."""
    for _ in range(sizes.logs):
        for side in sides:
            data = side.place / "data"
            data.mkdir(exist_ok=True)
            size = write_lines(data / "lines", sizes.log_mb * 1_000_000)
            before_s = cpu_s(side)
            rate = size / 1e6 / await side.pods.log_file(data / "lines")
            cpu_ms = (cpu_s(side) - before_s) * 1e3 / (size / 1e6)
            what = f"log rate, {sizes.log_mb} MB of lines"
            gathered.add(side.name, what, "MB/s", [rate], more_is_better=True)
            gathered.add(side.name, "CPU per MB of log", "ms", [cpu_ms])


MEASURES: dict[str, Callable[[Gathered, Sequence[Side], Sizes], Awaitable[None]]] = {
    "pods": pods,
    "exec": execs,
    "crowd": crowd,
    "log_rate": logs,
}
