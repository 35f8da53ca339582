from polypod.plugin.oci import CpuLimits, DeviceRule, MemoryLimits, OciHugepageLimit, OciResources
from polypod.plugin.requests import HugepageLimit, Resources
from polypod.spec.resources import merge_resources
from polypod.spec.updates import effective_update, overlay, pod_total, way_back

OLD = Resources(
    cpu_period=50_000,
    cpu_quota=25_000,
    cpu_shares=512,
    memory_limit_in_bytes=100,
    memory_swap_limit_in_bytes=200,
)


def effective(update: Resources, old: Resources = OLD) -> Resources:
    return effective_update(update, merge_resources(old, update))


def test_what_is_not_asked_for_is_not_written():
    assert effective(Resources(cpu_shares=7)) == Resources(cpu_shares=7)
    assert effective(Resources(cpuset_cpus="0")) == Resources(cpuset_cpus="0")
    assert effective(Resources()) == Resources()


def test_memory_goes_with_swap_and_a_quota_with_its_period():
    memory = effective(Resources(memory_limit_in_bytes=150))
    assert (memory.memory_limit_in_bytes, memory.memory_swap_limit_in_bytes) == (150, 200)
    swap = effective(Resources(memory_swap_limit_in_bytes=300))
    assert (swap.memory_limit_in_bytes, swap.memory_swap_limit_in_bytes) == (100, 300)
    period = effective(Resources(cpu_period=10_000))
    assert (period.cpu_quota, period.cpu_period) == (25_000, 10_000)


def test_the_way_back_leads_to_what_was():
    update = Resources(memory_limit_in_bytes=150, cpu_quota=9_000, cpu_shares=3)
    change = effective(update)
    assert merge_resources(merge_resources(OLD, update), way_back(OLD, change)) == OLD


def test_the_way_back_from_a_first_limit_is_no_limit():
    change = effective(
        Resources(memory_limit_in_bytes=150, cpu_quota=9_000, cpu_shares=3), Resources()
    )
    assert way_back(Resources(), change) == Resources(
        memory_limit_in_bytes=-1,
        memory_swap_limit_in_bytes=-1,
        cpu_quota=-1,
        cpu_period=100_000,
        cpu_shares=1024,
    )


def test_the_way_back_knows_page_sizes_and_raw_files():
    old = Resources(
        hugepage_limits=(HugepageLimit("2MB", 5), HugepageLimit("1GB", 6)),
        unified={"memory.high": "7", "memory.low": "8"},
    )
    change = Resources(hugepage_limits=(HugepageLimit("2MB", 9),), unified={"memory.high": "1"})
    back = way_back(old, change)
    assert back.hugepage_limits == (HugepageLimit("2MB", 5),)
    assert back.unified == {"memory.high": "7"}


def test_a_pod_may_take_its_containers_part_and_its_overhead():
    total = pod_total(
        Resources(memory_limit_in_bytes=100, cpu_shares=10, cpu_quota=50_000, cpu_period=50_000),
        Resources(memory_limit_in_bytes=20, cpu_shares=2, cpu_quota=10_000, cpu_period=100_000),
    )
    assert (total.memory_limit_in_bytes, total.cpu_shares) == (120, 12)
    assert (total.cpu_quota, total.cpu_period) == (55_000, 50_000)


def test_no_limit_is_made_of_overhead_alone():
    overhead = Resources(memory_limit_in_bytes=20, cpu_shares=2, cpu_quota=10_000)
    for wanted in (None, Resources()):
        total = pod_total(wanted, overhead)
        assert (total.memory_limit_in_bytes, total.cpu_shares, total.cpu_quota) == (0, 0, 0)
    unlimited = pod_total(Resources(memory_limit_in_bytes=-1, cpu_quota=-1), overhead)
    assert (unlimited.memory_limit_in_bytes, unlimited.cpu_quota) == (-1, -1)


def test_what_a_plugin_has_set_stays_under_an_update():
    old = OciResources(
        devices=(DeviceRule(allow=False),),
        memory=MemoryLimits(limit=1, reservation=2),
        cpu=CpuLimits(shares=3, cpus="0"),
        pids_limit=4,
        hugepage_limits=(OciHugepageLimit("2MB", 5),),
        unified={"a.b": "c"},
    )
    new = overlay(old, OciResources(cpu=CpuLimits(quota=9), unified={"d.e": "f"}))
    assert new.memory == old.memory
    assert new.cpu == CpuLimits(shares=3, quota=9, cpus="0")
    assert (new.devices, new.pids_limit) == (old.devices, 4)
    assert new.unified == {"a.b": "c", "d.e": "f"}
    assert overlay(old, OciResources(memory=MemoryLimits(limit=8))).memory == MemoryLimits(
        limit=8, reservation=2
    )
