"""One server, one socket, one image: the same pod on every backend of this host at the same time."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import grpc
import pytest
from conformance import images
from conformance.pods import Pod, Pods, log_text
from support.server import Server

from polypod.client import CriClient, pb
from polypod_vm.plugin import missing as vm_lacks

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay, pytest.mark.needs_busybox]

BINARIES = tuple(name for name in ("runc", "crun") if shutil.which(name))
LIGHT = ("namespaces", *BINARIES, "fly")
HEAVY = [pytest.mark.slow, pytest.mark.skipif(bool(vm_lacks()), reason="; ".join(vm_lacks()))]
SCRIPT = """
echo "out $(cat /etc/hostname) $GREETING"; echo err >&2
while test ! -e /tmp/go; do sleep 0.1; done
seq 1 500; exit 7
"""
OWN = ("id", "created_at", "started_at", "finished_at", "log_path", "metadata")
"""What no two containers share."""


def configuration(place: Path, handlers: tuple[str, ...]) -> Path:
    """Write a file with a handler for each backend."""
    lines = []
    for name in handlers:
        kind = "oci" if name in BINARIES else name
        lines += [f"[handlers.{name}]", f'type = "{kind}"']
        if kind == "oci":
            lines += [f"[handlers.{name}.options]", f'path = "{name}"']
    path = place / "config.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session", autouse=True)
def grpc_stays_open() -> None:
    """Keep gRPC's own sockets for the whole run: a test that opens them first would seem to leak them."""

    async def begin() -> None:
        grpc.aio.init_grpc_aio()

    asyncio.run(begin())


@pytest.fixture(
    params=[
        pytest.param(LIGHT, id="on-this-kernel"),
        pytest.param((*LIGHT, "vm"), id="and-a-vm", marks=HEAVY),
    ]
)
def handlers(request) -> tuple[str, ...]:
    return request.param


@pytest.fixture
def server(tmp_path, handlers):
    made = Server(config=configuration(tmp_path, handlers))
    made.start()
    yield made
    made.take_down()


def common(status: object) -> dict[str, object]:
    """Return the fields of a status that must be the same everywhere."""
    return {field.name: value for field, value in status.ListFields() if field.name not in OWN}


async def begin(pods: Pods, handler: str) -> tuple[Pod, str]:
    """Run the pod on one handler; return when its container has spoken."""
    pod = await pods.run("same", uid=f"uid-{handler}", handler=handler)
    box = await pod.start(SCRIPT, envs=[pb.KeyValue(key="GREETING", value=b"hello")])
    await pod.said(box, "hello")
    return pod, box


@pytest.mark.timeout(300)
async def test_the_same_pod_on_all_backends_at_once(server, handlers, tmp_path):
    layout = images.write_layout(tmp_path / "layout", [images.busybox_layer()])
    async with CriClient(server.endpoint) as cri:
        await cri.pull_image(f"oci:{layout}")
        pods = Pods(cri, images.NAME, tmp_path)
        made = await asyncio.gather(*(begin(pods, handler) for handler in handlers))
        await check_all_run(cri, handlers, made)
        before = [await facts(cri, pod, box) for pod, box in made]

        server.kill()
        server.launch()
        await server.ready()
        await cri.wait_ready(30)

        assert [await facts(cri, pod, box) for pod, box in made] == before
        await check_all_run(cri, handlers, made)
        await asyncio.gather(*(pod.sh(box, "touch /tmp/go") for pod, box in made))
        await check_all_end(handlers, made)
        await pods.remove_all()
        # What lives now is left to `polypod down`.
        await asyncio.gather(*(begin(pods, handler) for handler in handlers))


async def facts(cri: CriClient, pod: Pod, box: str) -> tuple[object, object]:
    return await pod.status(), (await cri.container_status(box)).status


async def check_all_run(cri: CriClient, handlers, made) -> None:
    """All run, told in the same words; only the handler and the address differ."""
    sandboxes = [await pod.status() for pod, _ in made]
    assert [each.runtime_handler for each in sandboxes] == list(handlers)
    boxes = [(await cri.container_status(box)).status for _, box in made]
    assert {each.state for each in boxes} == {pb.CONTAINER_RUNNING}
    for status in boxes:
        assert common(status) == common(boxes[0])
    listed = {each.id for each in await cri.list_containers()}
    assert listed == {box for _, box in made}


async def check_all_end(handlers, made) -> None:
    ends = await asyncio.gather(*(pod.ended(box) for pod, box in made))
    wanted = "out same hello\n" + "".join(f"{number}\n" for number in range(1, 501))
    for handler, end in zip(handlers, ends, strict=True):
        assert (handler, end.code, end.err) == (handler, 7, "err\n")
        assert log_text(end.status.log_path) == wanted, handler
        assert common(end.status) == common(ends[0].status)
