"""Plugins that are asked before the fact: what a refusal leaves, and what is told after it."""

from dataclasses import replace

import pytest

from polypod.lifecycle.views import ContainerState, Filter, SandboxState
from polypod.plugin.errors import FailedPrecondition
from polypod.plugin.oci import CpuLimits
from polypod.plugin.requests import Resources


def refuse(bench, step):
    bench.world.faults.errors[step] = [FailedPrecondition("a plugin says no")]


async def created(bench):
    sandbox = await bench.core.run_sandbox(bench.sandbox_config(), "")
    return sandbox, await bench.core.create_container(sandbox, bench.container_config(), None)


async def test_a_refused_sandbox_was_never_there_and_plugins_are_told(bench):
    refuse(bench, "before ready")
    with pytest.raises(FailedPrecondition, match="a plugin says no"):
        await bench.core.run_sandbox(bench.sandbox_config(), "")
    assert await bench.core.list_sandboxes(Filter()) == []
    assert [kind for kind, _id in bench.hooks.told] == ["before ready", "removed"]
    await bench.core.run_sandbox(bench.sandbox_config(), "")


async def test_a_sandbox_is_not_listed_while_plugins_are_asked(bench):
    seen = []
    ask = bench.hooks.before_sandbox_ready

    async def look(sandbox, /):
        seen.append((sandbox.state, await bench.core.list_sandboxes(Filter())))
        await ask(sandbox)

    bench.hooks.before_sandbox_ready = look
    await bench.core.run_sandbox(bench.sandbox_config(), "")
    assert seen == [("creating", [])]


async def test_a_refused_container_is_taken_back_and_told(bench):
    sandbox = await bench.core.run_sandbox(bench.sandbox_config(), "")
    refuse(bench, "adjust")
    with pytest.raises(FailedPrecondition, match="a plugin says no"):
        await bench.core.create_container(sandbox, bench.container_config(), None)
    assert bench.hooks.told[-1][0] == "container removed"
    assert await bench.core.list_containers(Filter()) == []


async def test_a_made_container_is_told_once_with_its_config(bench):
    _sandbox, container = await created(bench)
    assert bench.hooks.told[-1] == ("created", container)
    facts = bench.core.container_facts(container)
    assert (facts.state, facts.config.process.args) == ("created", ("sleep", "9"))


async def test_limits_that_plugins_set_are_in_the_status(bench):
    async def adjust(_container, _sandbox, _config, _request, config, /):
        resources = replace(config.linux.resources, cpu=CpuLimits(shares=77))
        return replace(config, linux=replace(config.linux, resources=resources))

    bench.hooks.adjust = adjust
    _sandbox, container = await created(bench)
    assert (await bench.core.container_status(container)).resources == Resources(cpu_shares=77)


async def test_a_refused_start_is_a_failed_start(bench):
    _sandbox, container = await created(bench)
    refuse(bench, "before start")
    with pytest.raises(FailedPrecondition, match="a plugin says no"):
        await bench.core.start_container(container)
    status = await bench.core.container_status(container)
    assert (status.state, status.exit_code) == (ContainerState.EXITED, 128)
    assert container not in bench.world.specs


async def test_limits_are_what_plugins_make_of_them(bench):
    _sandbox, container = await created(bench)
    bench.hooks.limits = Resources(cpu_shares=9)
    await bench.core.update_container(container, Resources(cpu_shares=7))
    assert (await bench.core.container_status(container)).resources.cpu_shares == 9
    assert bench.hooks.told[-1] == ("updated", container)


async def test_refused_limits_change_nothing_and_are_not_told(bench):
    _sandbox, container = await created(bench)
    refuse(bench, "adjust update")
    with pytest.raises(FailedPrecondition, match="a plugin says no"):
        await bench.core.update_container(container, Resources(cpu_shares=7))
    assert (await bench.core.container_status(container)).resources.cpu_shares == 0
    assert ("updated", container) not in bench.hooks.told


async def test_a_refused_resize_changes_nothing(bench):
    sandbox = await bench.core.run_sandbox(bench.sandbox_config(), "")
    refuse(bench, "before resize")
    with pytest.raises(FailedPrecondition, match="a plugin says no"):
        await bench.core.update_sandbox(sandbox, None, Resources(cpu_shares=7))
    assert bench.core.sandbox_facts(sandbox).resources is None
    await bench.core.update_sandbox(sandbox, None, Resources(cpu_shares=7))
    assert bench.hooks.told[-1] == ("resized", sandbox)
    assert bench.core.sandbox_facts(sandbox).resources == Resources(cpu_shares=7)


async def test_a_refused_stop_is_told_when_all_is_given_back(bench):
    sandbox = await bench.core.run_sandbox(bench.sandbox_config(), "")
    refuse(bench, "before stop")
    with pytest.raises(FailedPrecondition, match="a plugin says no"):
        await bench.core.stop_sandbox(sandbox)
    assert (await bench.core.sandbox_status(sandbox)).state is SandboxState.NOT_READY
    assert bench.hooks.told[-1] == ("stopped", sandbox)
    await bench.core.stop_sandbox(sandbox)
    await bench.core.remove_sandbox(sandbox)
    assert await bench.core.list_sandboxes(Filter()) == []


async def test_a_refused_stop_does_not_keep_a_sandbox_from_being_removed(bench):
    sandbox = await bench.core.run_sandbox(bench.sandbox_config(), "")
    refuse(bench, "before stop")
    await bench.core.remove_sandbox(sandbox)
    assert await bench.core.list_sandboxes(Filter()) == []


async def test_a_snapshot_has_what_is_listed_also_after_a_restart(bench):
    sandbox, container = await created(bench)
    await bench.core.start_container(container)
    for again in (False, True):
        if again:
            await bench.restart()
        seen = bench.core.snapshot()
        assert [each.id for each in seen.sandboxes] == [sandbox]
        (found,) = seen.containers
        assert (found.id, found.state, found.sandbox_id) == (container, "running", sandbox)
        assert found.config.process.args == ("sleep", "9")
    assert bench.core.sandbox_facts("unknown") is None
    assert bench.core.container_facts("unknown") is None
