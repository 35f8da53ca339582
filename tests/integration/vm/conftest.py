"""One server whose handler is ``vm``, with an image of busybox; guests boot in seconds, so it is shared."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from conformance import images
from conformance.pods import Pods
from support.server import Server

from polypod.client import CriClient
from polypod_vm.plugin import missing

LACKS = [*missing(), *([] if shutil.which("mkfs.erofs") else ["mkfs.erofs is not installed"])]
SETTINGS = (
    "handlers.vm.type=vm",
    "handlers.namespaces.type=namespaces",
    "server.default_handler=vm",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.skipif(bool(LACKS), reason="; ".join(LACKS)))


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def grpc_stays_open() -> None:
    """Keep gRPC's own sockets for the whole run: a test that opens them first would seem to leak them."""
    grpc.aio.init_grpc_aio()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    layout = images.write_layout(
        tmp_path_factory.mktemp("images") / "box", [images.busybox_layer()]
    )
    server = Server(SETTINGS)
    server.layout = layout
    try:
        server.start()
        asyncio.run(_warm_up(server))
        yield server
    finally:
        server.take_down()


async def _warm_up(server: Server) -> None:
    """Pull the image and run a first pod of each handler: what all pods share is made by the first.

    That is libvirtd, the bridge, the guest, the image's disk, the server's cgroup parent.
    """
    async with CriClient(server.endpoint) as cri:
        await cri.pull_image(f"oci:{server.layout}")
        pods = Pods(cri, f"oci:{server.layout}", server.place / "logs")
        for handler in ("vm", "namespaces"):
            await (await pods.run(f"first-{handler}", handler=handler)).run("true")
        await pods.remove_all()


@pytest.fixture
async def cri(server: Server):
    async with CriClient(server.endpoint) as client:
        yield client


@pytest.fixture
async def pods(server: Server, cri: CriClient):
    made = Pods(cri, f"oci:{server.layout}", server.place / "logs")
    yield made
    await made.remove_all()
