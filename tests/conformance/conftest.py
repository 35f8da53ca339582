"""One server per module and handler; each test finds it empty and must leave it empty."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from conformance import images
from conformance.pods import Pods
from conformance.subjects import Subject, host_lacks, subjects, with_facts
from support.server import Server

from polypod.client import CriClient


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.conformance)


@pytest.fixture(scope="module", params=subjects())
def handler(request: pytest.FixtureRequest, record_testsuite_property) -> Subject:
    """The runtime handler that is tested, with what it declares."""
    subject = with_facts(request.param)
    record_testsuite_property(f"handler {subject.name}", json.dumps(subject.declared()))
    if subject.unusable:
        host_lacks(f"handler {subject.name} (type {subject.type}) is unusable: {subject.unusable}")
    return subject


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def grpc_stays_open() -> None:
    """Keep gRPC's own sockets for the whole run: a test that opens them first would seem to leak them."""
    grpc.aio.init_grpc_aio()


@pytest.fixture(scope="module")
def server(
    request: pytest.FixtureRequest,
    handler: Subject,
    reference: str,
    tmp_path_factory: pytest.TempPathFactory,
):
    """A server whose default handler is the one tested.

    A module may set ``FAILPOINTS`` to rules that its servers run with, and ``SETTINGS`` to more settings.
    """
    failpoints = getattr(request.module, "FAILPOINTS", "")
    server = Server(
        (*handler.settings, *getattr(request.module, "SETTINGS", ())),
        config=handler.config,
        environment={"POLYPOD_FAILPOINTS": failpoints},
    )
    try:
        server.start()
        asyncio.run(_warm_up(server, reference, tmp_path_factory.mktemp("first")))
        yield server
    finally:
        server.take_down()


async def _warm_up(server: Server, reference: str, logs: Path) -> None:
    """Run a first container: it brings what a server makes once, such as its bridge and its cgroup."""
    async with CriClient(server.endpoint) as cri:
        pods = Pods(cri, await cri.pull_image(reference), logs)
        pod = await pods.run("first")
        await pod.run("exit 0")
        await pods.remove_all()


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The OCI layout of the image that tests run."""
    place = tmp_path_factory.mktemp("images") / "conformance"
    return images.write_layout(place, [images.busybox_layer()])


@pytest.fixture(scope="module")
def reference(request: pytest.FixtureRequest, handler: Subject) -> str:
    """What PullImage is asked for to get that image."""
    if handler.simulated:
        return images.SIMULATED_NAME
    return f"oci:{request.getfixturevalue('layout')}"


@pytest.fixture
async def cri(server: Server):
    """A client of the server."""
    async with CriClient(server.endpoint) as client:
        yield client


@pytest.fixture
async def image(cri: CriClient, handler: Subject, reference: str) -> str:
    """The name of an image that is there."""
    name = images.SIMULATED_NAME if handler.simulated else images.NAME
    if not (await cri.image_status(name)).HasField("image"):
        await cri.pull_image(reference)
    return name


@pytest.fixture
async def pods(cri: CriClient, image: str, tmp_path: Path):
    """Makes pods; what a test leaves is removed."""
    made = Pods(cri, image, tmp_path)
    yield made
    await made.remove_all()


@pytest.fixture
def shared_mount(handler: Subject, tmp_path: Path):
    """A directory from which mounts propagate; for simulated programs a plain one, they mount nothing."""
    place = tmp_path / "shared"
    place.mkdir()
    if handler.simulated:
        yield place
        return
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    try:
        subprocess.run(["mount", "--make-rshared", place], check=True)
        yield place
    finally:
        subprocess.run(["umount", "--recursive", place], check=True)
