"""The measurements. Each part leaves no pod behind."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from bench import handlers, importing, noise
from bench.handlers import Turns
from bench.pods import write_lines
from bench.processes import pss_kib
from bench.rig import Rig
from bench.samples import Result, result
from polypod.client import pb

CONCURRENCY = (1, 4, 10, 20)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    pods: int = 40
    execs: int = 100
    crowd: tuple[int, int] = (100, 300)
    """Pods for memory and lists; restart takes the first."""
    log_mb: int = 200
    image_files: int = 20_000
    turns: Turns = field(default_factory=Turns)
    handlers: tuple[str, ...] = tuple(handlers.KINDS)

    @classmethod
    def quick(cls) -> Sizes:
        """Return enough to see that it works."""
        return cls(
            pods=8, execs=10, crowd=(5, 15), log_mb=10, image_files=500, turns=Turns(2, 2, 1, 3)
        )


Part = Callable[[Rig, Sizes], Awaitable[list[Result]]]


async def pod_ready(rig: Rig, sizes: Sizes) -> list[Result]:
    """Latency, throughput and processor time of pods, both networks, four concurrencies."""
    await rig.pods.cycle(3, 1, host_network=False)  # caches, imports, the image's form
    rows = []
    for host_network in (False, True):
        for concurrency in CONCURRENCY:
            rows += await _rows(rig, max(sizes.pods, concurrency), concurrency, host_network)
    return rows


async def _rows(rig: Rig, pods: int, concurrency: int, host_network: bool) -> list[Result]:
    """Return the two rows of one network and concurrency.

    ``others_pct`` is the share of all processors that neither server nor client took: other programs
    of the host, the pods' own, and the kernel's work behind the answers.
    """
    before_s, busy_s, client_s = rig.cpu_s(), noise.busy_s(), time.process_time()
    began = time.perf_counter()
    cycle = await rig.pods.cycle(pods, concurrency, host_network=host_network)
    ours_s, wall_s = rig.cpu_s() - before_s, time.perf_counter() - began
    others_s = noise.busy_s() - busy_s - ours_s - (time.process_time() - client_s)
    others = 100 * max(0.0, others_s) / wall_s / (os.cpu_count() or 1)
    where = f"{'host' if host_network else 'pod'} network, {concurrency} at a time"
    return [
        result(
            f"pod_ready, {where}",
            "ms",
            cycle.ready_ms,
            pods_per_s=pods / cycle.ready_s,
            cpu_ms_cycle=ours_s * 1e3 / pods,
            others_pct=others,
        ),
        result(f"pod_gone, {where}", "ms", cycle.gone_ms, pods_per_s=pods / cycle.gone_s),
    ]


async def exec_sync(rig: Rig, sizes: Sizes) -> list[Result]:
    """ExecSync(true), one at a time."""
    pod, _ms = await rig.pods.ready()
    before_s = rig.cpu_s()
    taken = [await rig.pods.exec_true(pod) for _ in range(sizes.execs)]
    cpu_ms = (rig.cpu_s() - before_s) * 1e3 / sizes.execs
    return [result("ExecSync(true)", "ms", taken, cpu_ms=cpu_ms)]


async def memory(rig: Rig, sizes: Sizes) -> list[Result]:
    """PSS of our four processes without pods, with some, with many; what one more pod costs."""
    some, many = sizes.crowd
    rows, totals, have = [], [], 0
    for count in (0, some, many):
        await rig.pods.many(count - have)
        have = count
        sizes_kib = {role: pss_kib(pid) for role, pid in rig.pids().items()}
        total = sum(sizes_kib.values())
        totals.append(total)
        facts = {f"{role}_mib": kib / 1024 for role, kib in sizes_kib.items()}
        rows.append(result(f"memory with {count} pods (PSS)", "MiB", [total / 1024], **facts))
    per_pod = (totals[2] - totals[1]) / (many - some)
    return [*rows, result("memory per further pod", "KiB", [per_pod])]


async def lists(rig: Rig, sizes: Sizes) -> list[Result]:
    """List calls with many pods."""
    count = sizes.crowd[1]
    await rig.pods.many(count)
    calls: dict[str, Callable[[], Awaitable[Sequence[object]]]] = {
        "ListPodSandbox": rig.cri.list_sandboxes,
        "ListContainers": rig.cri.list_containers,
        "ListContainerStats": rig.cri.list_container_stats,
    }
    rows = []
    for name, call in calls.items():
        taken = []
        for _ in range(20):
            began = time.perf_counter()
            found = await call()
            taken.append((time.perf_counter() - began) * 1e3)
            if len(found) != count:
                raise RuntimeError(f"{name} answered {len(found)} of {count}")
        rows.append(result(f"{name} of {count}", "ms", taken))
    return rows


async def restart(rig: Rig, sizes: Sizes) -> list[Result]:
    """From the start of the daemon's process until the lists answer, with pods."""
    count = sizes.crowd[0]
    await rig.pods.many(count)
    taken = []
    for _ in range(3):
        await asyncio.to_thread(rig.server.stop)
        began = time.perf_counter()
        await rig.start_server()
        found = await rig.cri.list_containers()
        taken.append(time.perf_counter() - began)
        if rig.simulated:
            continue  # simulated programs end with the daemon
        running = [each for each in found if each.state == pb.CONTAINER_RUNNING]
        if len(running) != count:
            raise RuntimeError(f"after a restart {len(running)} of {count} run")
    return [result(f"restart with {count} pods, until lists answer", "s", taken)]


async def log_rate(rig: Rig, sizes: Sizes) -> list[Result]:
    """Bytes of lines per second from a container's stdout into its CRI log file."""
    if rig.simulated:
        raise RuntimeError("the simulator has its own pumps: there is no logger to measure")
    data = rig.server.place / "data"
    data.mkdir(exist_ok=True)
    size = write_lines(data / "lines", sizes.log_mb * 1_000_000)
    before_s = rig.cpu_s()
    taken = [size / 1e6 / await rig.pods.log_file(data / "lines") for _ in range(3)]
    cpu_ms = (rig.cpu_s() - before_s) * 1e3 / (3 * size / 1e6)
    return [result(f"log rate, {sizes.log_mb} MB of lines", "MB/s", taken, cpu_ms_per_mb=cpu_ms)]


async def import_image(rig: Rig, sizes: Sizes) -> list[Result]:
    """Import of a large image, the answers of the server meanwhile, and its removal."""
    return await importing.measure(rig, sizes.image_files)


async def each_handler(rig: Rig, sizes: Sizes) -> list[Result]:
    """The same pod on every handler of this host, in turns, on a server of its own."""
    if rig.simulated:
        raise RuntimeError("handlers are compared with real pods")
    return await handlers.measure(sizes.turns, sizes.handlers)


PARTS: dict[str, Part] = {
    "pod_ready": pod_ready,
    "exec": exec_sync,
    "log_rate": log_rate,
    "restart": restart,
    "memory": memory,
    "lists": lists,
    "import": import_image,
    "handlers": each_handler,
}
