"""Counters of cgroups of both versions, on directories that look like them."""

from __future__ import annotations

import pytest

from polypod.backend import detail, usage
from polypod.backend.cgroups import Cgroups, Hierarchies
from polypod.plugin.runtime import DeviceIo, MetricGroup, PressureLine

EVERYTHING = frozenset(MetricGroup)
V2 = {
    "cpu.stat": "usage_usec 5000\nuser_usec 3000\nsystem_usec 2000\nnr_periods 7\n"
    "nr_throttled 3\nthrottled_usec 11\n",
    "cpu.pressure": "some avg10=1.50 avg60=0.25 avg300=0.00 total=42\n"
    "full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
    "memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
    "memory.current": "1000\n",
    "memory.max": "5000\n",
    "memory.peak": "2000\n",
    "memory.swap.current": "10\n",
    "memory.swap.max": "30\n",
    "memory.stat": "anon 600\nfile 300\nfile_mapped 40\nkernel 50\ninactive_file 200\npgfault 9\n"
    "pgmajfault 1\n",
    "memory.events": "low 0\nhigh 0\nmax 4\noom 1\noom_kill 2\n",
    "pids.current": "3\n",
    "pids.max": "max\n",
    "cgroup.procs": "",
    "io.stat": "8:0 rbytes=100 wbytes=200 rios=1 wios=2 dbytes=0 dios=0\n253:9 \n",
}
V1 = {
    "cpuacct": {"cpuacct.usage": "5000\n", "cpuacct.stat": "user 3\nsystem 2\n"},
    "cpu": {"cpu.stat": "nr_periods 7\nnr_throttled 3\nthrottled_time 11\n"},
    "memory": {
        "memory.usage_in_bytes": "1000\n",
        "memory.limit_in_bytes": "5000\n",
        "memory.memsw.limit_in_bytes": "5030\n",
        "memory.max_usage_in_bytes": "2000\n",
        "memory.failcnt": "4\n",
        "memory.kmem.usage_in_bytes": "50\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        "memory.stat": "total_cache 300\ntotal_mapped_file 40\ntotal_rss 600\n"
        "total_inactive_file 200\ntotal_pgfault 9\ntotal_pgmajfault 1\ntotal_swap 10\n",
    },
    "pids": {"pids.current": "3\n", "pids.max": "20\n", "cgroup.procs": ""},
    "blkio": {
        "blkio.throttle.io_service_bytes_recursive": "8:0 Read 100\n8:0 Write 200\nTotal 300\n",
        "blkio.throttle.io_serviced_recursive": "8:0 Read 1\n8:0 Write 2\nTotal 3\n",
    },
}


@pytest.fixture
def v2(tmp_path):
    (tmp_path / "box").mkdir()
    for name, text in V2.items():
        (tmp_path / "box" / name).write_text(text)
    names = dict.fromkeys(("cpu", "memory", "pids", "io"), tmp_path)
    return Cgroups(Hierarchies(2, names, (tmp_path,)))


@pytest.fixture
def v1(tmp_path):
    for controller, files in V1.items():
        (tmp_path / controller / "box").mkdir(parents=True)
        for name, text in files.items():
            (tmp_path / controller / "box" / name).write_text(text)
    names = {each: tmp_path / each for each in V1}
    return Cgroups(Hierarchies(1, names, tuple(names.values())))


@pytest.fixture(params=["v1", "v2"])
def either(request):
    return request.getfixturevalue(request.param)


def test_both_versions_tell_the_same(either):
    found = usage.read(either, "/box")
    assert found.memory_usage_bytes == 1000
    assert found.memory_working_set_bytes == 800
    assert found.memory_available_bytes == 4200
    assert (found.memory_rss_bytes, found.memory_page_faults) == (600, 9)
    assert (found.swap_usage_bytes, found.swap_available_bytes) == (10, 20)
    assert found.processes == 3
    assert found.source == "cgroup"


def test_details_of_both_versions(either):
    found = detail.read(either, "/box", EVERYTHING)
    assert (found.cpu_periods, found.cpu_throttled_periods) == (7, 3)
    assert (found.memory_cache_bytes, found.memory_mapped_file_bytes) == (300, 40)
    assert (found.memory_kernel_bytes, found.memory_max_usage_bytes) == (50, 2000)
    assert (found.memory_limit_hits, found.oom_kills) == (4, 2)
    [device] = found.io
    assert device == DeviceIo(device.name, "8:0", 1, 100, 2, 200)
    assert found.processes == 0


def test_units_become_nanoseconds(v1, v2):
    assert usage.read(v2, "/box").cpu_usage_core_ns == 5_000_000
    found = detail.read(v2, "/box", EVERYTHING)
    assert (found.cpu_user_ns, found.cpu_throttled_ns) == (3_000_000, 11_000)
    assert usage.read(v1, "/box").cpu_usage_core_ns == 5000
    found = detail.read(v1, "/box", EVERYTHING)
    assert found.cpu_user_ns == 3 * detail._TICK_NS
    assert found.cpu_throttled_ns == 11


def test_pressure_is_told_where_the_kernel_has_it(v2):
    found = usage.read(v2, "/box")
    assert found.cpu_pressure.some == PressureLine(1.5, 0.25, 0.0, 42_000)
    assert found.cpu_pressure.full.total_ns == 7_000
    assert found.memory_pressure.some.total_ns == 1_000
    assert found.io_pressure is None


def test_no_limit_of_threads_is_told_as_zero(v1, v2):
    assert detail.read(v1, "/box", EVERYTHING).threads_max == 20
    assert detail.read(v2, "/box", EVERYTHING).threads_max == 0
    assert detail.read(v2, "/no", EVERYTHING).threads_max is None


def test_groups_that_nobody_asked_for_are_not_read(v2):
    found = detail.read(v2, "/box", frozenset({MetricGroup.OOM}))
    assert found.oom_kills == 2
    assert (found.cpu_periods, found.processes, found.io) == (None, None, ())


def test_cgroups_that_are_gone_are_left_out(either):
    assert set(usage.read_all(either, {"here": "/box", "gone": "/no"})) == {"here"}


def test_a_device_without_a_name_keeps_its_number():
    assert detail.device_name("999:999") == "999:999"
