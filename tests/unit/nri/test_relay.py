"""Every event reaches a plugin, in order; what it answers takes effect."""

from __future__ import annotations

import pytest
from support.nri import CONFIG, close_all, container_facts, sandbox_facts

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


@pytest.mark.parametrize("name", ["a/b=c", "missing"])
async def test_cdi_devices_that_a_plugin_asks_for_are_added(lab, name):
    async def adjust(_request):
        answer = api.CreateContainerResponse()
        answer.adjust.CDI_devices.add(name=name)
        return answer

    await lab.connect(CreateContainer=adjust)
    if name == "missing":
        with pytest.raises(
            FailedPrecondition, match="NRI plugin 10-logger: no CDI device 'missing'"
        ):
            await lab.create(container_facts())
    else:
        assert (await lab.create(container_facts())).hostname == "with a/b=c"


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


def limits(container_id, **shares):
    update = api.ContainerUpdate(container_id=container_id, **shares)
    update.linux.resources.cpu.shares.value = 7
    return update


SEVEN = Resources(cpu_shares=7)


# What plugins ask for beside an answer


async def test_a_created_container_may_change_others_before_it_is_made(lab, services):
    other = container_facts(2)
    services.add(other)

    async def adjust(_request):
        return api.CreateContainerResponse(update=[limits(other.id)])

    await lab.connect(CreateContainer=adjust)
    await lab.create(container_facts(1))
    assert services.updates == [(other.id, SEVEN)]


async def test_two_plugins_may_not_change_one_limit_of_another_container(lab, services):
    services.add(container_facts(2))

    async def adjust(_request):
        return api.CreateContainerResponse(update=[limits(container_facts(2).id)])

    await lab.connect("a", "10", CreateContainer=adjust)
    await lab.connect("b", "20", CreateContainer=adjust)
    with pytest.raises(FailedPrecondition, match="NRI plugins 10-a and 20-b both set CPUShares of"):
        await lab.create(container_facts(1))
    assert services.updates == []


async def test_new_limits_are_changed_on_their_way(lab):
    facts = container_facts()

    async def adjust(request):
        assert request.linux_resources.memory.limit.value == 100
        assert not request.linux_resources.cpu.HasField("shares")
        return api.UpdateContainerResponse(update=[limits(facts.id)])

    await lab.connect(UpdateContainer=adjust)
    wanted = Resources(memory_limit_in_bytes=100, oom_score_adj=5)
    answer = await lab.plugin.polypod_adjust_update(facts, wanted)
    assert answer == Resources(memory_limit_in_bytes=100, oom_score_adj=5, cpu_shares=7)


async def test_new_limits_of_one_container_may_change_another(lab, services):
    services.add(container_facts(2))

    async def adjust(_request):
        return api.UpdateContainerResponse(update=[limits(container_facts(2).id)])

    await lab.connect(UpdateContainer=adjust)
    assert await lab.plugin.polypod_adjust_update(container_facts(1), Resources()) is None
    await lab.until(lambda: services.updates)
    assert services.updates == [(container_facts(2).id, SEVEN)]


async def test_two_plugins_may_not_change_one_limit_on_its_way(lab):
    async def adjust(_request):
        return api.UpdateContainerResponse(update=[limits(container_facts().id)])

    await lab.connect("a", "10", UpdateContainer=adjust)
    await lab.connect("b", "20", UpdateContainer=adjust)
    with pytest.raises(FailedPrecondition, match="10-a and 20-b both set CPUShares"):
        await lab.plugin.polypod_adjust_update(container_facts(), Resources())


async def test_the_end_of_a_container_may_change_others(lab, services):
    services.add(container_facts(1, state="exited"), container_facts(2))

    async def adjust(_request):
        return api.StopContainerResponse(update=[limits(container_facts(2).id)])

    await lab.connect(StopContainer=adjust)
    lab.plugin.polypod_container_exited(container_facts(1).id, ExitStatus(0))
    await lab.until(lambda: services.updates)
    assert services.updates == [(container_facts(2).id, SEVEN)]


async def test_synchronize_may_change_what_there_is(lab, services):
    services.add(container_facts())

    async def adjust(_request):
        return api.SynchronizeResponse(update=[limits(container_facts().id)])

    await lab.connect(Synchronize=adjust)
    await lab.until(lambda: services.updates)
    assert services.updates == [(container_facts().id, SEVEN)]


# What plugins ask for by themselves


async def test_updates_that_nobody_asked_for(lab, services):
    services.add(container_facts())
    plugin = await lab.connect()
    missing, ignored = limits("missing"), limits("ignored", ignore_failure=True)
    failed = await plugin.stub.update([missing, limits(container_facts().id), ignored])
    assert list(failed) == [missing]
    assert services.updates == [(container_facts().id, SEVEN)]


async def test_an_update_that_cri_has_no_word_for_fails(lab, services):
    services.add(container_facts())
    plugin = await lab.connect()
    update = api.ContainerUpdate(container_id=container_facts().id)
    update.linux.resources.memory.kernel.value = 1
    assert list(await plugin.stub.update([update])) == [update]
    assert services.updates == []


