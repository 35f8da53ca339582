"""Counters of pods: whole, per interface, per container, for one and for many."""

from __future__ import annotations

import json
import secrets

import pytest
from conformance.pods import LIMIT_S, Pods, eventually, refused

from polypod.client import CriClient, pb


async def stats(cri: CriClient, pod: str) -> pb.PodSandboxStats:
    request = pb.PodSandboxStatsRequest(pod_sandbox_id=pod)
    return (await cri.call(cri.runtime, "PodSandboxStats", request)).stats


async def listed(cri: CriClient, **filter_) -> list[pb.PodSandboxStats]:
    request = pb.ListPodSandboxStatsRequest(filter=pb.PodSandboxStatsFilter(**filter_))
    return list((await cri.call(cri.runtime, "ListPodSandboxStats", request)).stats)


async def test_a_pods_counters_hold_its_containers(pods: Pods, cri: CriClient, handler):
    pod = await pods.run(labels={"a": "b"}, annotations={"c": "d"})
    boxes = {await pod.start(handler.programs["busy"], name=name) for name in ("one", "two")}

    async def worked() -> pb.PodSandboxStats | None:
        found = await stats(cri, pod.id)
        cpus = [each.cpu.usage_core_nano_seconds.value for each in found.linux.containers]
        return found if len(cpus) == 2 and all(cpus) else None

    found = await eventually(worked, "cpu time of both containers")
    assert found.attributes.id == pod.id
    assert found.attributes.metadata == pod.config.metadata
    assert dict(found.attributes.labels) == {"a": "b"}
    assert dict(found.attributes.annotations) == {"c": "d"}
    linux = found.linux
    assert {each.attributes.id for each in linux.containers} == boxes
    assert linux.cpu.timestamp > 0
    assert linux.cpu.usage_core_nano_seconds.value > 0
    assert linux.memory.working_set_bytes.value > 0
    assert linux.memory.usage_bytes.value >= linux.memory.working_set_bytes.value
    again = await stats(cri, pod.id)
    assert (
        again.linux.cpu.usage_core_nano_seconds.value >= linux.cpu.usage_core_nano_seconds.value
    ), "a counter fell"


async def test_a_rate_needs_two_samples(pods: Pods, cri: CriClient, handler):
    pod = await pods.run()
    await pod.start(handler.programs["busy"])
    first = await stats(cri, pod.id)
    assert not first.linux.cpu.HasField("usage_nano_cores"), "a rate that nobody measured"

    async def rate() -> int:
        return (await stats(cri, pod.id)).linux.cpu.usage_nano_cores.value

    assert await eventually(rate, "a rate from the second sample")


async def test_processes_are_counted(pods: Pods, cri: CriClient):
    pod = await pods.run()
    before = (await stats(cri, pod.id)).linux.process.process_count.value
    for name in ("one", "two"):
        await pod.start("sleep 1000", name=name)

    async def two_more() -> bool:
        return (await stats(cri, pod.id)).linux.process.process_count.value >= before + 2

    await eventually(two_more, "two processes more")


async def test_lists_are_of_ready_pods_and_filtered(pods: Pods, cri: CriClient):
    first, second = await pods.run("first", labels={"x": "1"}), await pods.run("second")
    third = await pods.run("third")
    box = await second.start("sleep 1000")
    await cri.stop_sandbox(third.id)
    found = {each.attributes.id: each for each in await listed(cri)}
    assert set(found) == {first.id, second.id}
    assert [each.attributes.id for each in found[second.id].linux.containers] == [box]
    assert [each.attributes.id for each in await listed(cri, id=second.id[:16])] == [second.id]
    selected = await listed(cri, label_selector={"x": "1"})
    assert [each.attributes.id for each in selected] == [first.id]
    assert await listed(cri, id=secrets.token_hex(8)) == []
    streamed = [
        each.attributes.id
        async for message in cri.stream(
            cri.runtime,
            "StreamPodSandboxStats",
            pb.StreamPodSandboxStatsRequest(),
            timeout_s=LIMIT_S,
        )
        for each in message.pod_sandbox_stats
    ]
    assert streamed == [second.id, first.id]


async def test_a_stopped_pod_has_no_counters_and_an_unknown_one_is_not_found(
    pods: Pods, cri: CriClient
):
    pod = await pods.run()
    await cri.stop_sandbox(pod.id)
    found = await stats(cri, pod.id)
    assert found.attributes.id == pod.id
    assert not found.linux.HasField("cpu")
    with refused("NOT_FOUND"):
        await stats(cri, secrets.token_hex(32))
    with refused("INVALID_ARGUMENT", "pod_sandbox_id"):
        await stats(cri, "")


async def test_traffic_is_the_pods_own(pods: Pods, cri: CriClient, handler):
    handler.needs_kernel()
    handler.needs_network()
    loud, quiet = await pods.run("loud"), await pods.run("quiet")
    box = await loud.start("sleep 1000")
    address = (await quiet.status()).network.ip
    before = (await stats(cri, loud.id)).linux.network
    await cri.exec_sync(box, ["ping", "-c", "3", "-i", "0.1", "-s", "1000", address], 30)
    after = (await stats(cri, loud.id)).linux.network
    assert after.default_interface.name == "eth0"
    assert not after.interfaces, "a pod has one interface beside its loopback"
    sent = after.default_interface.tx_bytes.value - before.default_interface.tx_bytes.value
    assert sent >= 3 * 1000, "what the pod sent is not told as sent by it"
    assert after.default_interface.HasField("rx_errors")
    assert after.timestamp >= before.timestamp > 0
    received = (await stats(cri, quiet.id)).linux.network.default_interface.rx_bytes.value
    assert received >= 3 * 1000, "what the pod received is not told as received by it"


async def test_a_pod_on_the_hosts_network_has_no_interfaces_of_its_own(pods: Pods, cri, handler):
    handler.needs_kernel()
    options = pb.NamespaceOption(network=pb.NODE, pid=pb.CONTAINER)
    security = pb.LinuxSandboxSecurityContext(namespace_options=options)
    pod = await pods.run(security=security)
    assert not (await stats(cri, pod.id)).linux.HasField("network")


async def test_the_verbose_status_says_who_counted(pods: Pods, cri: CriClient):
    pod = await pods.run()
    await pod.start("sleep 1000")
    await stats(cri, pod.id)
    info = json.loads((await cri.sandbox_status(pod.id, verbose=True)).info["info"])
    assert info["counters"]["pod"]
    assert info["counters"]["containers"]


async def test_counters_go_on_after_a_restart(pods: Pods, cri: CriClient, server, handler):
    handler.needs_kernel()
    pod = await pods.run()
    await pod.start("sleep 1000")
    before = (await stats(cri, pod.id)).linux
    server.kill()
    server.launch()
    await server.ready()
    await cri.wait_ready(30)
    after = (await stats(cri, pod.id)).linux
    assert after.cpu.usage_core_nano_seconds.value >= before.cpu.usage_core_nano_seconds.value
    if before.HasField("network"):
        assert after.network.default_interface.name == before.network.default_interface.name


@pytest.fixture(autouse=True)
def nothing_left(server):
    """Compare before and after, as the fixture of this name does elsewhere; one test kills the daemon."""
    before = server.residue()
    yield
    assert server.settled(before, ignore="processes") == {}
