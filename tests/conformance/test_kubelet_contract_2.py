"""The lines of F.2 from 10 on, as far as they need no crash."""

from __future__ import annotations

import asyncio
import http.client
from collections import Counter
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import pytest
from conformance.pods import Pods, eventually, refused

from polypod.client import CriClient, pb
from polypod.plugin.runtime import Feature

# 10


@pytest.mark.parametrize("propagation", ["PROPAGATION_PRIVATE", "PROPAGATION_HOST_TO_CONTAINER"])
async def test_f2_10_propagation_modes_are_accepted(
    pods: Pods, handler, cri: CriClient, shared_mount: Path, propagation: str
):
    handler.needs(Feature.HOST_PATH_MOUNTS)
    mode = pb.MountPropagation.Value(propagation)
    mount = pb.Mount(host_path=str(shared_mount), container_path="/data", propagation=mode)
    pod = await pods.run()
    box = await pod.start(mounts=[mount])
    told = (await cri.container_status(box)).status
    assert (told.state, list(told.mounts)) == (pb.CONTAINER_RUNNING, [mount])


async def test_f2_10_bidirectional_is_for_privileged_containers(pods: Pods, handler, tmp_path):
    handler.needs(Feature.HOST_PATH_MOUNTS, Feature.BIDIRECTIONAL_MOUNTS)
    mode = pb.PROPAGATION_BIDIRECTIONAL
    mount = pb.Mount(host_path=str(tmp_path), container_path="/data", propagation=mode)
    pod = await pods.run()
    with refused("INVALID_ARGUMENT", "privileged"):
        await pod.start(mounts=[mount])


async def test_f2_10_bidirectional_is_refused_where_the_type_lacks_it(pods, handler, tmp_path):
    handler.lacks(Feature.BIDIRECTIONAL_MOUNTS)
    mode = pb.PROPAGATION_BIDIRECTIONAL
    mount = pb.Mount(host_path=str(tmp_path), container_path="/data", propagation=mode)
    pod = await pods.run()
    # The first thing that is lacking is named: without host paths nothing propagates at all.
    paths = Feature.HOST_PATH_MOUNTS in handler.features
    what = "bidirectional" if paths else "mounts of host paths"
    with refused("FAILED_PRECONDITION", what, handler.name):
        await pod.create(mounts=[mount])


# 11


async def test_f2_11_out_of_memory_is_told_as_oomkilled_and_137(pods: Pods, handler):
    handler.needs(Feature.RESOURCES)
    limits = pb.LinuxContainerResources(
        memory_limit_in_bytes=24 << 20, memory_swap_limit_in_bytes=24 << 20
    )
    pod = await pods.run()
    # Not by a shell that lives on: the first process itself must run out.
    ended = await pod.run(handler.programs["out_of_memory"], resources=limits)
    assert (ended.status.reason, ended.code) == ("OOMKilled", 137)


async def test_f2_11_a_killed_container_is_not_told_as_oomkilled(pods: Pods, cri: CriClient):
    pod = await pods.run()
    box = await pod.start()
    await cri.stop_container(box, 0)
    ended = await pod.ended(box)
    assert (ended.status.reason, ended.code) == ("Error", 137)


# 12


async def test_f2_12_counters_grow_and_no_rate_is_told_before_it_is_known(
    pods: Pods, handler, cri: CriClient
):
    pod = await pods.run()
    box = await pod.start(handler.programs["busy"])
    first = await cri.container_stats(box)
    assert first.cpu.timestamp > 0
    if first.cpu.HasField("usage_nano_cores"):
        assert first.cpu.usage_nano_cores.value > 0
    seen = [first]

    async def rate() -> bool:
        seen.append(await cri.container_stats(box))
        return seen[-1].cpu.HasField("usage_nano_cores")

    await eventually(rate, "a rate")
    assert seen[-1].cpu.usage_nano_cores.value > 0
    counters = [each.cpu.usage_core_nano_seconds.value for each in seen]
    times = [each.cpu.timestamp for each in seen]
    assert counters == sorted(counters)
    assert times == sorted(times)
    assert counters[0] < counters[-1]


