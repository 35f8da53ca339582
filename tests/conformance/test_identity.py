"""Ids, names, filters, lists: A.1 of the reference, on every handler."""

from __future__ import annotations

import asyncio
import re

import pytest
from conformance.pods import Pods, refused

from polypod.client import CriClient, pb

ODD = {
    "io.kubernetes.pod.name": "p",
    "empty": "",
    "text": 'quotes "and" \\ and\nlines\tand trailing space ',
    "unicode": "Grüße, 世界, \U0001f433, \u202e",
    "json": '{"a":[1,2,{"b":null}]}',
    "long": "x" * 200_000,
}


async def list_pods(cri: CriClient, **conditions) -> list[str]:
    request = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(**conditions))
    return [each.id for each in (await cri.call(cri.runtime, "ListPodSandbox", request)).items]


async def list_boxes(cri: CriClient, **conditions) -> list[str]:
    request = pb.ListContainersRequest(filter=pb.ContainerFilter(**conditions))
    answer = await cri.call(cri.runtime, "ListContainers", request)
    return [each.id for each in answer.containers]


async def test_ids_are_64_hex_digits(pods: Pods):
    pod = await pods.run()
    assert re.fullmatch("[0-9a-f]{64}", pod.id)
    assert re.fullmatch("[0-9a-f]{64}", await pod.create())


async def test_every_call_takes_a_unique_prefix(pods: Pods, cri: CriClient):
    pod = await pods.run()
    short = pod.id[:20]
    assert (await cri.sandbox_status(short)).status.id == pod.id
    box = await cri.create_container(short, pod.container_config("sleep 1000"), pod.config)
    await cri.start_container(box[:20])
    assert (await cri.container_status(box[:20])).status.id == box
    assert (await cri.exec_sync(box[:20], ["true"])).exit_code == 0
    assert (await cri.container_stats(box[:20])).attributes.id == box
    await cri.stop_container(box[:20], 0)
    await cri.remove_container(box[:20])
    await cri.stop_sandbox(short)
    await cri.remove_sandbox(short)
    assert await list_pods(cri) == []


async def test_filters_take_prefixes_and_are_anded(pods: Pods, cri: CriClient):
    one = await pods.run("one", labels={"app": "a", "tier": "front"})
    two = await pods.run("two", labels={"app": "a"})
    assert await list_pods(cri, id=one.id[:16]) == [one.id]
    assert await list_pods(cri, label_selector={"app": "a"}) == [two.id, one.id]
    assert await list_pods(cri, label_selector={"app": "a", "tier": "front"}) == [one.id]
    assert await list_pods(cri, id=two.id, label_selector={"tier": "front"}) == []
    ready = pb.PodSandboxStateValue(state=pb.SANDBOX_READY)
    await cri.stop_sandbox(one.id)
    assert await list_pods(cri, state=ready) == [two.id]
    gone = pb.PodSandboxStateValue(state=pb.SANDBOX_NOTREADY)
    assert await list_pods(cri, state=gone, label_selector={"app": "a"}) == [one.id]


async def test_container_filters_are_anded(pods: Pods, cri: CriClient):
    pod, other = await pods.run("one"), await pods.run("two")
    created = await pod.create(name="created", labels={"app": "a"})
    running = await pod.start(name="running", labels={"app": "a"})
    elsewhere = await other.start(name="running", labels={"app": "a"})
    assert await list_boxes(cri) == [elsewhere, running, created]
    assert await list_boxes(cri, pod_sandbox_id=pod.id[:16]) == [running, created]
    assert await list_boxes(cri, id=running[:16], pod_sandbox_id=other.id) == []
    is_running = pb.ContainerStateValue(state=pb.CONTAINER_RUNNING)
    assert await list_boxes(cri, state=is_running) == [elsewhere, running]
    assert await list_boxes(cri, state=is_running, pod_sandbox_id=pod.id) == [running]
    assert await list_boxes(cri, label_selector={"app": "b"}) == []


async def test_an_unknown_id_in_a_filter_gives_an_empty_list(pods: Pods, cri: CriClient):
    pod = await pods.run()
    await pod.start()
    assert await list_pods(cri, id="f" * 64) == []
    assert await list_boxes(cri, id="nothing") == []
    assert await list_boxes(cri, pod_sandbox_id="f" * 64) == []
    chosen = pb.ContainerStatsFilter(id="f" * 64)
    request = pb.ListContainerStatsRequest(filter=chosen)
    assert not (await cri.call(cri.runtime, "ListContainerStats", request)).stats


async def test_lists_are_newest_first(pods: Pods, cri: CriClient):
    made = [await pods.run(f"pod-{number}") for number in range(3)]
    assert await list_pods(cri) == [each.id for each in reversed(made)]
    boxes = [await made[1].create(name=f"box-{number}") for number in range(3)]
    assert await list_boxes(cri) == list(reversed(boxes))
    times = [each.created_at for each in await cri.list_sandboxes()]
    assert times == sorted(times, reverse=True)


