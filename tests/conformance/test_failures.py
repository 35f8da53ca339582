"""RunPodSandbox that fails at its last step: everything is undone, also when nobody waits any more.

A failpoint lets each but the server's first pod fail there, after a slow step.
"""

from __future__ import annotations

import asyncio
import json

import pytest
from conformance.pods import Pods, eventually, refused

from polypod.client import CriClient, pb

FAILPOINTS = "sandbox.attached=delay(500);sandbox.created=1*off->error(on purpose)"


async def _known(cri: CriClient) -> int:
    """Return how many sandboxes the server knows, those that it does not list included."""
    return json.loads((await cri.status(verbose=True)).info["info"])["sandboxes"]


async def test_a_run_that_fails_leaves_nothing(pods: Pods, cri: CriClient, server):
    before = server.residue()
    with refused("UNKNOWN", "on purpose"):
        await pods.run()
    assert (await cri.list_sandboxes(), await _known(cri)) == ([], 0)
    assert await asyncio.to_thread(server.settled, before) == {}


async def test_f2_16_cleanup_runs_though_the_deadline_has_passed(pods: Pods, cri, server):
    before = server.residue()
    request = pb.RunPodSandboxRequest(config=pods.config())
    call = asyncio.ensure_future(cri.call(cri.runtime, "RunPodSandbox", request, timeout_s=0.3))

    async def begun() -> bool:
        return await _known(cri) == 1

    await eventually(begun, "a sandbox in the making")
    with refused("DEADLINE_EXCEEDED"):
        await call

    async def gone() -> bool:
        return await _known(cri) == 0

    await eventually(gone, "nothing known of it any more")
    assert await cri.list_sandboxes() == []
    assert await asyncio.to_thread(server.settled, before) == {}


@pytest.mark.parametrize("calls", [5])
async def test_those_who_joined_a_failing_run_all_hear_of_it(pods: Pods, cri, calls: int):
    config = pods.config()
    runs = [asyncio.ensure_future(cri.run_sandbox(config)) for _ in range(calls)]
    answers = await asyncio.gather(*runs, return_exceptions=True)
    assert all("on purpose" in str(each) for each in answers)
    assert await _known(cri) == 0
