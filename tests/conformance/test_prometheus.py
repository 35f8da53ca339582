"""The server's own metrics, read as Prometheus reads them."""

from __future__ import annotations

import asyncio
import re
import socket
import urllib.request

import pytest
from conformance.pods import Pods, refused

from polypod.client import CriClient


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


PORT = _free_port()
SETTINGS = (f'metrics.listen="127.0.0.1:{PORT}"',)


@pytest.fixture
def read():
    """Return a function that reads all figures: series → value."""

    def get() -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=20) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
            text = answer.read().decode()
        rows = re.findall(r"^(\w+(?:\{[^}]*\})?) (\S+)$", text, re.MULTILINE)
        return {name: float(number) for name, number in rows}

    async def later() -> dict[str, float]:
        return await asyncio.to_thread(get)

    return later


async def test_calls_and_their_errors_are_counted(cri: CriClient, read):
    ok = 'polypod_rpc_total{code="OK",method="Version"}'
    bad = 'polypod_rpc_total{code="NOT_FOUND",method="ContainerStatus"}'
    before = await read()
    await cri.version()
    with refused("NOT_FOUND"):
        await cri.container_status("0123456789abcdef")
    after = await read()
    assert after[ok] == before.get(ok, 0) + 1
    assert after[bad] == before.get(bad, 0) + 1
    assert after['polypod_rpc_seconds_count{method="Version"}'] >= 1


async def test_pods_are_counted_by_state(pods: Pods, cri: CriClient, read, handler):
    pod = await pods.run()
    await pod.start("sleep 1000")
    await pod.create(name="second")
    found = await read()
    assert found[f'polypod_sandboxes{{handler="{handler.name}",state="ready"}}'] == 1
    assert found[f'polypod_containers{{handler="{handler.name}",state="running"}}'] == 1
    assert found[f'polypod_containers{{handler="{handler.name}",state="created"}}'] == 1
    await cri.stop_sandbox(pod.id)
    found = await read()
    assert found[f'polypod_sandboxes{{handler="{handler.name}",state="not-ready"}}'] == 1


async def test_stages_of_a_launch_are_timed(pods: Pods, read):
    name = 'polypod_stage_seconds_count{stage="create in the backend"}'
    before = (await read()).get(name, 0)
    pod = await pods.run()
    await pod.start("sleep 1000")
    after = await read()
    assert after[name] == before + 1
    assert after['polypod_stage_seconds_count{stage="start"}'] >= 1
    assert "process_resident_memory_bytes" in after
