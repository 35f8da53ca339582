"""E6 and limits: what a container sees of cgroups, what its own cgroup holds it to."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from support.containment_parts import security

from polypod.backend.cgroups import Cgroups, discover
from polypod.plugin.errors import PolypodError
from polypod.plugin.oci import DeviceRule
from polypod.plugin.requests import Capabilities, Device, Mount, Resources

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_overlay,
    pytest.mark.needs_busybox,
    pytest.mark.needs_cgroup1,
]

MIB = 1 << 20
_SLEEP = "echo ready; exec sleep 100"


def value(box, controller: str, name: str) -> str:
    """Return what stands in a file of the container's cgroup."""
    directory = Cgroups(discover()).directory(controller, f"{box.pod.spec.cgroup}/{box.id}")
    assert directory is not None
    return (directory / name).read_text().strip()


# E6


async def test_e6_view_is_read_only_and_its_own_part(pod):
    result = await pod.run(
        """
        ls /sys/fs/cgroup
        cut -d: -f3 /proc/self/cgroup | sort -u
        cat /sys/fs/cgroup/pids/tasks | wc -l
        awk '$5 ~ "^/sys/fs/cgroup" { print $4, substr($6, 1, 2) }' /proc/self/mountinfo | sort -u
        """
    )
    assert result.code == 0, result
    own = [line for line in result.lines if line.startswith("/")]
    controllers = Cgroups(discover()).hierarchies.controllers
    assert {name.removeprefix("name=") for name in controllers} <= set(result.lines)
    assert own == ["/", "/ ro"], own
    (count,) = [int(line) for line in result.lines if line.isdigit()]
    assert count <= 5


_CHANGES = [
    "echo a > /sys/fs/cgroup/devices/devices.allow",
    "echo 1 > /sys/fs/cgroup/memory/notify_on_release",
    "echo -1 > /sys/fs/cgroup/memory/memory.limit_in_bytes",
    "echo $$ > /sys/fs/cgroup/pids/cgroup.procs",
    "mkdir /sys/fs/cgroup/pids/new",
    "mkdir /sys/fs/cgroup/new",
    "umount /sys/fs/cgroup/devices",
    "mount -o remount,rw /sys/fs/cgroup/devices",
    "mount -o remount,rw,bind /sys/fs/cgroup",
    "mount -t cgroup -o devices none /tmp",
    "mount -t cgroup2 none /tmp",
    "cat /sys/fs/cgroup/*/release_agent",
    "echo /tmp/x > /sys/fs/cgroup/memory/release_agent",
]


async def test_e6_nothing_can_be_changed(pod):
    for asked in (security(), security(seccomp=None)):
        for script in _CHANGES:
            result = await pod.run(f"{script} && echo done", security=asked)
            assert "done" not in result.out, script
            assert result.code != 0, script


async def test_e6_release_agent_exploit_fails_even_with_sys_admin(pod, decoy):
    """CVE-2022-0492 and its older form: a script of the container run by the host's kernel."""
    agents = list(Path("/sys/fs/cgroup").glob("*/release_agent"))
    before = [agent.read_text() for agent in agents]
    script = f"""
        printf '#!/bin/sh\\necho escaped > {decoy.path}/file\\n' > /tmp/agent; chmod 755 /tmp/agent
        for options in memory pids devices freezer blkio cpuset rdma misc none,name=evil; do
            mkdir -p /tmp/$options
            mount -t cgroup -o $options none /tmp/$options || continue
            mkdir /tmp/$options/x
            echo 1 > /tmp/$options/x/notify_on_release
            echo /tmp/agent > /tmp/$options/release_agent && echo armed $options
            sh -c "echo \\$\\$ > /tmp/$options/x/cgroup.procs"
        done 2>/dev/null
        ls /tmp/*/release_agent 2>/dev/null
        echo end
    """
    asked = security(capabilities=Capabilities(add=("SYS_ADMIN",)), seccomp=None)
    result = await pod.run(script, security=asked)
    assert result.lines == ["end"]
    assert [agent.read_text() for agent in agents] == before
    assert decoy.unchanged()


