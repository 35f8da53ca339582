"""Every RPC refuses what cannot be meant, with the right code and words; nothing is left, the server lives.

The tables are in ``bad_pods.py``, ``bad_boxes.py`` and ``bad_images.py``.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from conformance import bad_boxes, bad_images, bad_pods, images
from conformance.bad_world import Row, World, make
from conformance.pods import Pods, refused
from conformance.test_server import calls

from polypod.client import CriClient, CriError, pb

TABLE = [*bad_pods.ROWS, *bad_boxes.ROWS, *bad_images.ROWS]
NOTHING_TO_REFUSE = {
    "GetContainerEvents",
    "ImageFsInfo",
    "ListContainerStats",
    "ListMetricDescriptors",
    "ListPodSandboxMetrics",
    "ListPodSandboxStats",
    "RuntimeConfig",
    "Status",
    "StreamContainerStats",
    "StreamImages",
    "StreamPodSandboxMetrics",
    "StreamPodSandboxStats",
    "Version",
}
"""Calls whose requests hold nothing that could be wrong."""
_IMAGES = {"ListImages", "ImageStatus", "PullImage", "RemoveImage", "ImageFsInfo"}


@pytest.fixture(scope="module")
def before(server) -> dict[str, frozenset[str]]:
    """What the server holds before anything bad came."""
    return server.residue()


@pytest.fixture(scope="module")
def world(server, handler, before, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The objects that bad requests are about."""
    image = images.SIMULATED_NAME if handler.simulated else images.NAME

    async def made() -> World:
        async with CriClient(server.endpoint) as cri:
            return await make(cri, image, tmp_path_factory.mktemp("world"))

    return asyncio.run(made())


async def _everything(cri: CriClient) -> list[object]:
    return [
        list(await cri.list_sandboxes()),
        list(await cri.list_containers()),
        list(await cri.list_images()),
    ]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
async def test_bad_request(row: Row, world: World, cri: CriClient, handler):
    handler.needs(*row.needs)
    for feature in row.lacks:
        handler.lacks(feature)
    if row.real:
        handler.needs_kernel()
    standing = await _everything(cri)
    service = cri.images if row.call in _IMAGES else cri.runtime
    with refused(row.code, *row.words):
        if row.call.startswith("Stream"):
            async for _item in cri.stream(service, row.call, row.request(world), timeout_s=30):
                pass
        else:
            await cri.call(service, row.call, row.request(world))
    assert await _everything(cri) == standing


def test_every_call_is_in_the_table():
    assert {row.call for row in TABLE} | NOTHING_TO_REFUSE == set(calls())


@pytest.mark.parametrize("name", bad_images.ARCHIVES)
async def test_bad_archive(name: str, cri: CriClient, handler, tmp_path: Path, server):
    handler.needs_kernel()
    maker, codes = bad_images.ARCHIVES[name]
    layout = maker(tmp_path / "layout")
    standing, before = await cri.list_images(), server.residue()
    with pytest.raises(CriError) as error:
        await cri.pull_image(f"oci:{layout}")
    assert error.value.code.name in codes, error.value
    assert await cri.list_images() == standing
    assert not any(Path(place, "escape").exists() for place in ("/", server.root, tmp_path))
    assert await asyncio.to_thread(server.settled, before) == {}


async def test_a_link_in_an_image_leads_nowhere_outside(pods, cri, handler, tmp_path, server):
    """Links are fine in images; what is read through them is the image's own, never the host's."""
    handler.needs_kernel()
    layout = images.write_layout(
        tmp_path / "layout",
        [
            images.layer(
                [
                    images.directory("bin"),
                    images.link("etc", "/../../../../etc"),
                    images.link("passwd", "/etc/passwd"),
                ]
            )
        ],
        name="localhost/links:latest",
    )
    image_id = await cri.pull_image(f"oci:{layout}")
    pod = await pods.run()
    context = pb.LinuxContainerSecurityContext(run_as_username="root")
    with refused("INVALID_ARGUMENT", "root"):
        await pod.create(image=pb.ImageSpec(image=image_id), security=context)
    await cri.remove_image(image_id)


# Below the messages


async def _raw(server, method: str, data: bytes) -> grpc.StatusCode:
    async with grpc.aio.insecure_channel(
        server.endpoint,
        options=[
            ("grpc.default_authority", "localhost"),
            ("grpc.max_send_message_length", -1),
        ],
    ) as channel:
        try:
            await channel.unary_unary(f"/runtime.v1.{method}")(data, timeout=30)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("method", ["RuntimeService/RunPodSandbox", "ImageService/PullImage"])
async def test_bytes_that_are_no_message_are_refused(server, cri: CriClient, method: str):
    assert await _raw(server, method, b"\xff" * 64) is not grpc.StatusCode.OK
    assert (await cri.version()).runtime_name == "polypod"


async def test_a_message_above_16_mib_is_refused(server, cri: CriClient):
    code = await _raw(server, "RuntimeService/RunPodSandbox", b"\0" * (17 << 20))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await cri.version()).runtime_name == "polypod"


@pytest.mark.parametrize("method", ["RuntimeService/NoSuchCall", "NoSuchService/Version"])
async def test_a_call_that_does_not_exist_is_unimplemented(server, method: str):
    assert await _raw(server, method, b"") is grpc.StatusCode.UNIMPLEMENTED


async def test_a_request_of_15_mib_is_served(pods: Pods, cri: CriClient):
    annotations = {f"key-{number}": "x" * 1_000_000 for number in range(7)}
    pod = await pods.run(annotations=annotations)
    (listed,) = [each for each in await cri.list_sandboxes() if each.id == pod.id]
    assert dict(listed.annotations) == annotations


# After all of it


async def test_last_nothing_is_left_and_the_server_serves(world, before, server, pods, cri):
    daemon = server.process.pid
    pod = await pods.run("last")
    assert (await pod.run("echo it lives")).out == "it lives\n"
    await pods.remove_all()
    assert (await cri.list_sandboxes(), await cri.list_containers()) == ([], [])
    assert await asyncio.to_thread(server.settled, before) == {}
    assert server.alive
    assert daemon == server.process.pid
