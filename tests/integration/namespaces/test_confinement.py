"""Sysctls (E9), sockets (E14), directories (E15), lines of files (E18), names (E22)."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.containment_parts import OWN_PIDS, security

from polypod.plan.operations import Execute, Plan
from polypod.plugin.errors import InvalidArgument, PolypodError
from polypod.plugin.ids import ProcessId, SandboxId
from polypod.plugin.requests import (
    DnsConfig,
    NamespaceMode,
    ProfileType,
    SecurityProfile,
)

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay, pytest.mark.needs_busybox]

_SLEEP = "echo ready; exec sleep 100"


# E9


async def test_e9_sysctls_of_the_pods_own_namespaces(bench):
    wanted = {
        "net.ipv4.ip_unprivileged_port_start": "0",
        "net/ipv4/ip_local_port_range": "10000 20000",
        "kernel.shm_rmid_forced": "1",
        "kernel.msgmax": "7777",
        "fs.mqueue.msg_max": "20",
    }
    paths = [Path("/proc/sys", *name.replace("/", ".").split(".")) for name in wanted]
    before = [path.read_text() for path in paths]
    pod = await bench.pod(sysctls=wanted)
    result = await pod.run(f"cat {' '.join(map(str, paths))}")
    assert [line.split() for line in result.lines] == [value.split() for value in wanted.values()]
    assert [path.read_text() for path in paths] == before


_NO_SYSCTLS = [
    # CVE-2022-0811: more than one setting in one value, for a helper that splits at "+".
    ("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/tmp/x %P"),
    ("net.ipv4.ip_forward", "1\nkernel.core_pattern=x"),
    ("net.ipv4.ip_forward", "1,kernel.core_pattern=x;"),
    ("net.ipv4.ip_forward", ""),
    ("net.ipv4.ip_forward", "1\0"),
    ("net.ipv4.ip_forward", " 1"),
    ("kernel.core_pattern", "x"),
    ("kernel.domainname", "x"),
    ("kernel.shm_rmid_forced/../core_pattern", "x"),
    ("net.ipv4/../../kernel/core_pattern", "x"),
    ("net/../kernel/core_pattern", "x"),
    ("net.ipv4.ip_forward=1", "x"),
    ("net", "1"),
    ("net.", "1"),
    ("vm.overcommit_memory", "1"),
    ("fs.file-max", "1"),
]


async def test_e9_sysctl_that_is_refused(bench):
    pattern = Path("/proc/sys/kernel/core_pattern")
    before = pattern.read_text()
    for name, value in _NO_SYSCTLS:
        with pytest.raises(InvalidArgument, match="sysctls"):
            await bench.pod(sysctls={name: value})
    assert pattern.read_text() == before


@pytest.mark.parametrize(
    ("shared", "name"),
    [
        ("network", "net.ipv4.ip_forward"),
        ("ipc", "kernel.shmmax"),
        ("ipc", "fs.mqueue.msg_max"),
    ],
)
async def test_e9_sysctl_of_a_namespace_that_is_the_hosts(bench, shared, name):
    modes = replace(OWN_PIDS, **{shared: NamespaceMode.NODE})
    with pytest.raises(InvalidArgument, match="it would change the host"):
        await bench.pod(modes, sysctls={name: "1"})


async def test_e9_sysctl_that_the_kernel_does_not_have_leaves_nothing(bench):
    with pytest.raises(PolypodError, match=r"net\.ipv4\.no_such_thing"):
        await bench.pod(sysctls={"net.ipv4.no_such_thing": "1"})
    assert await bench.host.supervisor.list_namespaces() == []


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("", "kernel.core_pattern"),
        ("", "kernel.domainname"),
        ("", "kernel/../kernel/core_pattern"),
        ("network", "net.ipv4.ip_forward"),
        ("ipc", "kernel.shmmax"),
    ],
)
async def test_e9_sysctl_of_an_adjusted_config_that_is_the_hosts(pod, kind, name):
    """Whoever wrote the config: without the namespace it would be the host's parameter."""

    def adjusted(config):
        kept = tuple(item for item in config.linux.namespaces if item.type != kind)
        return replace(config, linux=replace(config.linux, namespaces=kept, sysctl={name: "1"}))

    place = Path("/proc/sys", *name.replace("/", ".").split(".")) if "/" not in name else None
    before = place.read_text() if place else ""
    result = await pod.run("echo ran", adjust=adjusted)
    assert result.kind == "InvalidArgument"
    assert "sysctls" in result.error
    assert place is None or place.read_text() == before


# E14, E15


def abstract_sockets() -> set[str]:
    names = {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()}
    return {name for name in names if name.startswith("@")}


async def test_e14_no_socket_of_ours_is_abstract(bench, pod):
    modes = replace(OWN_PIDS, network=NamespaceMode.NODE)
    host_pod = await bench.pod(modes)
    result = await host_pod.run("cat /proc/net/unix")
    assert "polypod" not in "".join(word for word in result.out.split() if word.startswith("@"))
    assert not {name for name in abstract_sockets() if "polypod" in name}


_CONNECT = """
import os, socket, sys
os.setgroups([]); os.setgid(1000); os.setuid(1000)
for path in sys.argv[1:]:
    try:
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(path)
        print("connected", path)
    except OSError as error:
        print(error.strerror)
"""


async def test_e14_sockets_are_roots_alone(pod, processes):
    sockets = [path for path in processes.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]
    assert len(sockets) >= 3
    for path in sockets:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700, path.parent
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _CONNECT, *map(str, sockets)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.splitlines()) == {"Permission denied"}