async def test_updates_of_plugins_are_not_asked_about(lab, services):
    """Else a plugin that asks for an update inside an answer would wait for itself."""
    facts = container_facts()
    services.add(facts)

    async def core(_container_id, resources):
        await lab.plugin.polypod_adjust_update(facts, resources)
        lab.plugin.polypod_container_updated(facts)

    services.on_update = core
    plugin = await lab.connect()
    await plugin.stub.update([limits(facts.id)])
    assert services.updates
    await lab.plugin.polypod_before_container_start(facts)
    assert plugin.methods() == ["Synchronize", "StartContainer"]


async def test_evictions(lab, services):
    services.add(sandbox_facts(), container_facts())
    plugin = await lab.connect()
    wanted = api.ContainerEviction(container_id=container_facts().id, reason="too hot")
    await plugin.stub.update(evictions=[wanted, api.ContainerEviction(container_id="missing")])
    await lab.until(lambda: services.evicted)
    assert services.evicted == [(sandbox_facts().id, "NRI plugin 10-logger: too hot")]


async def test_an_answer_may_evict(lab, services):
    services.add(sandbox_facts(5), container_facts(2, 5))

    async def adjust(_request):
        wanted = api.ContainerEviction(container_id=container_facts(2).id)
        return api.CreateContainerResponse(evict=[wanted])

    await lab.connect(CreateContainer=adjust)
    await lab.create(container_facts(1))
    await lab.until(lambda: services.evicted)
    assert services.evicted == [(sandbox_facts(5).id, "NRI plugin 10-logger: no reason given")]


# Validation


async def test_those_that_validate_see_what_all_have_made(lab):
    async def adjust(_request):
        answer = api.CreateContainerResponse()
        answer.adjust.env.add(key="NEW", value="x")
        return answer

    await lab.connect("changer", "10", methods=["CreateContainer"], CreateContainer=adjust)
    judge = await lab.connect("judge", "20", methods=["ValidateContainerAdjustment"])
    await lab.create(container_facts())
    (seen,) = judge.of("ValidateContainerAdjustment")
    assert [each.key for each in seen.adjust.env] == ["NEW"]
    assert list(seen.container.env) == list(CONFIG.process.env)
    assert [(each.index, each.name) for each in seen.plugins] == [
        ("10", "changer"),
        ("20", "judge"),
    ]
    owners = seen.owners.owners[container_facts().id].compound[api.Env].owners
    assert dict(owners) == {"NEW": "10-changer"}


async def test_a_rejection_fails_the_container(lab):
    async def reject(_request):
        return api.ValidateContainerAdjustmentResponse(reject=True, reason="no such thing here")

    await lab.connect("judge", "20", ValidateContainerAdjustment=reject)
    with pytest.raises(FailedPrecondition, match=r"NRI plugin 20-judge rejects .*: no such thing"):
        await lab.create(container_facts())


# Older plugins


async def test_what_a_plugin_does_not_know_is_told_by_state_change(lab):
    older = {"CreateContainer", "UpdateContainer", "StopContainer", "StateChange", "Synchronize"}

    async def everything(_request):
        return api.ConfigureResponse(events=0)

    plugin = await lab.connect(methods=[*older, "Configure"], Configure=everything)
    await life_of_a_pod(lab)
    told = plugin.of
    await lab.until(lambda: len(told("StateChange")) == 9)
    names = [api.Event.Name(each.event) for each in told("StateChange")]
    assert names == [
        "RUN_POD_SANDBOX",
        "POST_CREATE_CONTAINER",
        "START_CONTAINER",
        "POST_START_CONTAINER",
        "POST_UPDATE_CONTAINER",
        "POST_UPDATE_POD_SANDBOX",
        "STOP_POD_SANDBOX",
        "REMOVE_CONTAINER",
        "REMOVE_POD_SANDBOX",
    ]
    assert told("StateChange")[1].container.name == "box1"
    assert lab.state_of("10-logger") == "connected"


# Configuration


async def test_configure_tells_who_asks_and_the_limits(open_lab):
    lab = await open_lab(request_timeout_s=1.5, registration_timeout_s=3)
    plugin = await lab.connect(methods=["Configure", "RunPodSandbox"], Configure=subscribe)
    (seen,) = plugin.of("Configure")
    assert seen.runtime_name == "polypod"
    assert seen.runtime_version
    assert (seen.request_timeout, seen.registration_timeout) == (1500, 3000)
    assert lab.services.plugins()["10-logger"]["events"] == ["RunPodSandbox"]
    await close_all(open_lab)


async def subscribe(_request):
    return api.ConfigureResponse(events=1)


async def test_leaving_tells_the_plugins(open_lab):
    lab = await open_lab()
    plugin = await lab.connect()
    for _lab, observer in open_lab.opened:
        await observer.close()
    assert plugin.methods()[-1] == "Shutdown"
    assert lab.plugin.asleep
    assert not lab.path.exists()
    await plugin.stub.stop()


async def test_switched_off_nothing_is_opened(open_lab):
    lab = await open_lab(enabled=False)
    assert lab.plugin.asleep
    assert not lab.path.exists()
    await close_all(open_lab)


async def test_the_socket_is_for_root_alone(lab):
    assert lab.path.stat().st_mode & 0o777 == 0o600
    assert lab.path.parent.stat().st_mode & 0o777 == 0o700
