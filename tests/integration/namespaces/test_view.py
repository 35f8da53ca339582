"""What a container sees, as a user expects it: namespaces, mounts, devices, names."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from support.containment_parts import OWN_PIDS, security

from polypod.plugin.oci import Namespace, OciMount
from polypod.plugin.requests import DnsConfig, Mount, NamespaceMode, NamespaceOptions, Resources

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay, pytest.mark.needs_busybox]

KINDS = ("mnt", "pid", "net", "ipc", "uts", "cgroup", "user", "time")
_LINKS = "for kind in mnt pid net ipc uts cgroup user time; do readlink /proc/self/ns/$kind; done"
_SLEEP = "echo ready; exec sleep 100"
SHARED = NamespaceOptions(pid=NamespaceMode.POD)
HOST = NamespaceOptions(NamespaceMode.NODE, NamespaceMode.NODE, NamespaceMode.NODE)


def links(result) -> dict[str, str]:
    assert result.code == 0, result
    return dict(zip(KINDS, result.lines, strict=True))


def own_links() -> dict[str, str]:
    return {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in KINDS}


# Namespaces


async def test_namespaces_are_new_and_the_pods_are_shared(bench, pod):
    one, two = links(await pod.run(_LINKS)), links(await pod.run(_LINKS))
    host = own_links()
    new = {"mnt", "pid", "net", "ipc", "uts", "cgroup"}
    assert {kind for kind in KINDS if one[kind] != host[kind]} == new
    assert {kind for kind in KINDS if one[kind] == two[kind]} >= {"net", "ipc", "uts"}
    other = links(await (await bench.pod()).run(_LINKS))
    assert {kind for kind in KINDS if one[kind] == other[kind]} == {"user", "time"}


async def test_an_exec_is_in_the_containers_namespaces(pod):
    box = await pod.start(f"{_LINKS}; {_SLEEP}")
    said = (await box.says("ready")).splitlines()
    assert (await box.exec(_LINKS)).lines == said[:-1]


async def test_host_namespaces(bench):
    pod = await bench.pod(HOST, hostname="")
    found, host = links(await pod.run(_LINKS)), own_links()
    assert {kind for kind in KINDS if found[kind] != host[kind]} == {"mnt", "cgroup"}
    box = await pod.start(f"hostname; cat /proc/{os.getpid()}/comm; {_SLEEP}")
    said = (await box.says("ready")).splitlines()
    assert said[0] == os.uname().nodename
    assert said[1] == Path("/proc/self/comm").read_text().strip()
    assert links(await box.exec(_LINKS))["pid"] == host["pid"]


async def test_own_processes(pod):
    result = await pod.run("echo $$; ls /proc | grep -c '^[0-9]'")
    assert result.lines[0] == "1"
    assert int(result.lines[1]) <= 3


async def test_shared_processes(bench):
    pod = await bench.pod(SHARED)
    one = await pod.start(_SLEEP)
    await one.says("ready")
    result = await pod.run("ps -o pid,comm; echo self $$")
    assert "polypod-init" in result.lines[1]
    assert sum("sleep" in line for line in result.lines) == 1
    assert "self 1" not in result.lines
    # The container's end is not the pod's.
    assert (await one.exec("true")).code == 0


async def test_shared_processes_end_with_their_container(bench):
    """Without a pid namespace of its own, what a container leaves is ended by its cgroup."""
    pod = await bench.pod(SHARED)
    watcher = await pod.start(_SLEEP)
    await watcher.says("ready")
    assert (await pod.run("sleep 77 & exit 0")).code == 0
    assert "sleep 77" not in (await watcher.exec("ps -o args")).out


async def test_target_processes(pod):
    target = await pod.start("sleep 88 & echo ready; wait")
    await target.says("ready")
    modes = NamespaceOptions(pid=NamespaceMode.TARGET, target_id=target.id)
    result = await pod.run("ps -o args", security=security(namespaces=modes))
    assert "sleep 88" in result.out
    assert (
        links(await target.exec(_LINKS))["pid"]
        in (await pod.run(_LINKS, security=security(namespaces=modes))).lines
    )
    # The debugging container's end does not end what it looked at.
    assert (await target.exec("true")).code == 0


async def test_target_that_does_not_run(pod):
    modes = NamespaceOptions(pid=NamespaceMode.TARGET, target_id="0" * 64)
    result = await pod.run("true", security=security(namespaces=modes))
    assert result.kind == "NotFound"


async def test_namespaces_that_a_config_makes_or_joins_by_path(pod):
    other = await pod.start(_SLEEP)
    await other.says("ready")
    pid = await other.pid()

    def adjusted(config):
        kinds = {item.type: item for item in config.linux.namespaces}
        kinds["ipc"] = Namespace("ipc")
        kinds["uts"] = Namespace("uts")
        kinds["network"] = Namespace("network", f"/proc/{pid}/ns/net")
        namespaces = tuple(kinds.values())
        linux = replace(config.linux, namespaces=namespaces)
        return replace(config, hostname="mine", domainname="example", linux=linux)

    found = links(await pod.run(_LINKS, adjust=adjusted))
    theirs = links(await other.exec(_LINKS))
    assert found["net"] == theirs["net"]
    assert found["ipc"] != theirs["ipc"]
    result = await pod.run("hostname; cat /proc/sys/kernel/domainname", adjust=adjusted)
    assert result.lines == ["mine", "example"]
    assert (await other.exec("hostname")).out == "pod\n"


async def test_namespace_path_that_is_none(pod, tmp_path):
    (tmp_path / "file").touch()

    def adjusted(config):
        kinds = {item.type: item for item in config.linux.namespaces}
        kinds["network"] = Namespace("network", str(tmp_path / "file"))
        return replace(config, linux=replace(config.linux, namespaces=tuple(kinds.values())))

    result = await pod.run("echo ran", adjust=adjusted)
    assert result.error
    assert result.out == ""


async def test_network_has_a_loopback_that_is_not_the_hosts(pod):
    result = await pod.run("ls /sys/class/net; cat /proc/net/dev | tail -n +3 | cut -d: -f1")
    assert set(result.out.split()) == {"lo"}


# Names


async def test_hostname_and_files_of_the_pod(bench):
    pod = await bench.pod(
        hostname="web-0", dns=DnsConfig(("10.0.0.10",), ("a.example",), ("ndots:5",))
    )
    result = await pod.run("hostname; cat /etc/hostname; echo $HOSTNAME; cat /etc/resolv.conf")
    assert result.lines[:3] == ["web-0"] * 3
    assert result.lines[3:] == ["search a.example", "nameserver 10.0.0.10", "options ndots:5"]
    # They are the pod's, not the image's: a change is seen by the next container.
    assert (await pod.run("echo 10.1.1.1 peer >> /etc/hosts")).code == 0
    assert "10.1.1.1 peer" in (await pod.run("cat /etc/hosts")).lines


async def test_oom_score_is_set(bench, pod):
    look = "cat /proc/self/oom_score_adj"
    box = await pod.start(f"{look}; {_SLEEP}", resources=Resources(oom_score_adj=800))
    assert "800" in await box.says("ready")
    assert (await box.exec(look)).out == "800\n"
    lowest = bench.facts.cgroups.oom_score_adj_min
    result = await pod.run(look, resources=Resources(oom_score_adj=-997))
    assert int(result.out) == max(-997, lowest)


# /dev


async def test_devices(pod):
    result = await pod.run(
        "cd /dev; stat -c '%n %t:%T %a %u %g' null zero full random urandom tty;"
        " for link in fd stdin stdout stderr core ptmx; do echo $link $(readlink $link); done; ls"
    )
    assert result.lines[:6] == [
        "null 1:3 666 0 0",
        "zero 1:5 666 0 0",
        "full 1:7 666 0 0",
        "random 1:8 666 0 0",
        "urandom 1:9 666 0 0",
        "tty 5:0 666 0 0",
    ]
    assert result.lines[6:12] == [
        "fd /proc/self/fd",
        "stdin /proc/self/fd/0",
        "stdout /proc/self/fd/1",
        "stderr /proc/self/fd/2",
        "core /proc/kcore",
        "ptmx pts/ptmx",
    ]
    names = {"null", "zero", "full", "random", "urandom", "tty", "fd", "stdin", "stdout", "stderr"}
    assert set(result.lines[12:]) == names | {"core", "ptmx", "pts", "shm", "mqueue"}


async def test_standard_streams_can_be_opened_by_another_user(pod):
    result = await pod.run(
        "echo out > /dev/stdout; echo err > /dev/stderr", security=security(run_as_user=1000)
    )
    assert (result.out, result.err) == ("out\n", "err\n")


async def test_terminals_are_the_containers_own(pod):
    box = await pod.start(
        "stat -c '%a %u %g' $(tty) /dev/pts/ptmx; ls /dev/pts; stty size; read line; echo got $line",
        tty=True,
        security=security(run_as_user=1000),
        adjust=lambda config: replace(
            config, process=replace(config.process, console_size=(33, 101))
        ),
    )
    master = box.terminal()
    seen = b""
    while b"33 101" not in seen:
        seen += os.read(master, 4096)
    assert seen.split()[:8] == b"620 1000 5 666 0 0 0 ptmx".split()
    os.write(master, b"hello\n")
    assert (await box.ended()).code == 0
    while b"got hello" not in seen:
        seen += os.read(master, 4096)


async def test_two_containers_have_terminals_of_their_own(pod):
    boxes = [await pod.start("tty; read line", tty=True) for _ in range(2)]
    for box in boxes:
        assert os.read(box.terminal(), 100).strip() == b"/dev/pts/0"


# Mounts


def mounts(text: str) -> dict[str, tuple[str, str]]:
    """Mount point → (file system, options of the mount)."""
    found = {}
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        found[left.split()[4]] = (right.split()[0], left.split()[5])
    return found


async def test_mounts_and_their_flags(pod):
    found = mounts((await pod.run("cat /proc/self/mountinfo")).out)
    strict = {"nosuid", "nodev", "noexec"}
    wanted = {
        "/": ("overlay", set()),
        "/proc": ("proc", strict),
        "/dev": ("tmpfs", {"nosuid"}),
        "/dev/pts": ("devpts", {"nosuid", "noexec"}),
        "/dev/shm": ("tmpfs", strict),
        "/dev/mqueue": ("mqueue", strict),
        "/sys": ("sysfs", strict | {"ro"}),
    }
    for path, (kind, flags) in wanted.items():
        assert found[path][0] == kind
        have = set(found[path][1].split(","))
        assert flags <= have, path
        assert ("ro" in have) == ("ro" in flags), path


async def test_nothing_of_the_host_is_mounted(pod, bench):
    """No path of the host, no old root, no mount of the launcher."""
    found = mounts((await pod.run("cat /proc/self/mountinfo")).out)
    masks = {path for path in found if re.match(r"/(proc|sys)/", path)}
    files = {"/etc/hostname", "/etc/hosts", "/etc/resolv.conf"}
    rest = found.keys() - masks - files
    assert rest == {"/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys"}
    # Nothing in there takes part in propagation.
    text = (await pod.run("cut -d' ' -f7 /proc/self/mountinfo | sort -u")).out
    assert text.split() == ["-"]


async def test_sys_is_read_only(pod):
    result = await pod.run("echo 1 > /sys/kernel/mm/ksm/run; mkdir /sys/fs/x; touch /sys/x")
    assert result.code != 0
    assert "Read-only file system" in result.err


async def test_read_only_root(pod):
    result = await pod.run(
        """
        touch /x; touch /etc/x; rm /bin/sh; mount -o remount,rw /
        echo x > /etc/hosts
        touch /dev/x /dev/shm/x && echo writable
        echo text > /dev/null && echo null
        """,
        security=security(readonly_rootfs=True),
    )
    assert result.lines == ["writable", "null"]
    assert result.err.count("Read-only file system") == 4, result


async def test_read_only_root_still_gets_its_mount_points(pod, tmp_path):
    (tmp_path / "volume").mkdir()
    result = await pod.run(
        "touch /new/deep/place/x && pwd",
        security=security(readonly_rootfs=True),
        mounts=(Mount("/new/deep/place", str(tmp_path / "volume")),),
        working_dir="/made/for/me",
    )
    assert result.out == "/made/for/me\n"
    assert (tmp_path / "volume/x").exists()


async def test_read_only_dev_of_a_config(pod):
    def closed(config):
        kept = [
            replace(item, options=(*item.options, "ro")) if item.destination == "/dev" else item
            for item in config.mounts
        ]
        return replace(config, mounts=tuple(kept))

    result = await pod.run("touch /dev/x; echo x > /dev/null && echo null", adjust=closed)
    assert result.lines == ["null"]
    assert "Read-only file system" in result.err


async def test_tmpfs_of_a_config(pod):
    mount = OciMount("/scratch", "tmpfs", "tmpfs", ("nosuid", "noexec", "size=1m", "mode=1770"))
    result = await pod.run(
        "stat -c %a /scratch; head -c 2000000 /dev/zero > /scratch/x; stat -c %s /scratch/x",
        adjust=lambda config: replace(config, mounts=(*config.mounts, mount)),
    )
    assert result.lines[0] == "1770"
    assert int(result.lines[1]) <= 1 << 20


async def test_shared_memory_is_the_pods(bench, pod):
    keeper = await pod.start("echo text > /dev/shm/note; " + _SLEEP)
    await keeper.says("ready")
    assert (await pod.run("cat /dev/shm/note; stat -c %a /dev/shm")).lines == ["text", "1777"]
    other = await bench.pod()
    assert (await other.run("ls /dev/shm")).out == ""


async def test_shared_memory_of_the_host(bench):
    name = f"polypod-test-{os.getpid()}"
    pod = await bench.pod(replace(OWN_PIDS, ipc=NamespaceMode.NODE))
    Path("/dev/shm", name).write_text("host\n")
    try:
        assert (await pod.run(f"cat /dev/shm/{name}")).out == "host\n"
    finally:
        Path("/dev/shm", name).unlink()


# Privileged


async def test_privileged_container(pod, bench):
    result = await pod.run(
        """
        grep -c ' /proc/[^ ]* \\| /sys/firmware ' /proc/self/mountinfo
        ls -d /dev/fuse /dev/kmsg
        mkdir /tmp/m && mount -t tmpfs none /tmp/m && echo mounted
        awk '$5 == "/sys" { print $6 }' /proc/self/mountinfo
        """,
        security=security(privileged=True),
    )
    count, *words = result.lines
    assert count == "0"
    assert words[:2] == [path for path in ("/dev/fuse", "/dev/kmsg") if os.path.exists(path)]
    assert "mounted" in words
    assert words[-1].startswith("rw")


async def test_mounts_of_a_privileged_container_stay_in_it(pod):
    assert (await pod.run("true")).code == 0
    before = Path("/proc/self/mountinfo").read_text()
    result = await pod.run(
        "mkdir /tmp/m && mount -t tmpfs none /tmp/m && mount --bind /tmp/m /mnt 2>/dev/null; echo end",
        security=security(privileged=True),
    )
    assert result.out == "end\n"
    assert Path("/proc/self/mountinfo").read_text() == before
