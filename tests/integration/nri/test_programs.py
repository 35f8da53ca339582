"""Plugins as processes over a server of simulated pods: started, connecting, refusing, hanging, dying."""

from __future__ import annotations

import asyncio
import subprocess

import pytest
from conformance.pods import eventually, refused
from support.server import POLYPOD

from polypod.client import pb


async def a_life(cri, pods):
    """One pod with one container, from the first call to the last."""
    pod = await pods.run()
    container = await pod.start(["sleep", "1000"])
    await cri.stop_container(container, 0)
    await cri.remove_container(container)
    await cri.stop_sandbox(pod.id)
    await cri.remove_sandbox(pod.id)
    return pod.id, container


async def test_a_started_program_is_told_of_a_whole_life_in_order(sim, pods_of):
    sim.install()
    sim.server.launch()
    await sim.server.ready()
    cri, pods = await pods_of(sim)
    pod, container = await a_life(cri, pods)
    await sim.until(lambda: sim.calls(method="RemovePodSandbox"))
    calls = sim.calls()
    assert [each["method"] for each in calls] == [
        "Configure",
        "Synchronize",
        "RunPodSandbox",
        "CreateContainer",
        "ValidateContainerAdjustment",
        "PostCreateContainer",
        "StartContainer",
        "PostStartContainer",
        "StopContainer",
        "RemoveContainer",
        "StopPodSandbox",
        "RemovePodSandbox",
    ]
    assert {each["pod"]["id"] for each in calls[2:]} == {pod}
    assert {each["container"]["id"] for each in calls if "container" in each} == {container}
    seen = await asyncio.to_thread(sim.plugins)
    assert seen["10-program"]["kind"] == "started"


async def test_a_program_that_connects_is_told_what_there_is_also_after_a_restart(sim, pods_of):
    sim.server.launch()
    await sim.server.ready()
    _cri, pods = await pods_of(sim)
    pod = await pods.run()
    container = await pod.start(["sleep", "1000"])
    first = await sim.connect()
    (seen,) = sim.calls("50-program", "Synchronize")
    assert [each["id"] for each in seen["pods"]] == [pod.id]
    assert [each["id"] for each in seen["containers"]] == [container]
    await asyncio.to_thread(sim.server.stop)
    await asyncio.to_thread(first.wait)
    sim.server.launch()
    await sim.server.ready()
    await sim.connect()
    seen = sim.calls("50-program", "Synchronize")[-1]
    assert [each["id"] for each in seen["containers"]] == [container]
    await pods.remove_all()


async def test_an_adjusted_program_is_executed(sim, pods_of):
    sim.install(adjust={"args": ["sh", "-c", "echo adjusted"]})
    sim.server.launch()
    await sim.server.ready()
    _cri, pods = await pods_of(sim)
    pod = await pods.run()
    assert (await pod.run(["sh", "-c", "echo as asked"])).out == "adjusted\n"
    await pods.remove_all()


async def test_a_refused_sandbox_leaves_nothing_and_may_be_tried_again(sim, pods_of):
    sim.server.launch()
    await sim.server.ready()
    cri, pods = await pods_of(sim)
    program = await sim.connect(refuse=["RunPodSandbox"])
    with refused("FAILED_PRECONDITION", "50-program", "RunPodSandbox", "the program says no"):
        await pods.run()
    assert await cri.list_sandboxes() == []
    await sim.until(lambda: sim.calls("50-program", "RemovePodSandbox"))
    program.kill()
    await sim.until(lambda: sim.plugins()["50-program"]["state"] == "closed")
    await pods.run()
    await pods.remove_all()


async def test_a_refused_container_leaves_nothing(sim, pods_of):
    sim.server.launch()
    await sim.server.ready()
    cri, pods = await pods_of(sim)
    await sim.connect(refuse=["CreateContainer"])
    pod = await pods.run()
    with refused("FAILED_PRECONDITION", "50-program", "the program says no"):
        await pod.create(["sleep", "1000"])
    assert await cri.list_containers() == []
    await pods.remove_all()


async def test_a_refused_start_is_a_failed_start(sim, pods_of):
    sim.server.launch()
    await sim.server.ready()
    cri, pods = await pods_of(sim)
    await sim.connect(refuse=["StartContainer"])
    pod = await pods.run()
    container = await pod.create(["sleep", "1000"])
    with refused("FAILED_PRECONDITION", "50-program"):
        await cri.start_container(container)
    status = (await cri.container_status(container)).status
    assert (status.state, status.exit_code) == (pb.CONTAINER_EXITED, 128)
    await pods.remove_all()


async def test_a_refused_stop_is_told_and_the_sandbox_is_stopped(sim, pods_of):
    sim.server.launch()
    await sim.server.ready()
    cri, pods = await pods_of(sim)
    await sim.connect(refuse=["StopPodSandbox"])
    pod = await pods.run()
    with refused("FAILED_PRECONDITION", "50-program", "the program says no"):
        await cri.stop_sandbox(pod.id)
    assert (await pod.status()).state == pb.SANDBOX_NOTREADY
    await cri.stop_sandbox(pod.id)
    await cri.remove_sandbox(pod.id)
    other = await pods.run("other")
    await cri.remove_sandbox(other.id)
    assert await cri.list_sandboxes() == []


async def test_programs_that_hang_or_die_are_closed_and_named_and_pods_go_on(sim, pods_of):
    sim.install("10-hangs", hang=["RunPodSandbox"])
    sim.install("20-dies", die=["CreateContainer"])
    sim.server.launch()
    await sim.server.ready()
    cri, pods = await pods_of(sim)
    await a_life(cri, pods)
    seen = await asyncio.to_thread(sim.plugins)
    assert seen["10-hangs"]["reason"] == "it did not answer RunPodSandbox within 5 s"
    assert seen["20-dies"]["reason"] == "it closed the connection"
    log = sim.server.log_tail()
    assert "NRI plugin closed name=20-dies" in log
    words = [POLYPOD, "--endpoint", sim.endpoint, "plugins", "--running"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "10-hangs" in shown
    assert "closed: it did not answer RunPodSandbox within 5 s" in shown


@pytest.mark.parametrize("settings", [('plugins.nri.required=["program"]',)])
async def test_a_required_program_must_be_there(sim, pods_of):
    sim.server.launch()
    await sim.server.ready()
    _cri, pods = await pods_of(sim)
    pod = await pods.run()
    with refused("FAILED_PRECONDITION", "'program'", "plugins.nri.required"):
        await pod.create(["sleep", "1000"])
    await sim.connect()
    await pod.create(["sleep", "1000"])
    await pods.remove_all()


async def test_an_update_that_nobody_asked_for_is_in_the_status(sim, pods_of):
    sim.install(shares=77)
    sim.server.launch()
    await sim.server.ready()
    cri, pods = await pods_of(sim)
    pod = await pods.run()
    container = await pod.start(["sleep", "1000"])

    async def changed():
        status = (await cri.container_status(container)).status
        return status.resources.linux.cpu_shares == 77

    await eventually(changed, "cpu shares in the status")
    assert sim.calls(method="UpdateContainer") == []
    await pods.remove_all()


async def test_an_eviction_stops_the_sandbox(sim, pods_of):
    sim.install(evict=True)
    sim.server.launch()
    await sim.server.ready()
    _cri, pods = await pods_of(sim)
    pod = await pods.run()
    await pod.start(["sleep", "1000"])

    async def stopped():
        return (await pod.status()).state == pb.SANDBOX_NOTREADY

    await eventually(stopped, "the end of the sandbox")
    await pods.remove_all()
