"""Limits as texts for cgroup files, on both versions."""

import pytest

from polypod.plugin.errors import InvalidArgument, Unsupported
from polypod.plugin.oci import (
    CpuLimits,
    DeviceRule,
    MemoryLimits,
    OciHugepageLimit,
    OciResources,
)
from polypod.spec.cgroup import cpu_weight, v1_files, v2_files

MIB = 1 << 20
FULL = OciResources(
    devices=(DeviceRule(False), DeviceRule(True, "c", 1, 3)),
    memory=MemoryLimits(limit=64 * MIB, swap=96 * MIB, reservation=32 * MIB),
    cpu=CpuLimits(shares=1024, quota=50_000, period=100_000, cpus="0-3,7", mems="0"),
    pids_limit=100,
    hugepage_limits=(OciHugepageLimit("2MB", 4 * MIB),),
)


def test_v1_everything():
    assert v1_files(FULL) == {
        "devices": [("devices.deny", "a"), ("devices.allow", "c 1:3 rwm")],
        "pids": [("pids.max", "100")],
        "memory": [
            ("memory.limit_in_bytes", str(64 * MIB)),
            ("memory.memsw.limit_in_bytes", str(96 * MIB)),
            ("memory.soft_limit_in_bytes", str(32 * MIB)),
        ],
        "cpu": [
            ("cpu.shares", "1024"),
            ("cpu.cfs_period_us", "100000"),
            ("cpu.cfs_quota_us", "50000"),
        ],
        "cpuset": [("cpuset.cpus", "0-3,7"), ("cpuset.mems", "0")],
        "hugetlb": [("hugetlb.2MB.limit_in_bytes", str(4 * MIB))],
    }


def test_v2_everything():
    assert v2_files(FULL) == [
        ("pids.max", "100"),
        ("memory.swap.max", str(32 * MIB)),
        ("memory.max", str(64 * MIB)),
        ("memory.low", str(32 * MIB)),
        ("cpu.weight", "100"),
        ("cpu.max", "50000 100000"),
        ("cpuset.cpus", "0-3,7"),
        ("cpuset.mems", "0"),
        ("hugetlb.2MB.max", str(4 * MIB)),
    ]


def test_nothing_asked_writes_nothing():
    assert v1_files(OciResources()) == {}
    assert v2_files(OciResources()) == []


class V1Memory:
    """The kernel's rule: memory ≤ memory + swap, at every write."""

    def __init__(self, limit, swap):
        self.limit, self.swap = limit, swap

    def write(self, name, text):
        value = float("inf") if text == "-1" else int(text)
        if name == "memory.limit_in_bytes":
            assert value <= self.swap, "EINVAL"
            self.limit = value
        else:
            assert name == "memory.memsw.limit_in_bytes"
            assert value >= self.limit, "EINVAL"
            self.swap = value


@pytest.mark.parametrize("old", [None, -1, 64, 128, 200])
@pytest.mark.parametrize("limit", [-1, 32, 64, 128, 256])
@pytest.mark.parametrize("extra", [0, 32, None])
def test_v1_memory_is_written_in_an_order_that_the_kernel_takes(old, limit, extra):
    swap = None if extra is None else -1 if limit == -1 else limit + extra
    if extra is None and limit != -1:
        swap = limit
    resources = OciResources(memory=MemoryLimits(limit=limit, swap=swap))
    before = float("inf") if old in (None, -1) else old
    kernel = V1Memory(before, before)
    for name, text in v1_files(resources, current_memory=old).get("memory", []):
        kernel.write(name, text)
    assert kernel.limit == (float("inf") if limit == -1 else limit)
    if swap is not None:
        assert kernel.swap == (float("inf") if swap == -1 else swap)


def test_limit_taken_away_takes_swaps_limit_with_it():
    resources = OciResources(memory=MemoryLimits(limit=-1))
    assert v1_files(resources, current_memory=MIB)["memory"] == [
        ("memory.memsw.limit_in_bytes", "-1"),
        ("memory.limit_in_bytes", "-1"),
    ]
    assert v2_files(resources, current_memory=MIB) == [
        ("memory.swap.max", "max"),
        ("memory.max", "max"),
    ]


