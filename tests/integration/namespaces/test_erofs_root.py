"""The form erofs: one image file as the only lower layer, on a server, beside the other forms of one image."""

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

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_overlay,
    pytest.mark.needs_busybox,
    pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="mkfs.erofs is not installed"),
    pytest.mark.skipif(
        "erofs" not in Path("/proc/filesystems").read_text(), reason="this kernel has no erofs"
    ),
]

FORMS = ("overlay", "erofs", "directory")
SETTINGS = (
    *(f"handlers.{form}.type=namespaces" for form in FORMS),
    *(f"handlers.{form}.rootfs_form={form}" for form in FORMS),
    "handlers.broken.type=namespaces",
    "handlers.broken.rootfs_form=block",
    "server.default_handler=overlay",
)


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def grpc_stays_open() -> None:
    """Keep gRPC's own sockets for the whole run."""
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
    """What is made once, the erofs image among it, is made before tests compare the host."""
    async with CriClient(server.endpoint) as cri:
        await cri.pull_image(f"oci:{server.layout}")
        pods = Pods(cri, f"oci:{server.layout}", server.place / "logs")
        for form in FORMS:
            await (await pods.run(form, handler=form)).run("true")
        await pods.remove_all()


@pytest.fixture
async def pods(server: Server):
    async with CriClient(server.endpoint) as cri:
        made = Pods(cri, f"oci:{server.layout}", server.place / "logs")
        yield made
        await made.remove_all()


async def test_one_image_in_three_forms_at_once(pods):
    """Each is written to, none sees what the others wrote, and the image is what it was."""
    script = (
        "cat /proc/mounts | head -n 1; echo $FORM > /mine; rm /bin/wget; cat /mine; ls /bin | wc -l"
    )
    said = {}
    for form in FORMS:
        pod = await pods.run(form, handler=form)
        box = await pod.start()
        said[form] = (await pod.sh(box, script.replace("$FORM", form))).splitlines()
    kinds = {form: lines[0].split()[2] for form, lines in said.items()}
    assert kinds["overlay"] == kinds["erofs"] == "overlay"
    assert [lines[1] for lines in said.values()] == list(FORMS)
    assert len({lines[2] for lines in said.values()}) == 1


async def test_the_lower_layer_is_the_image_file(pods, server):
    """Nothing is mounted on the host for it, and it is read-only whatever the container may do."""
    before = Path("/proc/self/mountinfo").read_text().count("erofs")
    pod = await pods.run("erofs", handler="erofs")
    box = await pod.start()
    facts = await pod.info(box)
    mounts = Path(f"/proc/{facts['pid']}/mountinfo").read_text()
    assert "erofs" not in mounts  # a detached mount: the overlay alone holds it
    assert "lowerdir" in mounts
    assert Path("/proc/self/mountinfo").read_text().count("erofs") == before
    made = list((server.root / "images").rglob("block.erofs"))
    assert len(made) == 1


async def test_a_form_that_the_type_does_not_accept_is_told(server, pods):
    with pytest.raises(Exception, match=r"handlers\.broken\.rootfs_form is 'block'"):
        await pods.run("broken", handler="broken")
