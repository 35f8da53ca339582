"""Lists as streams: the same items as in the unary calls, each once, whatever they weigh together."""

from __future__ import annotations

from conformance.pods import Pods, refused

from polypod.client import CriClient, pb

MESSAGE_BYTES = 16 << 20
"""What clients accept."""


async def items(cri: CriClient, service, name: str, request, field: str) -> list:
    """Return all items of a stream; the stream must end by itself."""
    found: list = []
    async for message in cri.stream(service, name, request, timeout_s=60):
        assert message.ByteSize() < MESSAGE_BYTES
        found += getattr(message, field)
    return found


async def sandboxes(cri: CriClient, **filter_) -> list[pb.PodSandbox]:
    request = pb.StreamPodSandboxesRequest(filter=pb.PodSandboxFilter(**filter_))
    return await items(cri, cri.runtime, "StreamPodSandboxes", request, "pod_sandboxes")


async def containers(cri: CriClient, **filter_) -> list[pb.Container]:
    request = pb.StreamContainersRequest(filter=pb.ContainerFilter(**filter_))
    return await items(cri, cri.runtime, "StreamContainers", request, "containers")


async def test_an_empty_list_is_an_empty_stream(cri: CriClient):
    assert await sandboxes(cri) == []
    assert await containers(cri) == []


async def test_pods_and_containers_are_those_of_the_lists(pods: Pods, cri: CriClient):
    first, second = await pods.run("first"), await pods.run("second", labels={"x": "y"})
    running = await first.start("sleep 1000", labels={"k": "v"})
    await second.create()
    assert await sandboxes(cri) == list(await cri.list_sandboxes())
    assert await containers(cri) == list(await cri.list_containers())
    assert [each.id for each in await sandboxes(cri, label_selector={"x": "y"})] == [second.id]
    assert [each.id for each in await sandboxes(cri, id=first.id[:20])] == [first.id]
    assert [each.id for each in await containers(cri, pod_sandbox_id=first.id)] == [running]
    state = pb.ContainerStateValue(state=pb.CONTAINER_RUNNING)
    assert [each.id for each in await containers(cri, state=state)] == [running]
    assert await containers(cri, id="0123") == []


async def test_a_list_larger_than_a_message_comes_whole(pods: Pods, cri: CriClient):
    pod = await pods.run()
    note = {"note": "x" * (240 << 10)}
    boxes = [await pod.create(attempt=n, annotations=note) for n in range(80)]
    found = await containers(cri)
    assert [each.id for each in found] == boxes[::-1], "newest first, each once"
    assert sum(each.ByteSize() for each in found) > MESSAGE_BYTES
    assert all(dict(each.annotations) == note for each in found)


async def test_counters_are_those_of_the_running(pods: Pods, cri: CriClient):
    pod = await pods.run()
    running = {await pod.start("sleep 1000", name=f"box{n}") for n in range(3)}
    await pod.create(name="created")
    name = "StreamContainerStats"
    found = await items(cri, cri.runtime, name, pb.StreamContainerStatsRequest(), "container_stats")
    assert {each.attributes.id for each in found} == running
    assert all(each.cpu.usage_core_nano_seconds.value > 0 for each in found)
    one = next(iter(running))
    request = pb.StreamContainerStatsRequest(filter=pb.ContainerStatsFilter(id=one))
    found = await items(cri, cri.runtime, name, request, "container_stats")
    assert [each.attributes.id for each in found] == [one]


async def test_images_are_those_of_the_list(cri: CriClient, image: str):
    found = await items(cri, cri.images, "StreamImages", pb.StreamImagesRequest(), "images")
    assert found == list(await cri.list_images())
    assert found
    wanted = pb.ImageFilter(image=pb.ImageSpec(image=image))
    request = pb.StreamImagesRequest(filter=wanted)
    assert len(await items(cri, cri.images, "StreamImages", request, "images")) == 1
    wanted.image.image = "localhost/not:there"
    request = pb.StreamImagesRequest(filter=wanted)
    assert await items(cri, cri.images, "StreamImages", request, "images") == []


async def test_a_bad_filter_is_refused_as_in_the_list(cri: CriClient):
    with refused("INVALID_ARGUMENT", "filter.state"):
        await containers(cri, state=pb.ContainerStateValue(state=9))
    with refused("INVALID_ARGUMENT", "filter.state"):
        await sandboxes(cri, state=pb.PodSandboxStateValue(state=9))
