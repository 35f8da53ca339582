"""CRI resources to OCI ones, and updates."""

from dataclasses import replace

import pytest

from polypod.plugin.errors import InvalidArgument, Unsupported
from polypod.plugin.oci import CpuLimits, DeviceRule, MemoryLimits, OciHugepageLimit, OciResources
from polypod.plugin.requests import HugepageLimit, Resources
from polypod.spec.resources import CgroupFacts, merge_resources, oci_resources, oom_score

V2 = CgroupFacts(2, frozenset({"2MB"}))
V1 = replace(V2, version=1)
MIB = 1 << 20


def test_zero_is_not_set():
    assert oci_resources(Resources(), V2) == OciResources()


def test_everything():
    rules = (DeviceRule(False),)
    found = oci_resources(
        Resources(
            cpu_period=100_000,
            cpu_quota=50_000,
            cpu_shares=512,
            memory_limit_in_bytes=MIB,
            memory_swap_limit_in_bytes=2 * MIB,
            cpuset_cpus="0-3,8,10-20:2/4",
            cpuset_mems="0",
            hugepage_limits=(HugepageLimit("2MB", 4 * MIB),),
            unified={"memory.high": "1", "hugetlb.2MB.max": "2"},
        ),
        V2,
        rules,
    )
    assert found == OciResources(
        devices=rules,
        memory=MemoryLimits(limit=MIB, swap=2 * MIB),
        cpu=CpuLimits(512, 50_000, 100_000, "0-3,8,10-20:2/4", "0"),
        hugepage_limits=(OciHugepageLimit("2MB", 4 * MIB),),
        unified={"memory.high": "1", "hugetlb.2MB.max": "2"},
    )


def test_memory_without_swap_means_no_swap():
    assert oci_resources(Resources(memory_limit_in_bytes=MIB), V2).memory.swap == MIB
    assert oci_resources(Resources(memory_limit_in_bytes=-1), V2).memory == MemoryLimits(limit=-1)
    unlimited = Resources(memory_limit_in_bytes=MIB, memory_swap_limit_in_bytes=-1)
    assert oci_resources(unlimited, V2).memory.swap == -1


def test_host_without_swap_accounting():
    facts = replace(V1, swap_accounting=False)
    limited = Resources(memory_limit_in_bytes=MIB)
    assert oci_resources(limited, facts).memory == MemoryLimits(limit=MIB)
    with pytest.raises(Unsupported, match="does not account swap"):
        oci_resources(replace(limited, memory_swap_limit_in_bytes=2 * MIB), facts)


BAD = [
    ({"memory_limit_in_bytes": -2}, "memory_limit_in_bytes -2"),
    ({"memory_swap_limit_in_bytes": -2}, "memory_swap_limit_in_bytes -2"),
    ({"memory_limit_in_bytes": 100, "memory_swap_limit_in_bytes": 50}, "must not be lower"),
    ({"memory_limit_in_bytes": -1, "memory_swap_limit_in_bytes": 50}, "must not be lower"),
    ({"cpu_shares": -1}, "cpu_shares"),
    ({"cpu_quota": 999}, "cpu_quota"),
    ({"cpu_quota": -2}, "cpu_quota"),
    ({"cpu_period": 999}, "cpu_period"),
    ({"cpu_period": 1_000_001}, "cpu_period"),
    ({"cpu_period": -1}, "cpu_period"),
    ({"cpuset_cpus": "0-"}, "cpuset_cpus"),
    ({"cpuset_cpus": "0,,1"}, "cpuset_cpus"),
    ({"cpuset_cpus": "0\n1"}, "cpuset_cpus"),
    ({"cpuset_cpus": " 0"}, "cpuset_cpus"),
    ({"cpuset_cpus": "\u0663"}, "cpuset_cpus"),
    ({"cpuset_mems": "a"}, "cpuset_mems"),
    ({"hugepage_limits": (HugepageLimit("2MB", -1),)}, "hugepage_limits"),
    ({"hugepage_limits": (HugepageLimit("../x", 0),)}, "hugepage_limits"),
    ({"hugepage_limits": (HugepageLimit("0MB", 0),)}, "hugepage_limits"),
    ({"unified": {"../memory.max": "1"}}, "unified"),
    ({"unified": {"memory": "1"}}, "unified"),
    ({"unified": {"cgroup.procs": "1"}}, "unified"),
    ({"unified": {"memory.max\n": "1"}}, "unified"),
    ({"unified": {"a/b.c": "1"}}, "unified"),
    ({"unified": {"memory.high": ""}}, "must have a value"),
    ({"unified": {"memory.high": "1\0"}}, "must have a value"),
]


