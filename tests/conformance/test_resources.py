"""Limits, scores and cgroups, as a kubelet sets them, and what is left of them."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest
from conformance.pods import Pods, eventually, refused
from conformance.subjects import host_lacks, host_offers

from polypod.client import CriClient, pb
from polypod.plugin.runtime import Feature

Resources = pb.LinuxContainerResources
CGROUPS = Path("/sys/fs/cgroup")
KUBELET_MANAGES = ("cpu", "cpuacct", "cpuset", "memory", "pids", "systemd")


@pytest.fixture(autouse=True)
def real(handler) -> None:
    handler.needs_kernel()
    handler.needs(Feature.RESOURCES)


def v1(controller: str) -> Path:
    """Return a controller's own hierarchy, or skip."""
    place = CGROUPS / controller
    if not (place / "tasks").exists():
        host_lacks(f"no cgroup v1 hierarchy {controller}")
    return place


async def group(pod, box: str, controller: str) -> Path:
    """Return a container's directory in a hierarchy."""
    pid = (await pod.info(box))["pid"]
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    rows = [line.split(":", 2) for line in lines]
    path = next(row[2] for row in rows if controller in row[1].split(","))
    return v1(controller) / path.lstrip("/")


async def test_limits_are_in_force_and_reported(pods: Pods, cri: CriClient, handler):
    handler.needs_this_kernel()
    wanted = Resources(
        cpu_period=50_000,
        cpu_quota=25_000,
        cpu_shares=512,
        memory_limit_in_bytes=64 << 20,
        cpuset_cpus="0",
        cpuset_mems="0",
    )
    pod = await pods.run()
    box = await pod.start(resources=wanted)
    told = (await cri.container_status(box)).status.resources.linux
    assert told == wanted
    cpu, memory = await group(pod, box, "cpu"), await group(pod, box, "memory")
    assert (cpu / "cpu.cfs_quota_us").read_text() == "25000\n"
    assert (cpu / "cpu.cfs_period_us").read_text() == "50000\n"
    assert (cpu / "cpu.shares").read_text() == "512\n"
    assert (memory / "memory.limit_in_bytes").read_text() == f"{64 << 20}\n"
    cpuset = await group(pod, box, "cpuset")
    assert (cpuset / "cpuset.cpus").read_text() == "0\n"


async def test_available_memory_is_what_is_left_of_the_limit(pods: Pods, cri: CriClient):
    pod = await pods.run()
    box = await pod.start(resources=Resources(memory_limit_in_bytes=64 << 20))
    memory = (await cri.container_stats(box)).memory
    left = memory.available_bytes.value + memory.working_set_bytes.value
    assert left == 64 << 20


async def test_a5_01_every_hugepage_size_with_limit_0_is_accepted(pods: Pods):
    sizes = [item.name.partition("-")[2] for item in Path("/sys/kernel/mm/hugepages").glob("*")]
    limits = [
        pb.HugepageLimit(page_size=_spelling(size), limit=0)
        for size in (*sizes, "2048kB", "1048576kB", "64kB")
    ]
    pod = await pods.run()
    assert (await pod.run("echo fine", resources=Resources(hugepage_limits=limits))).code == 0


def _spelling(size: str) -> str:
    """Return ``2MB`` for ``2048kB``, as the kubelet spells it."""
    number = int(size.removesuffix("kB"))
    for unit in ("KB", "MB", "GB"):
        if number < 1024:
            return f"{number}{unit}"
        number //= 1024
    raise AssertionError(size)


@pytest.mark.parametrize("score", [-997, -1000, 0, 500, 1000])
async def test_a5_02_scores_are_set_as_far_as_the_host_allows(pods: Pods, score: int):
    pod = await pods.run()
    ended = await pod.run("cat /proc/self/oom_score_adj", resources=Resources(oom_score_adj=score))
    own = int(Path("/proc/self/oom_score_adj").read_text())
    # Without CAP_SYS_RESOURCE nobody gets below what he has himself.
    assert int(ended.out) in {score, max(score, own)}


