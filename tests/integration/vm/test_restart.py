"""The daemon is killed and started again: machines go on, and what they told meanwhile is found."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from conformance.pods import log_text

from polypod.client import pb

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_busybox]


@pytest.fixture(autouse=True)
def nothing_left(server):
    """Compare before and after, as the fixture of this name does elsewhere; the daemon is another one."""
    before = server.residue()
    yield
    assert server.settled(before, ignore="processes") == {}


async def test_daemon_is_killed_and_the_machine_goes_on(pods, cri, server):
    pod = await pods.run("goes-on")
    box = await pod.start(
        "n=0; while [ $n -lt 60 ]; do echo line $n; n=$((n+1)); sleep 0.1; done; exit 5"
    )
    await pod.said(box, "line 3")
    server.kill()
    await asyncio.sleep(1)
    server.launch()
    await server.ready()
    assert (await pod.status()).state == pb.SANDBOX_READY
    assert "line 1" in await pod.sh(box, "echo line 1")
    ended = await pod.ended(box)
    assert ended.code == 5
    assert ended.out == "".join(f"line {n}\n" for n in range(60))


async def test_exit_without_a_daemon_is_found(pods, cri, server):
    pod = await pods.run("alone")
    box = await pod.start("sleep 1; echo bye; exit 9")
    path = Path((await cri.container_status(box)).status.log_path)
    server.kill()
    for _ in range(200):
        if "bye" in log_text(path):
            break
        await asyncio.sleep(0.05)
    server.launch()
    await server.ready()
    assert (await pod.ended(box)).code == 9