async def test_labels_and_annotations_come_back_byte_for_byte(pods: Pods, cri: CriClient):
    pod = await pods.run(labels=ODD, annotations=ODD)
    box = await pod.create(labels=ODD, annotations=ODD)
    listed_pod, listed_box = (await cri.list_sandboxes())[0], (await cri.list_containers())[0]
    status_pod = (await cri.sandbox_status(pod.id)).status
    status_box = (await cri.container_status(box)).status
    for answer in (listed_pod, listed_box, status_pod, status_box):
        assert dict(answer.labels) == ODD
        assert dict(answer.annotations) == ODD


async def test_metadata_comes_back(pods: Pods, cri: CriClient):
    pod = await pods.run("named", uid="some-uid", attempt=7)
    box = await pod.create(name="inner", attempt=3)
    expected = pb.PodSandboxMetadata(
        name="named", uid="some-uid", namespace="conformance", attempt=7
    )
    assert (await pod.status()).metadata == expected
    assert (await cri.list_sandboxes())[0].metadata == expected
    inner = pb.ContainerMetadata(name="inner", attempt=3)
    listed = (await cri.list_containers())[0]
    assert (listed.metadata, listed.pod_sandbox_id) == (inner, pod.id)
    assert (await cri.container_status(box)).status.metadata == inner


async def test_another_attempt_is_another_object(pods: Pods, cri: CriClient):
    first = await pods.run(uid="same", attempt=0)
    await cri.stop_sandbox(first.id)
    second = await pods.run(uid="same", attempt=1)
    assert first.id != second.id
    boxes = [await second.create(name="box", attempt=attempt) for attempt in (0, 1)]
    assert len(set(boxes)) == 2
    assert len(await cri.list_sandboxes()) == 2


async def test_the_same_request_again_gives_the_same_object(pods: Pods, cri: CriClient):
    pod = await pods.run()
    assert await cri.run_sandbox(pod.config) == pod.id
    config = pod.container_config("sleep 1000")
    box = await cri.create_container(pod.id, config, pod.config)
    assert await cri.create_container(pod.id, config, pod.config) == box
    assert len(await cri.list_sandboxes()) == len(await cri.list_containers()) == 1


async def test_the_same_name_with_another_content_is_refused(pods: Pods, cri: CriClient):
    pod = await pods.run(uid="same")
    other = pods.config(uid="same", hostname="another")
    with refused("ALREADY_EXISTS", pod.id):
        await cri.run_sandbox(other)
    box = await pod.create("sleep 1000")
    with refused("ALREADY_EXISTS", box):
        await pod.create("sleep 2000")


async def test_a_name_is_free_again_after_the_removal(pods: Pods, cri: CriClient):
    pod = await pods.run(uid="same")
    box = await pod.create()
    await cri.remove_container(box)
    assert await pod.create("sleep 2000") != box
    await cri.stop_sandbox(pod.id)
    with refused("ALREADY_EXISTS", "not-ready"):
        await cri.run_sandbox(pod.config)
    await cri.remove_sandbox(pod.id)
    assert (await pods.run(uid="same")).id != pod.id


async def test_ids_that_begin_alike_are_told_apart(pods: Pods, cri: CriClient):
    pod = await pods.run()
    boxes = [await pod.create(name=f"box-{number}") for number in range(17)]
    # Of 17 ids over 16 digits two begin alike.
    digits = [each[0] for each in boxes]
    twice = next(each for each in digits if digits.count(each) > 1)
    with refused("INVALID_ARGUMENT", "ambiguous"):
        await cri.container_status(twice)
    with refused("INVALID_ARGUMENT", "ambiguous"):
        await cri.remove_container(twice)
    assert len(await list_boxes(cri)) == 17
    assert set(await list_boxes(cri, id=twice)) == {each for each in boxes if each[0] == twice}


async def test_a5_06_an_unknown_handler_is_named_in_the_message(pods: Pods, cri: CriClient):
    with refused("NOT_FOUND", "no-such-handler-here"):
        await pods.run(handler="no-such-handler-here")
    assert await list_pods(cri) == []


async def test_the_requested_handler_is_reported(pods: Pods, cri: CriClient, handler):
    default, named = await pods.run("default"), await pods.run("named", handler=handler.name)
    listed = {each.id: each.runtime_handler for each in await cri.list_sandboxes()}
    assert listed == {default.id: "", named.id: handler.name}
    assert (await default.status()).runtime_handler == ""
    assert (await named.status()).runtime_handler == handler.name


@pytest.mark.parametrize("calls", [8])
async def test_many_at_once_are_all_made_and_all_removed(pods: Pods, cri: CriClient, calls: int):
    made = await asyncio.gather(*(pods.run(f"pod-{number}") for number in range(calls)))
    boxes = await asyncio.gather(*(each.start() for each in made))
    assert len(set(boxes)) == len({each.id for each in made}) == calls
    await asyncio.gather(*(cri.stop_sandbox(each.id) for each in made))
    await asyncio.gather(*(cri.remove_sandbox(each.id) for each in made))
    assert await list_pods(cri) == await list_boxes(cri) == []