async def test_a5_03_the_kubelets_cgroups_are_used_and_given_back(
    pods: Pods, cri: CriClient, handler
):
    handler.needs_this_kernel()
    v1("memory")
    top = f"polypod-cri-kubepods-{secrets.token_hex(3)}"
    inner = f"{top}/burstable/pod{secrets.token_hex(8)}"
    managed = [CGROUPS / name for name in KUBELET_MANAGES if (CGROUPS / name / "tasks").exists()]
    for place in managed:
        _make(place, inner)
    try:
        pod = await pods.run(cgroup_parent=f"/{inner}")
        box = await pod.start()
        lines = Path(f"/proc/{(await pod.info(box))['pid']}/cgroup").read_text().splitlines()
        paths = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in lines}
        assert all(path.startswith(f"/{inner}/") for name, path in paths.items() if name)
        await cri.stop_sandbox(pod.id)
        await cri.remove_sandbox(pod.id)

        async def gone() -> bool:
            rest = [each for each in CGROUPS.iterdir() if each not in managed and each.is_dir()]
            return not any((place / top).exists() for place in rest)

        await eventually(gone, "no directory where the kubelet does not clean up")
        # What is the kubelet's it finds as it left it: empty, but there.
        assert all((place / inner).is_dir() for place in managed)
        assert not any(each.is_dir() for place in managed for each in (place / inner).iterdir())
    finally:
        for place in (CGROUPS, *CGROUPS.iterdir()):
            _unmake(place / top)


def _make(place: Path, inner: str) -> None:
    at = place
    for name in inner.split("/"):
        at = at / name
        at.mkdir(exist_ok=True)
        if (at / "cpuset.cpus").exists():
            for file in ("cpuset.cpus", "cpuset.mems"):
                (at / file).write_text((at.parent / file).read_text())


def _unmake(top: Path) -> None:
    """Remove what the kubelet would remove, and what a failed test has left elsewhere."""
    for each in sorted(top.glob("**/"), reverse=True):
        each.rmdir()


async def test_the_default_parent_is_the_servers(pods: Pods, server, handler):
    handler.needs_this_kernel()
    pod = await pods.run()
    box = await pod.start()
    lines = Path(f"/proc/{(await pod.info(box))['pid']}/cgroup").read_text().splitlines()
    paths = [line.split(":", 2)[2] for line in lines if line.split(":", 2)[1]]
    assert paths
    assert all(path.startswith(f"{server.cgroup_parent}/") for path in paths)


async def test_cgroups_are_gone_with_the_pod(pods: Pods, cri: CriClient, server, handler):
    handler.needs_this_kernel()
    before = server.residue()["cgroups"]
    pod = await pods.run()
    await pod.start("(sleep 1000 &); exec sleep 1000", resources=Resources(cpu_shares=512))
    assert server.residue()["cgroups"] > before
    await cri.stop_sandbox(pod.id)
    await cri.remove_sandbox(pod.id)
    assert await asyncio.to_thread(server.settled, {**server.residue(), "cgroups": before}) == {}


@pytest.mark.parametrize(
    ("swap", "total"),
    [(0, 32 << 20), (48 << 20, 48 << 20), (-1, None)],
    ids=["none", "some", "any"],
)
async def test_swap_counts_with_memory(pods: Pods, swap: int, total: int | None, handler):
    handler.needs_this_kernel()
    accounted = v1("memory") / "memory.memsw.limit_in_bytes"
    if not accounted.exists():
        host_lacks("no account of swap")
    pod = await pods.run()
    limits = Resources(memory_limit_in_bytes=32 << 20, memory_swap_limit_in_bytes=swap)
    box = await pod.start(resources=limits)
    found = int((await group(pod, box, "memory") / accounted.name).read_text())
    assert found == total if total is not None else found > 1 << 60


@pytest.mark.parametrize(
    ("limits", "word"),
    [
        (Resources(hugepage_limits=[pb.HugepageLimit(page_size="2MB", limit=1 << 21)]), "hugetlb"),
        (Resources(unified={"memory.high": "100000000"}), "cgroup v2"),
    ],
    ids=["hugepages", "unified"],
)
async def test_e23_a_limit_that_this_host_cannot_keep_is_refused(pods: Pods, limits, word: str):
    if word == "cgroup v2" and (CGROUPS / "cgroup.controllers").exists():
        host_offers("cgroup v2")
    if word == "hugetlb" and "hugetlb" in Path("/proc/cgroups").read_text():
        host_offers("a hugetlb controller")
    pod = await pods.run()
    with refused("FAILED_PRECONDITION", word):
        await pod.create(resources=limits)
