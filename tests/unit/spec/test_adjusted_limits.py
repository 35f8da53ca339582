"""What status reports of limits that plugins have changed."""

from dataclasses import replace

from polypod.plugin.oci import (
    CpuLimits,
    Linux,
    MemoryLimits,
    OciConfig,
    OciHugepageLimit,
    OciResources,
    Process,
)
from polypod.plugin.requests import HugepageLimit, Resources
from polypod.spec.updates import adjusted_limits

TOLD = Resources(cpu_shares=5, memory_limit_in_bytes=9, hugepage_limits=(HugepageLimit("1GB", 1),))
BEFORE = OciConfig(
    Process(oom_score_adj=1),
    linux=Linux(
        resources=OciResources(
            cpu=CpuLimits(shares=5, period=100_000),
            memory=MemoryLimits(limit=9),
            unified={"memory.high": "1"},
        )
    ),
)


def after(**changes):
    resources = replace(BEFORE.linux.resources, **changes)
    return replace(BEFORE, linux=replace(BEFORE.linux, resources=resources))


def test_what_nobody_changed_is_told_as_it_was_asked():
    assert adjusted_limits(TOLD, BEFORE, BEFORE) == TOLD
    assert adjusted_limits(TOLD, BEFORE, replace(BEFORE, hostname="other")) == TOLD


def test_each_change_is_told():
    changed = after(
        cpu=CpuLimits(shares=6, quota=7, period=8, cpus="0", mems="1"),
        memory=MemoryLimits(limit=10, swap=11),
        unified={"memory.high": "2"},
        hugepage_limits=(OciHugepageLimit("2MB", 12),),
    )
    changed = replace(changed, process=Process(oom_score_adj=13))
    assert adjusted_limits(TOLD, BEFORE, changed) == Resources(
        cpu_shares=6,
        cpu_quota=7,
        cpu_period=8,
        cpuset_cpus="0",
        cpuset_mems="1",
        memory_limit_in_bytes=10,
        memory_swap_limit_in_bytes=11,
        oom_score_adj=13,
        unified={"memory.high": "2"},
        hugepage_limits=(HugepageLimit("1GB", 1), HugepageLimit("2MB", 12)),
    )