async def test_e6_who_may_mount_is_held_all_the_same(pod):
    """With SYS_ADMIN the view can be made writable; what holds the container lies above what it shows."""
    script = """
        for place in /sys/fs/cgroup/*/; do mount -o remount,bind,rw $place; done 2>/dev/null
        mkdir /sys/fs/cgroup/devices/mine && echo writable
        echo a > /sys/fs/cgroup/devices/devices.allow && echo allowed
        mknod /tmp/tun c 10 200; true < /tmp/tun && echo opened
        echo -1 > /sys/fs/cgroup/memory/memory.limit_in_bytes
        echo max > /sys/fs/cgroup/pids/pids.max
        echo end; exec sleep 100
    """
    asked = security(capabilities=Capabilities(add=("SYS_ADMIN", "MKNOD")), seccomp=None)

    def few(config):
        resources = replace(config.linux.resources, pids_limit=50)
        return replace(config, linux=replace(config.linux, resources=resources))

    limit = Resources(memory_limit_in_bytes=64 * MIB)
    box = await pod.start(script, security=asked, resources=limit, adjust=few)
    await box.says("end")
    assert value(box, "memory", "memory.limit_in_bytes") == str(64 * MIB)
    assert value(box, "pids", "pids.max") == "50"
    assert (await box.exec("echo alive; true < /tmp/tun && echo opened")).out == "alive\n"
    update = Resources(memory_limit_in_bytes=32 * MIB, cpuset_cpus="0")
    await pod.bench.backend.update(box.id, update)
    assert value(box, "memory", "memory.limit_in_bytes") == str(32 * MIB)
    assert (await box.exec("grep Cpus_allowed_list /proc/1/status")).out.split()[1] == "0"
    result = await box.kill(9)
    assert result.lines == ["writable", "end"], result


async def test_e6_memory_of_who_may_mount_is_counted_and_limited(pod):
    asked = security(capabilities=Capabilities(add=("SYS_ADMIN",)))
    limit = Resources(memory_limit_in_bytes=16 * MIB)
    result = await pod.run(f"{_FILL}; exit $?", security=asked, resources=limit)
    assert (result.code, result.oom) == (137, True)


async def test_privileged_containers_see_the_hosts_cgroups(pod):
    result = await pod.run(
        "cut -d: -f3 /proc/self/cgroup; mkdir /sys/fs/cgroup/pids/new && rmdir /sys/fs/cgroup/pids/new",
        security=security(privileged=True),
    )
    assert result.code == 0, result
    assert any(pod.spec.id in line for line in result.lines)


# Devices

_NODES = "mknod /tmp/fuse c 10 229; mknod /tmp/loop b 7 0; mknod /tmp/tun c 10 200"


async def test_device_that_was_not_asked_for_cannot_be_opened(pod):
    result = await pod.run(
        f"""
        {_NODES}; echo made
        for node in fuse loop tun; do true < /tmp/$node && echo opened $node; done
        for node in null zero full random urandom tty; do
            head -c 1 /dev/$node > /dev/null || [ $node = tty ] || echo refused $node
        done
        """
    )
    assert result.lines == ["made"], result
    assert result.err.count("Operation not permitted") == 3


async def test_device_that_was_asked_for(pod, tmp_path):
    for name, minor in (("fuse", 229), ("tun", 200)):
        os.mknod(tmp_path / name, 0o020640, os.makedev(10, minor))
    os.chown(tmp_path / "tun", 7, 8)
    (tmp_path / "link").symlink_to("fuse")
    devices = (
        Device("/dev/mine", str(tmp_path / "link"), "rw"),
        Device("/opt/tun", str(tmp_path / "tun"), "r"),
    )
    look = "stat -c '%t:%T %a %u %g' /dev/mine /opt/tun"
    tries = (
        "for node in /dev/mine /opt/tun; do true < $node && echo r; true > $node && echo w; done"
    )
    result = await pod.run(f"{look}; {tries}", devices=devices)
    assert result.lines == ["a:e5 640 0 0", "a:c8 640 7 8", "r", "w", "r"], result


async def test_device_that_is_none(pod, tmp_path):
    (tmp_path / "file").touch()
    for host_path in (str(tmp_path / "file"), str(tmp_path / "missing"), "relative"):
        result = await pod.run("true", devices=(Device("/dev/x", host_path, "rwm"),))
        assert result.kind == "InvalidArgument"
    result = await pod.run("true", devices=(Device("/dev/x", "/dev/fuse", "rwx"),))
    assert result.kind == "InvalidArgument"


async def test_device_rules_of_an_adjusted_config(pod):
    def all_but_fuse(config):
        rules = (DeviceRule(True), DeviceRule(False, "c", 10, 229))
        resources = replace(config.linux.resources, devices=rules)
        return replace(config, linux=replace(config.linux, resources=resources))

    result = await pod.run(
        f"{_NODES}; for node in tun fuse; do true < /tmp/$node && echo $node; done",
        adjust=all_but_fuse,
    )
    assert result.lines == ["tun"]


async def test_devices_on_volumes_cannot_be_used(pod, tmp_path):
    """A volume with nodev, and a node on a volume that the cgroup refuses."""
    (tmp_path / "volume").mkdir()
    os.mknod(tmp_path / "volume/zero", 0o020666, os.makedev(1, 5))
    os.mknod(tmp_path / "volume/tun", 0o020666, os.makedev(10, 200))
    volume = Mount("/v", str(tmp_path / "volume"))
    result = await pod.run(
        "true < /v/zero && echo zero; true < /v/tun && echo tun", mounts=(volume,)
    )
    assert result.lines == ["zero"]
    closed = replace(volume, mount_options=("nodev",))
    assert (await pod.run("true < /v/zero && echo zero", mounts=(closed,))).out == ""


