"""Every event reaches a plugin, in order; what it answers takes effect."""

from __future__ import annotations

import pytest
from support.nri import CONFIG, container_facts, sandbox_facts

from polypod.plugin import ExitStatus, FailedPrecondition, PodResources, Resources
from polypod_nri.wire import api


async def life_of_a_pod(lab):
    """All hooks of a pod with one container, as core calls them."""
    sandbox, container = sandbox_facts(state="creating"), container_facts(state="created")
    lab.services.add(sandbox)
    await lab.plugin.polypod_before_sandbox_ready(sandbox)
    lab.services.add(sandbox_facts())
    lab.plugin.polypod_sandbox_ready(sandbox.id, sandbox.config, "fast")
    await lab.create(container)
    await lab.plugin.polypod_before_container_start(container)
    lab.plugin.polypod_container_started(container.id, 7)
    await lab.plugin.polypod_adjust_update(container, Resources(cpu_shares=7))
    lab.plugin.polypod_container_updated(container)
    await lab.plugin.polypod_before_sandbox_resize(sandbox_facts(), PodResources())
    lab.plugin.polypod_sandbox_resized(sandbox_facts())
    lab.services.add(container_facts(state="exited"))
    lab.plugin.polypod_container_exited(container.id, ExitStatus(0))
    await lab.plugin.polypod_before_sandbox_stop(sandbox_facts())
    lab.plugin.polypod_container_removed(container.id)
    lab.plugin.polypod_sandbox_removed(sandbox.id)


LIFE = [
    "Synchronize",
    "RunPodSandbox",
    "CreateContainer",
    "ValidateContainerAdjustment",
    "PostCreateContainer",
    "StartContainer",
    "PostStartContainer",
    "UpdateContainer",
    "PostUpdateContainer",
    "UpdatePodSandbox",
    "PostUpdatePodSandbox",
    "StopContainer",
    "StopPodSandbox",
    "RemoveContainer",
    "RemovePodSandbox",
]


async def test_every_event_comes_in_order(lab):
    plugin = await lab.connect()
    await life_of_a_pod(lab)
    await lab.until(lambda: len(plugin.calls) >= len(LIFE))
    assert plugin.methods() == LIFE
    for method, request in plugin.calls[1:]:
        assert request.pod.name == "pod1", method
        assert request.pod.uid == "uid1", method
        if "Container" in method:
            assert request.container.name == "box1", method
            assert request.container.pod_sandbox_id == request.pod.id, method


async def test_a_plugin_is_told_what_it_subscribed_to(lab):
    plugin = await lab.connect(methods=["CreateContainer", "RemovePodSandbox"])
    await life_of_a_pod(lab)
    await lab.until(lambda: "RemovePodSandbox" in plugin.methods())
    assert plugin.methods() == ["CreateContainer", "RemovePodSandbox"]


async def test_a_refused_sandbox_names_the_plugin(lab):
    async def refuse(_request):
        raise RuntimeError("no room")

    await lab.connect(RunPodSandbox=refuse)
    with pytest.raises(FailedPrecondition, match=r"NRI plugin 10-logger: RunPodSandbox:.*no room"):
        await lab.plugin.polypod_before_sandbox_ready(sandbox_facts(state="creating"))
    assert lab.state_of("10-logger") == "connected"


async def test_a_created_container_is_adjusted(lab):
    async def adjust(_request):
        answer = api.CreateContainerResponse()
        answer.adjust.env.add(key="NEW", value="x")
        return answer

    await lab.connect(CreateContainer=adjust)
    assert (await lab.create(container_facts())).process.env == ("PATH=/bin", "KEEP=1", "NEW=x")


async def test_plugins_are_asked_in_the_order_of_their_index(lab):
    async def one(request):
        answer = api.CreateContainerResponse()
        answer.adjust.env.add(key="ONE", value=str(len(request.container.env)))
        return answer

    async def two(request):
        answer = api.CreateContainerResponse()
        answer.adjust.env.add(key="TWO", value=str(len(request.container.env)))
        return answer

    await lab.connect("late", "20", CreateContainer=two)
    await lab.connect("early", "05", CreateContainer=one)
    config = await lab.create(container_facts())
    assert config.process.env == (*CONFIG.process.env, "ONE=2", "TWO=3")
