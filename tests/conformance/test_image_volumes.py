"""Images as volumes: read-only, a part of one or all of it, told by id, held until nobody has it."""

from __future__ import annotations

from pathlib import Path

import pytest
from conformance import images
from conformance.pods import Pods, refused

from polypod.client import CriClient, pb
from polypod.plugin.runtime import Feature


@pytest.fixture(autouse=True)
def able(handler) -> None:
    handler.needs_kernel()
    handler.needs(Feature.IMAGE_VOLUMES)


@pytest.fixture
async def model(cri: CriClient, tmp_path: Path):
    """Another image than the one that runs: the id, and its name."""
    layout = images.write_layout(
        tmp_path / "model", [images.busybox_layer()], {"User": "7"}, name="localhost/model:one"
    )
    image_id = await cri.pull_image(f"oci:{layout}")
    yield image_id
    await cri.remove_image(image_id)


def volume(image: str, sub_path: str = "", **fields) -> list[pb.Mount]:
    spec = pb.ImageSpec(image=image)
    values = {"container_path": "/volume", "image_sub_path": sub_path, **fields}
    return [pb.Mount(image=spec, **values)]


async def test_an_image_is_mounted_read_only(pods: Pods, model: str):
    pod = await pods.run()
    script = "cat /volume/data/kept; touch /volume/x; touch /volume/data/x"
    ended = await pod.run(script, mounts=volume(model))
    assert ended.out == "from the image\n"
    assert ended.err.count("Read-only file system") == 2


@pytest.mark.parametrize(
    ("sub_path", "place"), [("data", "/volume/kept"), ("data/kept", "/volume")]
)
async def test_a_part_of_an_image(pods: Pods, model: str, sub_path: str, place: str):
    pod = await pods.run()
    ended = await pod.run(f"cat {place}", mounts=volume(model, sub_path))
    assert ended.out == "from the image\n"


async def test_the_id_is_told(pods: Pods, cri: CriClient, model: str):
    pod = await pods.run()
    box = await pod.start(mounts=volume("localhost/model:one", "data"))
    (told,) = (await cri.container_status(box)).status.mounts
    assert told.image.image == "localhost/model:one"
    assert told.image.image_ref == model, "it must be what PullImage answered"
    assert (told.container_path, told.image_sub_path) == ("/volume", "data")


async def test_an_image_that_is_removed_stays_for_who_has_it(pods: Pods, cri: CriClient, model):
    pod = await pods.run()
    box = await pod.start(mounts=volume(model))
    await cri.remove_image(model)
    assert await pod.sh(box, "cat /volume/data/kept") == "from the image\n"
    await cri.remove_container(box)


async def test_programs_of_it_run_unless_that_is_forbidden(pods: Pods, model: str):
    pod = await pods.run()
    command = ["/volume/bin/busybox", "true"]
    assert (await pod.run(command, mounts=volume(model))).code == 0
    options = volume(model, mount_options=["noexec"])
    ended = await pod.run("/volume/bin/busybox true", name="noexec", mounts=options)
    assert ended.code == 126


async def test_in_a_user_namespace_it_is_roots(pods: Pods, handler, model: str):
    handler.needs(Feature.USER_NAMESPACES)
    ranges = [pb.IDMapping(host_id=200_000, container_id=0, length=65_536)]
    users = pb.UserNamespace(mode=pb.POD, uids=ranges, gids=ranges)
    modes = pb.NamespaceOption(pid=pb.CONTAINER, userns_options=users)
    pod = await pods.run(security=pb.LinuxSandboxSecurityContext(namespace_options=modes))
    for mounts in (volume(model), volume(model, uidMappings=ranges, gidMappings=ranges)):
        name = "mapped" if mounts[0].uidMappings else "plain"
        ended = await pod.run("stat -c %u:%g /volume/data /volume", name=name, mounts=mounts)
        assert ended.out.split() == ["0:0", "0:0"], ended.err


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"image": "localhost/nobody:has"}, "NOT_FOUND", ["not here"]),
        ({"sub_path": "no/such/place"}, "NOT_FOUND", ["no/such/place"]),
        ({"sub_path": "../data"}, "INVALID_ARGUMENT", ["climb"]),
        ({"host_path": "/etc"}, "INVALID_ARGUMENT", ["exclude each other"]),
    ],
    ids=["image", "sub-path", "climbs", "host path"],
)
async def test_what_cannot_be_mounted_is_told_so(pods: Pods, model: str, fields, code, words):
    pod = await pods.run()
    mounts = volume(**{"image": model, **fields})
    with refused(code, *words) as error:
        await pod.create(mounts=mounts)
    if "host_path" not in fields:
        # The kubelet looks for it.
        assert error.text.startswith("ImageVolumeMountFailed")
