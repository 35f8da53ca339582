"""Clients that go before the answer: the work goes on, the retry gets its result, nothing is lost.

Failpoints make two steps slow, on every handler alike.
"""

from __future__ import annotations

from conformance.pods import Pods, eventually, refused

from polypod.client import CriClient, pb

FAILPOINTS = (
    "sandbox.attached=delay(600);container.rootfs=delay(600);container.start.logs=delay(600)"
)
SHORT_S = 0.2
"""A deadline that passes inside the slow step, or before it: either must do no harm."""


async def run(cri: CriClient, config: pb.PodSandboxConfig, timeout_s: float | None = None) -> str:
    request = pb.RunPodSandboxRequest(config=config)
    answer = await cri.call(cri.runtime, "RunPodSandbox", request, timeout_s=timeout_s)
    return answer.pod_sandbox_id


async def test_a_retry_of_run_gets_the_sandbox_that_the_first_call_began(pods: Pods, cri):
    config = pods.config()
    with refused("DEADLINE_EXCEEDED"):
        await run(cri, config, SHORT_S)
    assert await cri.list_sandboxes() == []  # half-made ones are not shown
    sandbox_id = await run(cri, config)
    (listed,) = await cri.list_sandboxes()
    assert (listed.id, listed.state) == (sandbox_id, pb.SANDBOX_READY)


async def test_a_sandbox_that_nobody_asks_for_again_is_listed(pods: Pods, cri: CriClient):
    with refused("DEADLINE_EXCEEDED"):
        await run(cri, pods.config(), SHORT_S)

    async def listed():
        return await cri.list_sandboxes()

    (found,) = await eventually(listed, "the finished sandbox in the list")
    assert found.state == pb.SANDBOX_READY


async def test_a_retry_with_another_content_gets_what_it_asks_for(pods: Pods, cri: CriClient):
    config = pods.config(uid="same")
    with refused("DEADLINE_EXCEEDED"):
        await run(cri, config, SHORT_S)
    await eventually(cri.list_sandboxes, "the finished sandbox in the list")
    other = pods.config(uid="same", hostname="other", labels={"the": "second"})
    sandbox_id = await run(cri, other)
    (listed,) = await cri.list_sandboxes()
    assert (listed.id, dict(listed.labels)) == (sandbox_id, {"the": "second"})


async def test_a_retry_of_create_gets_the_container_that_the_first_call_began(pods, cri):
    pod = await pods.run()
    config = pod.container_config("sleep 1000")
    request = pb.CreateContainerRequest(
        pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config
    )
    with refused("DEADLINE_EXCEEDED"):
        await cri.call(cri.runtime, "CreateContainer", request, timeout_s=SHORT_S)
    box = await cri.create_container(pod.id, config, pod.config)
    assert [each.id for each in await cri.list_containers()] == [box]


async def test_a_start_goes_on_without_its_caller(pods: Pods, cri: CriClient):
    pod = await pods.run()
    box = await pod.create()
    request = pb.StartContainerRequest(container_id=box)
    with refused("DEADLINE_EXCEEDED"):
        await cri.call(cri.runtime, "StartContainer", request, timeout_s=SHORT_S)

    async def running() -> bool:
        return (await cri.container_status(box)).status.state == pb.CONTAINER_RUNNING

    await eventually(running, "RUNNING")


async def test_a_stop_goes_on_without_its_caller(pods: Pods, cri: CriClient):
    pod = await pods.run()
    box = await pod.start("trap 'sleep 0.6; exit 0' TERM; while true; do sleep 0.05; done")
    request = pb.StopContainerRequest(container_id=box, timeout=30)
    with refused("DEADLINE_EXCEEDED"):
        await cri.call(cri.runtime, "StopContainer", request, timeout_s=SHORT_S)
    assert (await pod.ended(box)).code == 0


async def test_an_exec_ends_with_its_client(pods: Pods, cri: CriClient, handler):
    pod = await pods.run()
    box = await pod.start()
    request = pb.ExecSyncRequest(container_id=box, cmd=["sh", "-c", "sleep 4321"])
    with refused("DEADLINE_EXCEEDED"):
        await cri.call(cri.runtime, "ExecSync", request, timeout_s=SHORT_S)
    if handler.simulated:
        return

    async def gone() -> bool:
        return "4321" not in await pod.sh(box, "ps -o args")

    await eventually(gone, "the end of the exec")