# Limits


async def test_limits_are_set(pod):
    box = await pod.start(
        _SLEEP,
        resources=Resources(
            cpu_period=50_000,
            cpu_quota=25_000,
            cpu_shares=512,
            memory_limit_in_bytes=64 * MIB,
            cpuset_cpus="0",
        ),
    )
    await box.says("ready")
    assert value(box, "memory", "memory.limit_in_bytes") == str(64 * MIB)
    assert value(box, "memory", "memory.memsw.limit_in_bytes") == str(64 * MIB)
    assert value(box, "cpu", "cpu.cfs_period_us") == "50000"
    assert value(box, "cpu", "cpu.cfs_quota_us") == "25000"
    assert value(box, "cpu", "cpu.shares") == "512"
    assert value(box, "cpuset", "cpuset.cpus") == "0"
    assert (await box.exec("grep Cpus_allowed_list /proc/self/status")).out.split()[1] == "0"


async def test_number_of_processes_is_limited(pod):
    def few(config):
        resources = replace(config.linux.resources, pids_limit=5)
        return replace(config, linux=replace(config.linux, resources=resources))

    result = await pod.run("for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; echo end", adjust=few)
    assert "end" not in result.out or "fork" in result.err, result


_FILL = "tail /dev/zero"


async def test_memory_limit_ends_the_container_and_says_so(pod):
    result = await pod.run(
        ("/bin/tail", "/dev/zero"), resources=Resources(memory_limit_in_bytes=16 * MIB)
    )
    assert (result.code, result.oom) == (137, True)


async def test_memory_limit_ends_a_child_and_says_so(pod):
    limit = Resources(memory_limit_in_bytes=16 * MIB)
    result = await pod.run(f"{_FILL}; exit $?", resources=limit)
    assert (result.code, result.oom) == (137, True)
    # A container that lives on and ends well was not ended by the kernel.
    result = await pod.run(f"{_FILL}; exit 0", resources=limit)
    assert (result.code, result.oom) == (0, False)


async def test_memory_limit_holds_for_execs(pod):
    box = await pod.start(_SLEEP, resources=Resources(memory_limit_in_bytes=16 * MIB))
    await box.says("ready")
    assert (await box.exec(_FILL)).code == 137
    assert (await box.exec("echo alive")).out == "alive\n"


async def test_plain_kill_is_no_oom(pod):
    box = await pod.start(_SLEEP, resources=Resources(memory_limit_in_bytes=16 * MIB))
    await box.says("ready")
    result = await box.kill(9)
    assert (result.code, result.oom) == (137, False)


@pytest.mark.parametrize("limit", [32, 128])
async def test_update_of_memory(pod, limit):
    box = await pod.start(_SLEEP, resources=Resources(memory_limit_in_bytes=64 * MIB))
    await box.says("ready")
    backend = pod.bench.backend
    await backend.update(box.id, Resources(memory_limit_in_bytes=limit * MIB, cpu_shares=100))
    assert value(box, "memory", "memory.limit_in_bytes") == str(limit * MIB)
    assert value(box, "memory", "memory.memsw.limit_in_bytes") == str(limit * MIB)
    assert value(box, "cpu", "cpu.shares") == "100"


async def test_update_that_fails_changes_nothing(pod):
    before = Resources(
        memory_limit_in_bytes=64 * MIB, cpu_shares=512, cpu_quota=20_000, cpu_period=100_000
    )
    box = await pod.start(_SLEEP, resources=before)
    await box.says("ready")
    for limit in (32, 128):
        update = replace(
            before, memory_limit_in_bytes=limit * MIB, cpu_shares=99, cpuset_cpus="4095"
        )
        with pytest.raises(PolypodError, match=r"cpuset\.cpus to '4095'"):
            await pod.bench.backend.update(box.id, update)
        assert value(box, "memory", "memory.limit_in_bytes") == str(64 * MIB)
        assert value(box, "memory", "memory.memsw.limit_in_bytes") == str(64 * MIB)
        assert value(box, "cpu", "cpu.shares") == "512"
        assert value(box, "cpu", "cpu.cfs_quota_us") == "20000"
    assert (await box.exec("echo alive")).out == "alive\n"


async def test_an_exec_and_what_it_leaves_are_in_the_containers_cgroup(pod):
    box = await pod.start(_SLEEP)
    await box.says("ready")
    # The background process keeps no pipe, so the exec is over; its end is the container's.
    assert (await box.exec("sleep 50 > /dev/null 2>&1 &")).code == 0
    group = f"{pod.spec.cgroup}/{box.id}"
    assert len(Cgroups(discover()).processes(group)) == 2
    await box.kill(9)
    assert Cgroups(discover()).processes(group) == []