async def test_f2_12_memory_and_identity(pods: Pods, handler, cri: CriClient):
    pod = await pods.run()
    box = await pod.start(labels={"a": "b"}, annotations={"c": "d"})
    stats = await cri.container_stats(box)
    assert stats.attributes.metadata.name == "box"
    assert (dict(stats.attributes.labels), dict(stats.attributes.annotations)) == (
        {"a": "b"},
        {"c": "d"},
    )
    assert stats.memory.HasField("working_set_bytes")
    assert stats.memory.working_set_bytes.value <= stats.memory.usage_bytes.value
    if not handler.simulated:
        assert stats.memory.working_set_bytes.value > 0


async def test_f2_12_the_writable_layer_is_on_the_image_file_system(pods, cri: CriClient):
    pod = await pods.run()
    box = await pod.start()

    async def layer():
        stats = await cri.container_stats(box)
        return stats.writable_layer if stats.HasField("writable_layer") else None

    found = await eventually(layer, "a sample of the writable layer")
    (usage,) = (await cri.image_filesystem()).image_filesystems
    assert found.fs_id.mountpoint == usage.fs_id.mountpoint
    assert found.timestamp > 0


async def test_list_of_stats_has_the_running_ones(pods: Pods, cri: CriClient):
    pod, other = await pods.run("one"), await pods.run("two")
    await pod.create(name="created")
    running = [await pod.start(name="a", labels={"x": "y"}), await other.start(name="b")]
    await pod.run("exit 0", name="ended")
    assert {each.attributes.id for each in await cri.list_container_stats()} == set(running)
    for chosen, expected in (
        (pb.ContainerStatsFilter(pod_sandbox_id=pod.id), running[:1]),
        (pb.ContainerStatsFilter(label_selector={"x": "y"}), running[:1]),
        (pb.ContainerStatsFilter(id=running[1][:16]), running[1:]),
        (pb.ContainerStatsFilter(id=running[1], pod_sandbox_id=pod.id), []),
    ):
        request = pb.ListContainerStatsRequest(filter=chosen)
        answer = await cri.call(cri.runtime, "ListContainerStats", request)
        assert [each.attributes.id for each in answer.stats] == expected


# 13


async def test_f2_13_updates_are_done_or_refused_with_the_feature(pods: Pods, cri, handler):
    pod = await pods.run()
    box = await pod.start()
    limits = pb.LinuxContainerResources(cpu_shares=100)
    calls = (
        ("UpdateContainerResources", {"container_id": box, "linux": limits}),
        ("UpdatePodSandboxResources", {"pod_sandbox_id": pod.id, "resources": limits}),
    )
    for call, fields in calls:
        request = getattr(pb, f"{call}Request")(**fields)
        if Feature.RESOURCES in handler.features and handler.can(call):
            await cri.call(cri.runtime, call, request)
        elif Feature.RESOURCES in handler.features:
            with refused("FAILED_PRECONDITION", handler.name, "fixes what a pod may take"):
                await cri.call(cri.runtime, call, request)
        else:
            with refused("FAILED_PRECONDITION", Feature.RESOURCES):
                await cri.call(cri.runtime, call, request)


# 15


async def test_f2_15_two_equal_runs_at_once_give_one_sandbox(pods: Pods, cri: CriClient):
    config = pods.config()
    ids = await asyncio.gather(*(cri.run_sandbox(config) for _ in range(5)))
    assert len(set(ids)) == 1
    assert [each.id for each in await cri.list_sandboxes()] == ids[:1]


async def test_f2_15_two_equal_creates_at_once_give_one_container(pods: Pods, cri: CriClient):
    pod = await pods.run()
    config = pod.container_config("sleep 1000")
    calls = (cri.create_container(pod.id, config, pod.config) for _ in range(5))
    ids = await asyncio.gather(*calls)
    assert len(set(ids)) == 1
    assert [each.id for each in await cri.list_containers()] == ids[:1]


