"""PullImage through a served polypod: codes and prefixes that the kubelet reads, hang-ups, progress, the command."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading

import grpc
import pytest
from support.images import image_of, layer_of, noise
from support.lying_registry import LyingRegistry, Reply
from support.server import POLYPOD, Server

from polypod.client import CriClient, CriError, pb

pytestmark = pytest.mark.needs_root

IMAGE = image_of([layer_of({"a": noise(2_000_000)})])
LAYER = json.loads(IMAGE.manifest)["layers"][0]["digest"]
LIMIT_S = 20


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server whose ``r.example`` is a `LyingRegistry`."""
    hosts = tmp_path_factory.mktemp("hosts")
    with LyingRegistry() as registry:
        rule = hosts / "r.example" / "hosts.toml"
        rule.parent.mkdir()
        rule.write_text(f'server = "http://{registry.address}"\n')
        (hosts / "gone.example").mkdir()
        (hosts / "gone.example" / "hosts.toml").write_text('server = "http://127.0.0.1:9"\n')
        registry.add("app", "1", IMAGE)
        server = Server([f"images.hosts_dir={hosts}", "images.pull_progress_timeout_s=2"])
        try:
            server.start()
            asyncio.run(_warm_up(server))
            yield server, registry
        finally:
            registry.ended.set()
            server.take_down()


async def _warm_up(server):
    """Pull once: it brings what a server makes once, such as the process that unpacks."""
    async with CriClient(server.endpoint) as client:
        await client.remove_image(await client.pull_image("r.example/app:1"))


@pytest.fixture
async def cri(served):
    """A client; the registry is honest, the store empty."""
    server, registry = served
    registry.rule = lambda asked, honest: honest
    registry.seen.clear()
    async with CriClient(server.endpoint) as client:
        yield client
        for image in await client.list_images():
            await client.remove_image(image.id)


async def test_a_pulled_image_is_listed_and_its_reference_is_the_id(cri):
    image_ref = await cri.pull_image("r.example/app:1")
    (image,) = await cri.list_images()
    assert (image.id, list(image.repo_tags)) == (image_ref, ["r.example/app:1"])
    assert list(image.repo_digests) == [f"r.example/app@{IMAGE.digest}"]
    assert image.size > 2_000_000


@pytest.mark.parametrize(
    ("reference", "code", "begins"),
    [
        ("gone.example/app:1", grpc.StatusCode.UNKNOWN, "RegistryUnavailable: gone.example/app:1"),
        ("r.example/app:none", grpc.StatusCode.NOT_FOUND, "r.example/app:none: not found"),
        ("r.example/NO", grpc.StatusCode.INVALID_ARGUMENT, "'r.example/NO' is no image reference"),
        ("", grpc.StatusCode.INVALID_ARGUMENT, "image.image"),
    ],
)
async def test_codes_and_prefixes(reference, code, begins, cri):
    with pytest.raises(CriError) as failed:
        await cri.pull_image(reference)
    assert failed.value.code is code
    assert failed.value.text.startswith(begins)


async def test_a_refusal_comes_quickly_and_without_secrets(cri, served):
    """The kubelet tries one credential after the other: a 401 must not be tried again and again."""
    server, registry = served
    registry.rule = lambda a, h: Reply(401, (("WWW-Authenticate", 'Basic realm="r"'),))
    with pytest.raises(CriError, match="access denied") as failed:
        await cri.pull_image(
            "r.example/app:1", pb.AuthConfig(username="me", password="hunter2secret")
        )
    assert failed.value.code is grpc.StatusCode.UNKNOWN
    assert len(registry.seen) == 2
    assert "hunter2secret" not in str(failed.value) + server.log_tail(200)


async def test_who_hangs_up_ends_the_pull(cri, served):
    server, registry = served
    go = threading.Event()

    def rule(asked, honest):
        if LAYER in asked.path:
            go.wait(LIMIT_S)
        return honest

    registry.rule = rule
    pull = asyncio.create_task(cri.pull_image("r.example/app:1"))
    await _until(lambda: registry.count("GET", LAYER))
    answer = await cri.image_status("r.example/app:1", verbose=True)
    steps = {each["what"]: each["stage"] for each in json.loads(answer.info["info"])["pull"]}
    assert steps[LAYER] == "downloading"
    pull.cancel()
    await asyncio.wait({pull})
    go.set()
    work = server.root / "images" / "content" / "work"
    await _until(lambda: not list(work.parent.glob("blobs/sha256/*")) and not list(work.iterdir()))
    assert await cri.list_images() == []
    assert not (await cri.image_status("r.example/app:1", verbose=True)).info


async def test_the_command_pulls(cri, served):
    server, _ = served
    command = [POLYPOD, "--endpoint", server.endpoint, "pull", "r.example/app:1"]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    (image,) = await cri.list_images()
    assert done.stdout == f"{image.id}\n"


async def _until(true):
    for _ in range(LIMIT_S * 50):
        if true():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it never came to that")
