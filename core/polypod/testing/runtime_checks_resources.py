"""Contract checks: limits that change while containers run, and counters of whole sandboxes."""

from __future__ import annotations

from dataclasses import replace

from polypod.plugin.ids import SandboxId, new_id
from polypod.plugin.requests import Resources
from polypod.plugin.runtime import (
    BackendState,
    Feature,
    MetricGroup,
    MetricsSource,
    PodResources,
    Resizable,
    SandboxStatsSource,
    StatsSource,
)
from polypod.testing.runtime_checks_lifecycle import LOOP
from polypod.testing.runtime_lab import Box, RuntimeLab
from polypod.testing.suite import NotApplicable, expect, refused, soon

_MIB = 1 << 20


async def _limit(lab: RuntimeLab, box: Box) -> int:
    """Return a container's memory limit, as its counters tell it."""
    if not isinstance(lab.backend, StatsSource):
        raise NotApplicable("the backend has no StatsSource to see limits by")
    usage = (await soon(lab.backend.stats([box.id]), "stats"))[box.id]
    if usage.memory_available_bytes is None or usage.memory_working_set_bytes is None:
        raise NotApplicable("the backend's counters tell no memory limit")
    return usage.memory_available_bytes + usage.memory_working_set_bytes


async def _limited(lab: RuntimeLab) -> Box:
    if Feature.RESOURCES not in lab.subject.type.features:
        raise NotApplicable("the type does not declare resources")
    wanted = replace(lab.script(LOOP), memory_limit_bytes=64 * _MIB)
    box = await lab.run(await lab.sandbox(), wanted)
    await box.says(b"ready")
    return box


async def check_update_is_in_force_at_once(lab: RuntimeLab) -> None:
    """What ``update`` sets holds when it returns, larger and smaller."""
    box = await _limited(lab)
    for size in (128, 48, 96):
        limits = Resources(memory_limit_in_bytes=size * _MIB)
        await soon(lab.backend.update(box.id, limits), "update")
        now = await _limit(lab, box)
        expect(now == size * _MIB, f"the memory limit is {now} after an update to {size} MiB")


async def check_update_leaves_what_it_does_not_name(lab: RuntimeLab) -> None:
    """An update of one limit leaves the others as they are."""
    box = await _limited(lab)
    await soon(lab.backend.update(box.id, Resources(cpu_shares=512)), "update")
    now = await _limit(lab, box)
    expect(now == 64 * _MIB, f"an update of the cpu has made the memory limit {now}")


async def check_update_can_take_a_limit_away(lab: RuntimeLab) -> None:
    """A memory limit of -1 is none."""
    box = await _limited(lab)
    none = Resources(memory_limit_in_bytes=-1, memory_swap_limit_in_bytes=-1)
    await soon(lab.backend.update(box.id, none), "update")
    expect((await box.status()).state is BackendState.RUNNING, "the container has ended")
    if not isinstance(lab.backend, StatsSource):
        raise NotApplicable("the backend has no StatsSource to see limits by")
    usage = (await soon(lab.backend.stats([box.id]), "stats"))[box.id]
    expect(usage.memory_available_bytes is None, "there is still a memory limit")


async def check_update_below_what_is_used_changes_nothing(lab: RuntimeLab) -> None:
    """Less memory than is in use is refused; the container lives, and its old limit holds."""
    box = await _limited(lab)
    before = await _limit(lab, box)
    limits = Resources(cpu_shares=100, memory_limit_in_bytes=4096)
    await refused(lab.backend.update(box.id, limits), "an update to 4096 bytes")
    expect((await box.status()).state is BackendState.RUNNING, "the container has ended")
    now = await _limit(lab, box)
    expect(now == before, f"the refused update has made the memory limit {now}")


def _resizable(lab: RuntimeLab) -> Resizable:
    if not isinstance(lab.backend, Resizable):
        raise NotApplicable("the backend has no Resizable")
    return lab.backend


