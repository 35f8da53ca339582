"""The image service: names, ids, lists, removal, the file system that it takes."""

from __future__ import annotations

import asyncio
import json
import os
import tarfile
import time
from pathlib import Path

import pytest
from conformance import images
from conformance.pods import Pods, eventually

from polypod.client import CriClient, pb


async def test_an_image_that_is_not_there_is_no_error(cri: CriClient):
    answer = await cri.image_status("localhost/not:here")
    assert not answer.HasField("image")
    assert await cri.list_images("localhost/not:here") == []
    for _again in range(2):
        await cri.remove_image("localhost/not:here")


async def test_what_is_told_of_an_image(cri: CriClient, image: str):
    found = (await cri.image_status(image)).image
    assert found.id.startswith("sha256:")
    assert found.size > 0
    assert not found.pinned
    assert image in found.repo_tags
    assert all("@sha256:" in each for each in found.repo_digests)
    assert found.repo_digests
    assert found.spec.image == found.id


async def test_facts_only_when_asked(cri: CriClient, image: str):
    assert not (await cri.image_status(image)).info
    json.loads((await cri.image_status(image, verbose=True)).info["info"])


async def test_every_name_of_an_image_finds_it(cri: CriClient, image: str):
    found = (await cri.image_status(image)).image
    digits = found.id.removeprefix("sha256:")
    for name in (found.id, digits, digits[:12], *found.repo_tags, *found.repo_digests):
        assert (await cri.image_status(name)).image.id == found.id, name
        assert [each.id for each in await cri.list_images(name)] == [found.id], name


async def test_pulling_again_changes_nothing(cri: CriClient, image: str, reference: str):
    before = await cri.list_images()
    ids = await asyncio.gather(*(cri.pull_image(reference) for _ in range(4)))
    assert set(ids) == {(await cri.image_status(image)).image.id}
    assert await cri.list_images() == before


async def test_removal_takes_the_image_away_at_once(cri: CriClient, image: str, reference: str):
    await asyncio.gather(*(cri.remove_image(image) for _ in range(4)))
    assert await cri.list_images(image) == []
    await cri.pull_image(reference)
    assert (await cri.image_status(image)).HasField("image")


async def test_a_container_outlives_its_image(pods: Pods, cri: CriClient, image: str):
    pod = await pods.run()
    box = await pod.start()
    image_id = (await cri.container_status(box)).status.image_id
    await cri.remove_image(image)
    assert await pod.sh(box, "echo still here") == "still here\n"
    status = (await cri.container_status(box)).status
    assert (status.image_id, status.state) == (image_id, pb.CONTAINER_RUNNING)


async def test_the_file_system_of_images(cri: CriClient, image: str):
    answer = await cri.image_filesystem()
    (usage,) = answer.image_filesystems
    assert os.statvfs(usage.fs_id.mountpoint).f_blocks > 0
    assert abs(usage.timestamp - time.time_ns()) < 3600 * 10**9
    assert usage.used_bytes.value >= 0
    # One file system for both; what containers write over images is counted apart.
    (written,) = answer.container_filesystems
    assert written.fs_id == usage.fs_id
    assert written.timestamp > 0


async def test_what_containers_write_is_counted_apart(cri: CriClient, pods, handler):
    handler.needs_kernel()
    pod = await pods.run()
    box = await pod.start("head -c 5000000 /dev/zero > /file; sleep 1000")

    async def written():
        answer = await cri.image_filesystem()
        return answer.container_filesystems[0].used_bytes.value >= 5_000_000

    images = (await cri.image_filesystem()).image_filesystems[0].used_bytes.value
    await eventually(written, "the sample of what was written")
    after = (await cri.image_filesystem()).image_filesystems[0].used_bytes.value
    assert abs(after - images) < 1_000_000
    await cri.stop_container(box, 0)


# Images of our own


@pytest.fixture
def real(handler) -> None:
    handler.needs_kernel()