def test_v1_without_swap_accounting():
    equal = OciResources(memory=MemoryLimits(limit=MIB, swap=MIB))
    assert v1_files(equal, swap_accounting=False) == {
        "memory": [("memory.limit_in_bytes", str(MIB))]
    }
    more = OciResources(memory=MemoryLimits(limit=MIB, swap=2 * MIB))
    with pytest.raises(Unsupported, match="does not account swap"):
        v1_files(more, swap_accounting=False)


def test_v1_oom_and_swappiness():
    resources = OciResources(memory=MemoryLimits(swappiness=10, disable_oom_killer=True))
    assert v1_files(resources) == {
        "memory": [("memory.swappiness", "10"), ("memory.oom_control", "1")]
    }


@pytest.mark.parametrize(
    "memory", [MemoryLimits(swappiness=10), MemoryLimits(disable_oom_killer=True)]
)
def test_e23_what_only_v1_has_is_refused_on_v2(memory):
    with pytest.raises(Unsupported, match="cgroup v2 has neither"):
        v2_files(OciResources(memory=memory))


def test_e23_unified_is_refused_on_v1():
    with pytest.raises(Unsupported, match=r"memory\.high"):
        v1_files(OciResources(unified={"memory.high": "1"}))


@pytest.mark.parametrize(
    "memory",
    [MemoryLimits(limit=100, swap=50), MemoryLimits(limit=-1, swap=50)],
    ids=["lower", "unlimited"],
)
def test_swap_below_memory_is_refused(memory):
    for files in (v1_files, v2_files):
        with pytest.raises(InvalidArgument, match=r"memory\.swap 50"):
            files(OciResources(memory=memory))


def test_v2_swap_needs_a_limit():
    with pytest.raises(InvalidArgument, match=r"needs memory\.limit"):
        v2_files(OciResources(memory=MemoryLimits(swap=100)))
    assert v2_files(OciResources(memory=MemoryLimits(swap=-1))) == [("memory.swap.max", "max")]


@pytest.mark.parametrize(("limit", "text"), [(-1, "max"), (0, "max"), (1, "1")])
def test_pids(limit, text):
    resources = OciResources(pids_limit=limit)
    assert v1_files(resources) == {"pids": [("pids.max", text)]}
    assert v2_files(resources) == [("pids.max", text)]


@pytest.mark.parametrize(
    ("cpu", "text"),
    [
        (CpuLimits(quota=25_000), "25000 100000"),
        (CpuLimits(period=50_000), "max 50000"),
        (CpuLimits(quota=-1, period=50_000), "max 50000"),
    ],
)
def test_v2_cpu_max(cpu, text):
    assert v2_files(OciResources(cpu=cpu)) == [("cpu.max", text)]


def test_v1_quota_without_a_limit():
    assert v1_files(OciResources(cpu=CpuLimits(quota=-1, shares=1))) == {
        "cpu": [("cpu.shares", "2"), ("cpu.cfs_quota_us", "-1")]
    }


def test_cpu_weight_meets_its_three_points_and_grows():
    assert [cpu_weight(shares) for shares in (0, 2, 1024, 262_144, 10**9)] == [
        1,
        1,
        100,
        10_000,
        10_000,
    ]
    weights = [cpu_weight(shares) for shares in range(2, 262_145, 97)]
    assert weights == sorted(weights)
    assert cpu_weight(102) < cpu_weight(512) < 100 < cpu_weight(2048) < cpu_weight(4096)


def test_v2_unified_keys_come_last_line_by_line_and_replace_ours():
    resources = OciResources(
        memory=MemoryLimits(limit=MIB),
        pids_limit=5,
        unified={"memory.max": "123", "io.max": "8:0 rbps=1\n8:16 wbps=2\n"},
    )
    assert v2_files(resources) == [
        ("pids.max", "5"),
        ("memory.max", "123"),
        ("io.max", "8:0 rbps=1"),
        ("io.max", "8:16 wbps=2"),
    ]


def test_zeros_are_no_limits():
    resources = OciResources(
        memory=MemoryLimits(limit=0, swap=0, reservation=0),
        cpu=CpuLimits(shares=0, quota=0, period=0),
    )
    assert v1_files(resources, current_memory=MIB) == {}
    assert v2_files(resources, current_memory=MIB) == []
