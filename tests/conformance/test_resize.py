"""Limits are changed while containers run: in force, on record, all or none."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest
from conformance.pods import Pods, refused
from conformance.test_resources import group

from polypod.client import CriClient, pb
from polypod.plugin.runtime import Feature

Resources = pb.LinuxContainerResources
MIB = 1 << 20


@pytest.fixture(autouse=True)
def limited(handler) -> None:
    handler.needs(Feature.RESOURCES)


@pytest.fixture(autouse=True)
def nothing_left(server):
    """Compare before and after, as the fixture of this name does elsewhere; one test kills the daemon."""
    before = server.residue()
    yield
    assert server.settled(before, ignore="processes") == {}


async def update(cri: CriClient, box: str, annotations=None, **fields) -> None:
    """UpdateContainerResources."""
    request = pb.UpdateContainerResourcesRequest(
        container_id=box, linux=Resources(**fields), annotations=annotations or {}
    )
    await cri.call(cri.runtime, "UpdateContainerResources", request)


async def resize(cri: CriClient, pod: str, **parts) -> None:
    """UpdatePodSandboxResources."""
    request = pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod, **parts)
    await cri.call(cri.runtime, "UpdatePodSandboxResources", request)


async def told(cri: CriClient, box: str) -> pb.LinuxContainerResources:
    """Return what ContainerStatus says is in force."""
    return (await cri.container_status(box)).status.resources.linux


async def available(cri: CriClient, box: str) -> int:
    """Return the memory limit as the counters know it."""
    memory = (await cri.container_stats(box)).memory
    return memory.available_bytes.value + memory.working_set_bytes.value


async def test_a2_a_running_container_is_resized_and_says_so(pods: Pods, cri: CriClient):
    pod = await pods.run()
    box = await pod.start(resources=Resources(cpu_shares=512, memory_limit_in_bytes=64 * MIB))
    await update(cri, box, memory_limit_in_bytes=128 * MIB, cpu_quota=50_000, cpu_period=100_000)
    status = await told(cri, box)
    assert status.memory_limit_in_bytes == 128 * MIB
    assert (status.cpu_quota, status.cpu_period) == (50_000, 100_000)
    assert status.cpu_shares == 512, "what was not asked for has changed"
    assert await available(cri, box) == 128 * MIB
    assert (await cri.container_status(box)).status.state == pb.CONTAINER_RUNNING


async def test_memory_grows_and_shrinks_again(pods: Pods, cri: CriClient):
    pod = await pods.run()
    box = await pod.start(resources=Resources(memory_limit_in_bytes=64 * MIB))
    for size in (256, 32, 96):
        await update(cri, box, memory_limit_in_bytes=size * MIB)
        assert await available(cri, box) == size * MIB


async def test_a_created_container_starts_with_the_limits_it_was_updated_to(
    pods: Pods, cri: CriClient
):
    pod = await pods.run()
    box = await pod.create(resources=Resources(memory_limit_in_bytes=64 * MIB))
    await update(cri, box, memory_limit_in_bytes=96 * MIB)
    assert (await told(cri, box)).memory_limit_in_bytes == 96 * MIB
    await cri.start_container(box)
    assert await available(cri, box) == 96 * MIB


async def test_an_ended_container_is_not_updated(pods: Pods, cri: CriClient):
    pod = await pods.run()
    ended = await pod.run("exit 0")
    with refused("FAILED_PRECONDITION", "exited"):
        await update(cri, ended.status.id, cpu_shares=100)


async def test_contradictions_are_refused_and_change_nothing(pods: Pods, cri: CriClient):
    pod = await pods.run()
    box = await pod.start(resources=Resources(memory_limit_in_bytes=64 * MIB, cpu_shares=512))
    before = await told(cri, box)
    with refused("INVALID_ARGUMENT", "swap"):
        await update(
            cri,
            box,
            cpu_shares=100,
            memory_limit_in_bytes=128 * MIB,
            memory_swap_limit_in_bytes=96 * MIB,
        )
    with refused("INVALID_ARGUMENT", "cpu_period"):
        await update(cri, box, cpu_shares=100, cpu_period=7)
    assert await told(cri, box) == before
    assert await available(cri, box) == 64 * MIB


async def test_less_memory_than_is_in_use_is_refused_and_changes_nothing(
    pods: Pods, cri: CriClient, handler
):
    pod = await pods.run()
    command = handler.programs["resident"]
    box = await pod.start(command, resources=Resources(memory_limit_in_bytes=64 * MIB))
    await pod.said(box, "resident")
    before = await told(cri, box)
    with refused("FAILED_PRECONDITION" if handler.simulated else "UNKNOWN", box):
        await update(cri, box, cpu_shares=100, memory_limit_in_bytes=1 * MIB)
    assert await told(cri, box) == before
    assert await available(cri, box) == 64 * MIB
    assert (await cri.container_status(box)).status.state == pb.CONTAINER_RUNNING


async def test_annotations_of_an_update_are_kept_apart(pods: Pods, cri: CriClient):
    pod = await pods.run()
    box = await pod.start(annotations={"mine": "1"})
    await update(cri, box, cpu_shares=300, annotations={"why": "grown"})
    answer = await cri.container_status(box, verbose=True)
    assert dict(answer.status.annotations) == {"mine": "1"}
    assert json.loads(answer.info["info"])["updateAnnotations"] == {"why": "grown"}


async def test_an_update_survives_a_restart(pods: Pods, cri: CriClient, server, handler):
    handler.needs_protocol("Resizable")
    pod = await pods.run()
    box = await pod.start(resources=Resources(memory_limit_in_bytes=64 * MIB))
    created = await pod.create(name="second", resources=Resources(cpu_shares=100))
    await update(cri, box, memory_limit_in_bytes=80 * MIB)
    await update(cri, created, cpu_shares=200)
    await resize(cri, pod.id, resources=Resources(cpu_shares=777))
    server.kill()
    server.launch()
    await server.ready()
    await cri.wait_ready(30)
    assert (await told(cri, box)).memory_limit_in_bytes == 80 * MIB
    assert (await told(cri, created)).cpu_shares == 200
    info = (await cri.sandbox_status(pod.id, verbose=True)).info["info"]
    assert json.loads(info)["limits"]["resources"]["cpu_shares"] == 777


async def test_the_files_of_every_controller_are_written(pods: Pods, cri: CriClient, handler):
    handler.needs_this_kernel()
    pod = await pods.run()
    box = await pod.start(resources=Resources(memory_limit_in_bytes=64 * MIB))
    await update(
        cri,
        box,
        cpu_quota=25_000,
        cpu_period=50_000,
        cpu_shares=300,
        cpuset_cpus="0",
        memory_limit_in_bytes=128 * MIB,
    )
    cpu, memory = await group(pod, box, "cpu"), await group(pod, box, "memory")
    assert (cpu / "cpu.cfs_quota_us").read_text() == "25000\n"
    assert (cpu / "cpu.cfs_period_us").read_text() == "50000\n"
    assert (cpu / "cpu.shares").read_text() == "300\n"
    assert (memory / "memory.limit_in_bytes").read_text() == f"{128 * MIB}\n"
    cpuset = await group(pod, box, "cpuset")
    assert (cpuset / "cpuset.cpus").read_text() == "0\n"


async def test_a_refusal_in_the_middle_puts_every_file_back(pods: Pods, cri: CriClient, handler):
    handler.needs_this_kernel()
    pod = await pods.run()
    box = await pod.start(resources=Resources(memory_limit_in_bytes=64 * MIB, cpu_shares=512))
    cpu, memory = await group(pod, box, "cpu"), await group(pod, box, "memory")
    with refused("UNKNOWN", "cpuset.cpus"):
        await update(cri, box, memory_limit_in_bytes=96 * MIB, cpu_shares=9, cpuset_cpus="4000")
    assert (cpu / "cpu.shares").read_text() == "512\n"
    assert (memory / "memory.limit_in_bytes").read_text() == f"{64 * MIB}\n"
    assert (await told(cri, box)).cpu_shares == 512


async def test_scores_of_running_processes_follow(pods: Pods, cri: CriClient, handler):
    handler.needs_this_kernel()
    pod = await pods.run()
    box = await pod.start(resources=Resources(oom_score_adj=100))
    pid = (await pod.info(box))["pid"]
    await update(cri, box, oom_score_adj=900)
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "900\n"
    assert (await told(cri, box)).oom_score_adj == 900


async def test_a_pod_is_resized_with_its_overhead(pods: Pods, cri: CriClient, handler):
    handler.needs_protocol("Resizable")
    pod = await pods.run()
    box = await pod.start()
    await resize(
        cri,
        pod.id,
        resources=Resources(memory_limit_in_bytes=512 * MIB, cpu_shares=1000, cpu_quota=100_000),
        overhead=Resources(memory_limit_in_bytes=64 * MIB, cpu_shares=24, cpu_quota=50_000),
    )
    info = json.loads((await cri.sandbox_status(pod.id, verbose=True)).info["info"])
    assert info["limits"]["resources"]["memory_limit_in_bytes"] == 512 * MIB
    assert info["limits"]["overhead"]["cpu_shares"] == 24
    handler.needs_this_kernel()
    cpu = (await group(pod, box, "cpu")).parent
    memory = (await group(pod, box, "memory")).parent
    assert (cpu / "cpu.shares").read_text() == "1024\n"
    assert (cpu / "cpu.cfs_quota_us").read_text() == "150000\n"
    assert (memory / "memory.limit_in_bytes").read_text() == f"{576 * MIB}\n"
    await resize(cri, pod.id, resources=Resources(memory_limit_in_bytes=256 * MIB))
    assert (memory / "memory.limit_in_bytes").read_text() == f"{320 * MIB}\n"


async def test_a_resized_pod_is_still_the_one_that_was_run(pods: Pods, cri: CriClient, handler):
    handler.needs_protocol("Resizable")
    config = pods.config()
    pod = await cri.run_sandbox(config)
    await resize(cri, pod, resources=Resources(cpu_shares=100))
    assert await cri.run_sandbox(config) == pod, "the kubelet's retry made another pod"


async def test_a_pod_that_is_gone_or_stopped_is_not_resized(pods: Pods, cri: CriClient):
    with refused("NOT_FOUND"):
        await resize(cri, secrets.token_hex(32), resources=Resources(cpu_shares=100))
    pod = await pods.run()
    with refused("INVALID_ARGUMENT", "resources"):
        await resize(cri, pod.id)
    await cri.stop_sandbox(pod.id)
    with refused("FAILED_PRECONDITION", "not ready"):
        await resize(cri, pod.id, resources=Resources(cpu_shares=100))