# 17


async def test_f2_17_hostusers_false_is_refused_where_it_is_not_supported(pods, cri, handler):
    handler.lacks(Feature.USER_NAMESPACES)
    ranges = [pb.IDMapping(host_id=100_000, container_id=0, length=65_536)]
    options = pb.NamespaceOption(
        pid=pb.CONTAINER,
        userns_options=pb.UserNamespace(mode=pb.POD, uids=ranges, gids=ranges),
    )
    context = pb.LinuxSandboxSecurityContext(namespace_options=options)
    with refused("FAILED_PRECONDITION", "hostUsers", handler.name):
        await pods.run(security=context)
    for each in (await cri.status()).runtime_handlers:
        assert not each.features.user_namespaces


# 18


async def test_f2_18_a_url_that_nobody_visits_holds_nothing_up(pods: Pods, cri: CriClient, server):
    pod = await pods.run()
    box = await pod.start()
    before = server.residue()
    requests = {
        "Exec": pb.ExecRequest(container_id=box, cmd=["sh"], stdin=True, stdout=True),
        "Attach": pb.AttachRequest(container_id=box, stdout=True),
        "PortForward": pb.PortForwardRequest(pod_sandbox_id=pod.id, port=[80]),
    }
    urls = [(await cri.call(cri.runtime, call, each)).url for call, each in requests.items()]
    assert all(url.startswith("http") for url in urls)
    assert len(set(urls)) == 3
    # Nothing runs before somebody comes.
    assert await asyncio.to_thread(server.settled, before) == {}
    await cri.stop_sandbox(pod.id)
    await cri.remove_sandbox(pod.id)
    assert await cri.list_sandboxes() == []


async def test_f2_18_a_url_works_once(pods: Pods, cri: CriClient):
    pod = await pods.run()
    box = await pod.start()
    request = pb.ExecRequest(container_id=box, cmd=["true"], stdout=True)
    url = urlsplit((await cri.call(cri.runtime, "Exec", request)).url)
    codes = [await asyncio.to_thread(_visit, url) for _ in range(2)]
    assert codes[0] != 404  # no upgrade was asked for, but the URL was known
    assert codes[1] == 404


def _visit(url: SplitResult) -> int:
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=30)
    try:
        connection.request("POST", url.path)
        return connection.getresponse().status
    finally:
        connection.close()


# 19


async def test_f2_19_reopening_the_log_of_an_exited_container_makes_no_file(pods, cri):
    pod = await pods.run()
    ended = await pod.run("echo here")
    path = Path(ended.status.log_path)
    path.rename(path.with_suffix(".old"))
    with refused("FAILED_PRECONDITION", "not running"):
        await cri.reopen_log(ended.status.id)
    assert not path.exists()


async def test_f2_19_reopening_the_log_of_a_created_container_makes_no_file(pods, cri):
    pod = await pods.run()
    box = await pod.create()
    with refused("FAILED_PRECONDITION", "not running"):
        await cri.reopen_log(box)
    assert not Path((await cri.container_status(box)).status.log_path).exists()


# 20


async def test_f2_20_lists_are_complete_while_pods_come_and_go(pods: Pods, cri: CriClient):
    stays = [await pods.run(f"stays-{number}") for number in range(3)]
    boxes = [await pod.start() for pod in stays]

    async def come_and_go(number: int) -> None:
        for turn in range(3):
            pod = await pods.run(f"goes-{number}", attempt=turn)
            await pod.start()
            await cri.stop_sandbox(pod.id)
            await cri.remove_sandbox(pod.id)

    churn = asyncio.gather(*(come_and_go(number) for number in range(3)))
    while not churn.done():
        listed = Counter(each.id for each in await cri.list_sandboxes())
        inner = Counter(each.id for each in await cri.list_containers())
        assert {pod.id for pod in stays} <= set(listed)
        assert set(boxes) <= set(inner)
        assert {*listed.values(), *inner.values()} == {1}
    await churn