@pytest.mark.parametrize(("fields", "words"), BAD, ids=[str(fields) for fields, _ in BAD])
def test_malformed_limits_are_refused(fields, words):
    with pytest.raises(InvalidArgument, match=words):
        oci_resources(Resources(**fields), V2)


def test_e23_unified_needs_cgroup_v2():
    with pytest.raises(Unsupported, match="cgroup v1"):
        oci_resources(Resources(unified={"memory.high": "1"}), V1)


def test_e23_huge_pages_need_a_controller_unless_the_limit_is_zero():
    zero = Resources(hugepage_limits=(HugepageLimit("1GB", 0), HugepageLimit("2MB", 0)))
    assert oci_resources(zero, V2).hugepage_limits == (OciHugepageLimit("2MB", 0),)
    assert oci_resources(zero, CgroupFacts()).hugepage_limits == ()
    with pytest.raises(Unsupported, match="1GB"):
        oci_resources(Resources(hugepage_limits=(HugepageLimit("1GB", 1),)), V2)


@pytest.mark.parametrize(
    ("asked", "least", "wanted"), [(-997, -1000, -997), (-997, 0, 0), (5, 0, 5)]
)
def test_oom_score_is_raised_to_what_the_host_allows(asked, least, wanted):
    facts = replace(V2, oom_score_adj_min=least)
    assert oom_score(Resources(oom_score_adj=asked), facts) == wanted


@pytest.mark.parametrize("score", [-1001, 1001])
def test_oom_score_out_of_range_is_refused(score):
    with pytest.raises(InvalidArgument, match="oom_score_adj"):
        oom_score(Resources(oom_score_adj=score), V2)


OLD = Resources(
    cpu_period=100_000,
    cpu_quota=50_000,
    cpu_shares=512,
    memory_limit_in_bytes=100 * MIB,
    memory_swap_limit_in_bytes=100 * MIB,
    cpuset_cpus="0",
    hugepage_limits=(HugepageLimit("2MB", 1),),
    unified={"memory.high": "1"},
)


def test_update_keeps_what_it_does_not_name():
    assert merge_resources(OLD, Resources()) == OLD
    merged = merge_resources(
        OLD,
        Resources(
            cpu_shares=1024,
            hugepage_limits=(HugepageLimit("1GB", 2),),
            unified={"memory.low": "3"},
        ),
    )
    assert merged == replace(
        OLD,
        cpu_shares=1024,
        hugepage_limits=(HugepageLimit("2MB", 1), HugepageLimit("1GB", 2)),
        unified={"memory.high": "1", "memory.low": "3"},
    )


@pytest.mark.parametrize("limit", [50 * MIB, 200 * MIB, -1])
def test_container_that_may_not_swap_stays_so(limit):
    merged = merge_resources(OLD, Resources(memory_limit_in_bytes=limit))
    assert merged.memory_swap_limit_in_bytes == merged.memory_limit_in_bytes == limit


def test_update_of_a_container_with_swap():
    old = replace(OLD, memory_swap_limit_in_bytes=150 * MIB)
    merged = merge_resources(old, Resources(memory_limit_in_bytes=120 * MIB))
    assert merged.memory_swap_limit_in_bytes == 150 * MIB
    with pytest.raises(InvalidArgument, match="must not be lower"):
        merge_resources(old, Resources(memory_limit_in_bytes=200 * MIB))
