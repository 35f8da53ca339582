"""cgroups of all three kinds of host, on directories."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from polypod.backend import usage
from polypod.backend.cgroups import Cgroups, discover
from polypod.plugin import BackendError, InvalidArgument

MIB = 1 << 20


def mountinfo(root: Path, *names: str) -> str:
    """Return lines for v1 hierarchies by name, ``unified`` for v2."""
    lines = []
    for position, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        kind = "cgroup2 cgroup2 rw" if name == "unified" else f"cgroup cgroup rw,{name}"
        lines.append(f"{position} 1 0:{position} / {root / name} rw,nosuid shared:5 - {kind}")
    return "\n".join(["9 1 8:1 / / rw - ext4 /dev/sda rw", *lines])


def v1(root: Path) -> Cgroups:
    names = ("memory", "pids", "cpuacct", "cpuset", "devices", "unified")
    for name in ("cpuset.cpus", "cpuset.mems"):
        (root / "cpuset").mkdir(parents=True, exist_ok=True)
        (root / "cpuset" / name).write_text("0-3\n")
    return Cgroups(discover(mountinfo(root, *names)).with_unified())


def v2(root: Path) -> Cgroups:
    text = mountinfo(root, "unified")
    (root / "unified/cgroup.controllers").write_text("cpu memory pids\n")
    return Cgroups(discover(text))


def test_a_host_without_cgroups_is_told():
    with pytest.raises(BackendError, match="no cgroup file system"):
        discover("9 1 8:1 / / rw - ext4 /dev/sda rw")


def test_versions(tmp_path):
    assert v1(tmp_path / "one").version == 1
    assert v2(tmp_path / "two").version == 2
    assert v1(tmp_path / "one").tracking == tmp_path / "one/pids"
    assert v2(tmp_path / "two").tracking == tmp_path / "two/unified"
    assert v1(tmp_path / "one").directory("hugetlb", "/p/c") is None
    assert v1(tmp_path / "one").directory("memory", "/p/c") == tmp_path / "one/memory/p/c"


def test_hierarchies_can_be_fewer_or_more(tmp_path):
    found = discover(mountinfo(tmp_path, "memory", "pids", "unified"))
    names = ("memory", "pids", "unified")
    memory, pids, unified = (tmp_path / name for name in names)
    assert found.mounts == (memory, pids)
    assert found.with_unified().mounts == (memory, pids, unified)
    assert found.with_unified().version == 1
    alone = found.only_tracking()
    assert (alone.mounts, alone.controllers) == ((pids,), {"pids": pids})
    two = discover(mountinfo(tmp_path, "unified"))
    assert two.with_unified().mounts == two.only_tracking().mounts == (unified,)


@pytest.mark.parametrize("path", ["", "/", "/p/../x", "/p/./x", "/p/\0"])
def test_paths_stay_below_the_root(tmp_path, path):
    with pytest.raises(InvalidArgument, match="cgroup path"):
        v1(tmp_path).create(path)


def test_a_cgroup_is_made_with_its_parents_in_all_hierarchies(tmp_path):
    v1(tmp_path).create("/p/pod")
    for name in ("memory", "pids", "cpuacct", "devices", "unified"):
        assert (tmp_path / name / "p/pod").is_dir()
    for directory in ("p", "p/pod"):
        assert (tmp_path / "cpuset" / directory / "cpuset.cpus").read_text().strip() == "0-3"


def test_controllers_are_passed_on_in_v2(tmp_path):
    cgroups = v2(tmp_path)
    (tmp_path / "unified/cgroup.subtree_control").touch()
    (tmp_path / "unified/p").mkdir()
    (tmp_path / "unified/p/cgroup.controllers").write_text("pids\n")
    cgroups.create("/p/pod")
    assert (tmp_path / "unified/p/cgroup.subtree_control").read_text() == "+pids"


def test_an_execs_child_is_made_only_where_the_runtime_was(tmp_path):
    cgroups = v1(tmp_path)
    (tmp_path / "pids/p/c").mkdir(parents=True)
    cgroups.create_child("/p/c/exec-1")
    assert (tmp_path / "pids/p/c/exec-1").is_dir()
    assert not (tmp_path / "memory/p").exists()


def test_an_inner_cgroup_is_made_everywhere_but_in_cpuset(tmp_path):
    cgroups = v1(tmp_path)
    cgroups.create("/p/c")
    inner = {
        name: tmp_path / name / "p/c/inside" for name in ("memory", "pids", "devices", "unified")
    }
    for name in ("memory", "pids", "cpuacct", "devices", "unified"):
        (tmp_path / name / "p/c/inside").mkdir()
        (tmp_path / name / "p/c/inside/tasks").touch()
    (tmp_path / "cpuset/p/c/tasks").touch()
    opened = cgroups.join_inner("/p/c")
    joined = {os.readlink(f"/proc/self/fd/{fd}") for fd in opened}
    for fd in opened:
        os.close(fd)
    assert f"{tmp_path}/cpuset/p/c/tasks" in joined
    assert {f"{place}/tasks" for place in inner.values()} < joined


def test_an_inner_cgroup_that_cannot_be_joined_leaves_no_descriptor(tmp_path):
    cgroups = v1(tmp_path)
    cgroups.create("/p/c")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BackendError, match="inside"):
        cgroups.join_inner("/p/c")
    assert len(os.listdir("/proc/self/fd")) == before


def test_parents_go_where_no_kubelet_removes_them(tmp_path):
    cgroups = v1(tmp_path)
    cgroups.create("/kube/pod/box")
    for name in ("memory", "pids", "cpuacct", "devices", "unified"):
        (tmp_path / name / "kube/pod/box").rmdir()
    cgroups.remove_empty_parents("/kube/pod/box", "/polypod")
    assert not (tmp_path / "devices/kube").exists()
    assert not (tmp_path / "unified/kube").exists()
    assert (tmp_path / "memory/kube/pod").is_dir()


def test_our_own_parent_stays(tmp_path):
    cgroups = v1(tmp_path)
    cgroups.create("/polypod/box")
    (tmp_path / "devices/polypod/box").rmdir()
    cgroups.remove_empty_parents("/polypod/box", "/polypod")
    assert (tmp_path / "devices/polypod").is_dir()


def test_processes_and_deaths_below_are_counted(tmp_path):
    cgroups = v1(tmp_path)
    for path, pid, kills in (("p/c", 12, 1), ("p/c/exec-1", 34, 2)):
        for name in ("pids", "memory"):
            (tmp_path / name / path).mkdir(parents=True, exist_ok=True)
        (tmp_path / "pids" / path / "cgroup.procs").write_text(f"{pid}\n")
        text = f"oom_kill_disable 0\noom_kill {kills}\n"
        (tmp_path / "memory" / path / "memory.oom_control").write_text(text)
    assert sorted(cgroups.processes("/p/c")) == [12, 34]
    assert cgroups.oom_kills("/p/c") == 3
    assert cgroups.processes("/p/gone") == []
    assert cgroups.oom_kills("/p/gone") == 0


def test_v2_counts_the_deaths_of_children_itself(tmp_path):
    cgroups = v2(tmp_path)
    for path, kills in (("p/c", 2), ("p/c/exec-1", 2)):
        (tmp_path / "unified" / path).mkdir(parents=True)
        (tmp_path / "unified" / path / "memory.events").write_text(f"oom 2\noom_kill {kills}\n")
    assert cgroups.oom_kills("/p/c") == 2


def test_usage_of_v1(tmp_path):
    cgroups = v1(tmp_path)
    files = {
        "memory/p/memory.usage_in_bytes": 10 * MIB,
        "memory/p/memory.limit_in_bytes": 32 * MIB,
        "memory/p/memory.stat": f"total_rss {3 * MIB}\ntotal_inactive_file {4 * MIB}\ntotal_pgfault 5\n",
        "cpuacct/p/cpuacct.usage": 123,
        "pids/p/pids.current": 2,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    found = usage.read(cgroups, "/p")
    assert found.cpu_usage_core_ns == 123
    assert found.memory_usage_bytes == 10 * MIB
    assert found.memory_working_set_bytes == 6 * MIB
    assert found.memory_available_bytes == 26 * MIB
    assert (found.memory_rss_bytes, found.memory_page_faults, found.processes) == (3 * MIB, 5, 2)
    assert found.memory_major_page_faults is None


def test_usage_of_v2(tmp_path):
    cgroups = v2(tmp_path)
    files = {
        "memory.current": 10 * MIB,
        "memory.max": "max",
        "memory.stat": f"anon {3 * MIB}\ninactive_file {20 * MIB}\n",
        "cpu.stat": "usage_usec 7\n",
    }
    (tmp_path / "unified/p").mkdir()
    for name, text in files.items():
        (tmp_path / "unified/p" / name).write_text(f"{text}\n")
    found = usage.read(cgroups, "/p")
    assert found.cpu_usage_core_ns == 7000
    assert found.memory_working_set_bytes == 0
    assert found.memory_available_bytes is None
    assert found.processes is None


def test_files_that_are_not_there(tmp_path):
    assert usage.number(None, "nothing") is None
    assert usage.number(tmp_path, "nothing") is None
    found = usage.read(v1(tmp_path), "/p/gone")
    assert (found.cpu_usage_core_ns, found.memory_usage_bytes, found.processes) == (
        None,
        None,
        None,
    )


def test_everybody_in_a_cgroup_is_signalled_and_it_is_removed(tmp_path):
    cgroups = v1(tmp_path)
    with subprocess.Popen(["sleep", "100"]) as one, subprocess.Popen(["sleep", "100"]) as two:
        for path, pid in (("p/c", one.pid), ("p/c/exec-1", two.pid)):
            (tmp_path / "pids" / path).mkdir(parents=True)
            (tmp_path / "pids" / path / "cgroup.procs").write_text(f"{pid}\n")
        cgroups.kill("/p/c", signal.SIGKILL)
        assert one.wait() == two.wait() == -signal.SIGKILL
    for path in ("p/c", "p/c/exec-1"):
        (tmp_path / "pids" / path / "cgroup.procs").unlink()
    cgroups.end("/p/c")
    assert not (tmp_path / "pids/p/c").exists()
    cgroups.end("/p/c")


def test_an_ended_cgroup_is_gone_with_those_below_it(tmp_path):
    found = v1(tmp_path)
    for below in ((), ("/p/c/exec",)):
        for path in ("/p/c", *below):
            for mount in found.hierarchies.mounts:
                (mount / path.strip("/")).mkdir(parents=True)
        found.end("/p/c")
        assert not any((mount / "p/c").exists() for mount in found.hierarchies.mounts)
        found.end("/p/c")  # gone already


def test_a_refused_value_is_named_also_in_the_middle_of_a_file(tmp_path):
    found = v1(tmp_path)
    (tmp_path / "devices/p").mkdir()
    (tmp_path / "devices/p/devices.allow").symlink_to("/dev/full")
    writes = [("devices.allow", "a"), ("devices.allow", "b")]
    with pytest.raises(BackendError, match=r"/p: cannot set devices.allow to 'a': No space left"):
        found.apply("/p", {"devices": writes})