async def check_resize_keeps_the_pod_running(lab: RuntimeLab) -> None:
    """``resize`` changes what a sandbox may take, up and down; what runs in it goes on."""
    backend, sandbox = _resizable(lab), await lab.sandbox()
    box = await lab.run(sandbox, LOOP)
    await box.says(b"ready")
    for size in (256, 128):
        limits = Resources(memory_limit_in_bytes=size * _MIB, cpu_shares=size)
        overhead = Resources(memory_limit_in_bytes=16 * _MIB, cpu_shares=2)
        await soon(backend.resize(sandbox.id, PodResources(limits, overhead)), "resize")
    expect((await box.status()).state is BackendState.RUNNING, "the container has ended")
    expect(await lab.healthy(sandbox.id) is True, "the sandbox is not healthy any more")


async def check_resize_to_nothing_changes_nothing(lab: RuntimeLab) -> None:
    """Neither resources nor overhead: the limits stay, and that is no error."""
    backend, sandbox = _resizable(lab), await lab.sandbox()
    await soon(backend.resize(sandbox.id, PodResources()), "resize")
    expect(await lab.healthy(sandbox.id) is True, "the sandbox is not healthy any more")


async def check_resize_of_unknown_is_refused(lab: RuntimeLab) -> None:
    """``resize`` of something unknown is refused."""
    limits = PodResources(Resources(cpu_shares=100))
    await refused(_resizable(lab).resize(SandboxId(new_id()), limits), "resize of an unknown id")


async def check_sandbox_stats_hold_their_containers(lab: RuntimeLab) -> None:
    """A sandbox's counters are there, grow no smaller, and leave out what is unknown."""
    source = lab.backend
    if not isinstance(source, SandboxStatsSource):
        raise NotApplicable("the backend has no SandboxStatsSource")
    sandbox = await lab.sandbox()
    box = await lab.run(sandbox, LOOP)
    await box.says(b"ready")
    asked = [sandbox.id, SandboxId(new_id())]
    first = await soon(source.sandbox_stats(asked), "sandbox_stats")
    expect(set(first) == {sandbox.id}, f"it tells of {len(first)} sandboxes, one is there")
    usage = first[sandbox.id]
    expect(usage.timestamp_ns > 0, "the counters have no time")
    expect(bool(usage.source), "nobody says who counted")
    expect((usage.memory_usage_bytes or 0) > 0, "a pod that runs takes no memory")
    later = (await soon(source.sandbox_stats(asked), "sandbox_stats"))[sandbox.id]
    if usage.cpu_usage_core_ns is not None:
        grown = (later.cpu_usage_core_ns or 0) >= usage.cpu_usage_core_ns
        expect(grown, "the cpu time of a pod has fallen")


async def check_details_know_the_living_alone(lab: RuntimeLab) -> None:
    """``details`` tells of running containers, as far as the groups need it."""
    source = lab.backend
    if not isinstance(source, MetricsSource):
        raise NotApplicable("the backend has no MetricsSource")
    sandbox = await lab.sandbox()
    alive, dead = await lab.run(sandbox, LOOP), await lab.finished(sandbox, "exit 0")
    await alive.says(b"ready")
    everything = frozenset(MetricGroup)
    told = await soon(source.details([alive.id, dead.id], everything), "details")
    expect(set(told) == {alive.id}, f"it tells of {len(told)} containers, one is alive")
    expect((told[alive.id].processes or 0) >= 1, "a running container has no processes")
    less = await soon(source.details([alive.id], frozenset({MetricGroup.OOM})), "details")
    processes = less[alive.id].processes if alive.id in less else None
    expect(processes is None, "processes were counted for nobody")


async def check_update_of_a_dead_container_is_refused(lab: RuntimeLab) -> None:
    """``update`` of a container that has been deleted is refused."""
    box = await lab.finished(await lab.sandbox(), "exit 0")
    await box.delete()
    update = lab.backend.update(box.id, Resources(cpu_shares=100))
    await refused(update, "update of a deleted container")


CHECKS = tuple(value for name, value in list(globals().items()) if name.startswith("check_"))