@pytest.mark.usefixtures("real")
async def test_an_image_takes_space_and_gives_it_back(cri: CriClient, tmp_path: Path):
    data = os.urandom(3 << 20)
    layout = images.write_layout(
        tmp_path / "layout", [images.layer([images.file("big", data)])], name="localhost/big:1"
    )
    before = (await cri.image_filesystem()).image_filesystems[0].used_bytes.value
    image_id = await cri.pull_image(f"oci:{layout}")
    assert (await cri.image_status(image_id)).image.size > len(data)
    during = (await cri.image_filesystem()).image_filesystems[0].used_bytes.value
    assert during - before >= len(data)
    await cri.remove_image(image_id)
    assert (await cri.image_status("localhost/big:1")).image.id == ""


@pytest.mark.usefixtures("real")
async def test_an_archive_is_the_same_image_as_its_layout(cri, image, layout: Path, tmp_path):
    archive = tmp_path / "image.tar"
    with tarfile.open(archive, "w") as tar:
        for path in sorted(layout.rglob("*")):
            tar.add(path, str(path.relative_to(layout)), recursive=False)
    image_id = (await cri.image_status(image)).image.id
    assert await cri.pull_image(f"oci-archive:{archive}") == image_id


@pytest.mark.usefixtures("real")
async def test_layers_are_laid_over_each_other(pods: Pods, cri: CriClient, tmp_path: Path):
    top = images.layer(
        [
            images.directory("data"),
            images.file("data/.wh.kept", b""),
            images.file("data/new", b"of the top\n"),
            images.directory("home"),
            images.file("home/.wh..wh..opq", b""),
        ]
    )
    layout = images.write_layout(
        tmp_path / "layout", [images.busybox_layer(), top], name="localhost/layers:1"
    )
    image_id = await cri.pull_image(f"oci:{layout}")
    pod = await pods.run()
    ended = await pod.run(
        "ls /data; cat /data/new; ls /home", image=pb.ImageSpec(image="localhost/layers:1")
    )
    assert ended.out == "new\nof the top\n"
    await cri.remove_image(image_id)


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize(
    ("command", "args", "expected"),
    [
        ([], [], "entry command"),
        ([], ["given"], "entry given"),
        (["echo", "mine"], [], "mine"),
        (["echo"], ["given"], "given"),
    ],
)
async def test_command_and_args_over_the_images(
    pods: Pods, cri: CriClient, tmp_path: Path, command, args, expected: str
):
    config = {"Entrypoint": ["echo", "entry"], "Cmd": ["command"]}
    layout = images.write_layout(
        tmp_path / "layout", [images.busybox_layer()], config, name="localhost/words:1"
    )
    await cri.pull_image(f"oci:{layout}")
    pod = await pods.run()
    ended = await pod.run(command, args=args, image=pb.ImageSpec(image="localhost/words:1"))
    assert ended.out == f"{expected}\n"
    await cri.remove_image("localhost/words:1")


@pytest.mark.usefixtures("real")
async def test_the_images_config_is_used(pods: Pods, cri: CriClient, tmp_path: Path):
    config = {
        "Env": ["PATH=/bin", "FROM=image", "BOTH=image"],
        "WorkingDir": "/home/app",
        "StopSignal": "SIGUSR2",
    }
    layout = images.write_layout(
        tmp_path / "layout", [images.busybox_layer()], config, name="localhost/config:1"
    )
    await cri.pull_image(f"oci:{layout}")
    pod = await pods.run()
    box = await pod.start(
        "pwd; echo $FROM $BOTH; trap 'exit 12' USR2; echo ready; while true; do sleep 0.02; done",
        envs=[pb.KeyValue(key="BOTH", value=b"request")],
        image=pb.ImageSpec(image="localhost/config:1", user_specified_image="config:1"),
    )
    status = (await cri.container_status(box)).status
    assert status.stop_signal == pb.SIGNAL_SIGUSR2
    assert status.image.user_specified_image == "config:1"
    await pod.said(box, "ready")
    await cri.stop_container(box, 30)
    ended = await pod.ended(box)
    assert (ended.code, ended.out) == (12, "/home/app\nimage request\nready\n")
    await cri.remove_image("localhost/config:1")