@pytest.fixture
def opened(processes):
    """The way to the sockets, open for everybody."""
    places = [processes, *processes.glob("*.sock"), *processes.parents]
    modes = {place: stat.S_IMODE(place.stat().st_mode) for place in places}
    for place, mode in modes.items():
        place.chmod(0o777 if place.is_relative_to(processes) else mode | 0o011)
    yield processes
    for place, mode in modes.items():
        place.chmod(mode)


_ASK = """
import os, socket, sys
os.setgroups([]); os.setgid(1000); os.setuid(1000)
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.settimeout(10)
sock.connect(sys.argv[1])
try:
    sock.send(b'{"id": 1, "op": "pids"}')
    print(sock.recv(1000))
except OSError as error:
    print(b"")
"""


async def test_e14_a_peer_of_another_user_is_not_served(pod, opened):
    """Also where somebody opened the directory: who connects is asked for its uid."""
    sockets = sorted(opened.glob("*.sock"))
    assert len(sockets) == 3
    for path in sockets:
        command = [sys.executable, "-I", "-S", "-c", _ASK, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == "b''\n", (path, done)


async def test_e15_state_is_closed_to_others(bench, pod, processes):
    box = await pod.start("echo ready; umask 0; : > /tmp/file; exec sleep 100")
    await box.says("ready")
    for place in (processes, pod.spec.directory):
        assert stat.S_IMODE(place.stat().st_mode) == 0o700, place
    found = subprocess.run(
        ["find", str(bench.directory / "handler"), str(processes),
         "-not", "-type", "l", "-perm", "/022"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout == ""


_TRY = """
import os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for path in sys.argv[1:]:
    try:
        os.stat(path)
        print("seen", path)
    except OSError as error:
        print(error.strerror)
"""


async def test_e15_setuid_file_of_a_container_is_out_of_reach(bench, pod):
    """What a container's root made setuid would be root's for whoever could execute it on the host."""
    box = await pod.start("cp /bin/busybox /tmp/su; chmod 4755 /tmp/su; echo ready; exec sleep 100")
    await box.says("ready")
    (file,) = pod.spec.directory.glob("*/upper/tmp/su")
    assert file.stat().st_mode & stat.S_ISUID
    above = [place for place in pod.spec.directory.parents if place != Path("/")]
    modes = {place: stat.S_IMODE(place.stat().st_mode) for place in above}
    for place, mode in modes.items():
        place.chmod(mode | 0o011)
    paths = [pod.spec.directory, file, f"/proc/{await box.pid()}/root/tmp/su"]
    command = [sys.executable, "-I", "-S", "-c", _TRY, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for place, mode in modes.items():
        place.chmod(mode)
    assert done.stdout.splitlines() == [
        f"seen {paths[0]}",
        "Permission denied",
        "Permission denied",
    ]


# E18, E22


async def test_e22_ids_are_single_names(bench):
    """They become file names of the keeper."""
    plan = Plan(0, [Execute(args=["/bin/true"], env=[], search=False)])
    supervisor = bench.host.supervisor
    for name in ("../../etc/x", "a/b", "..", "", ".hidden", "a\0b", "a\nb", "x" * 200):
        with pytest.raises(InvalidArgument):
            await supervisor.launch(ProcessId(name), plan, fds=[])
        with pytest.raises(InvalidArgument):
            await supervisor.make_namespaces(SandboxId(name), frozenset({"ipc"}))


@pytest.mark.parametrize(
    "dns",
    [
        DnsConfig(servers=("10.0.0.1\nnameserver 6.6.6.6",)),
        DnsConfig(searches=("example.org\noptions attempts:99",)),
        DnsConfig(options=("ndots:5\nnameserver 6.6.6.6",)),
        DnsConfig(servers=("10.0.0.1 # x\0",)),
    ],
    ids=str,
)
async def test_e18_dns_cannot_add_a_line(bench, dns):
    with pytest.raises(InvalidArgument):
        await bench.pod(dns=dns)


@pytest.mark.parametrize("hostname", ["pod\n127.0.0.1 evil", "pod evil", "pod\0", "a" * 65])
async def test_e18_hostname_cannot_add_a_line(bench, hostname):
    with pytest.raises(PolypodError):
        await bench.pod(hostname=hostname)


@pytest.mark.parametrize(
    "reference",
    ["../../etc/passwd", "/../../etc/passwd", "profiles/../../x", "", "/no/such/profile"],
)
async def test_e22_seccomp_profile_of_the_node(pod, reference):
    asked = security(seccomp=SecurityProfile(ProfileType.LOCALHOST, reference))
    result = await pod.run("echo ran", security=asked)
    assert result.kind == "InvalidArgument"
    assert result.out == ""


async def test_e22_seccomp_profile_that_is_no_profile(pod, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "text").write_text("{}")
    (tmp_path / "half").write_text('{"defaultAction": "SCMP_ACT_NO_SUCH"}')
    (tmp_path / "large").write_bytes(b" " * (2 << 20))
    for name in ("fifo", "text", "half", "large", "."):
        asked = security(seccomp=SecurityProfile(ProfileType.LOCALHOST, str(tmp_path / name)))
        result = await pod.run("echo ran", security=asked)
        assert result.error, name
        assert result.out == ""


async def test_localhost_profile_is_applied(pod, tmp_path):
    (tmp_path / "profile.json").write_text(
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": '
        '[{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}'
    )
    asked = security(seccomp=SecurityProfile(ProfileType.LOCALHOST, str(tmp_path / "profile.json")))
    result = await pod.run("mkdir /tmp/x", security=asked)
    assert "No space left on device" in result.err
