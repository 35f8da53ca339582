"""Sysctls (E9), sockets (E14), directories (E15), names (E22), what cannot be applied (E23), seccomp (E24)."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.containment import OWN_PIDS, python, python_mounts, security

from polypod.plan.operations import Execute, Plan
from polypod.plugin.errors import InvalidArgument, PolypodError, Unsupported
from polypod.plugin.ids import ProcessId, SandboxId
from polypod.plugin.oci import Hook, Hooks, Namespace, OciIdMapping, OciMount, Seccomp, SeccompRule
from polypod.plugin.requests import (
    Capabilities,
    DnsConfig,
    HugepageLimit,
    IdMapping,
    Mount,
    NamespaceMode,
    ProfileType,
    Resources,
    SecurityProfile,
    SelinuxOptions,
    UserNamespace,
)
from polypod.spec.compile import Sources, compile_container
from polypod_namespaces.cgroups import Cgroups, discover

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


# E23


def _with_linux(**changes):
    return lambda config: replace(config, linux=replace(config.linux, **changes))


def _with_process(**changes):
    return lambda config: replace(config, process=replace(config.process, **changes))


def _with_namespace(kind):
    def change(config):
        namespaces = (*config.linux.namespaces, Namespace(kind))
        return replace(config, linux=replace(config.linux, namespaces=namespaces))

    return change


def _without_mount_namespace(config):
    kept = tuple(item for item in config.linux.namespaces if item.type != "mount")
    return replace(config, linux=replace(config.linux, namespaces=kept))


def _with_mount(mount):
    return lambda config: replace(config, mounts=(*config.mounts, mount))


_MAPPING = (OciIdMapping(0, 100000, 65536),)
_BAD_SECCOMP = Seccomp("SCMP_ACT_ALLOW", syscalls=(SeccompRule(("mkdir",), "SCMP_ACT_NOTIFY"),))


@pytest.mark.parametrize(
    "adjust",
    [
        _with_process(apparmor_profile="cri-default"),
        _with_process(selinux_label="system_u:system_r:container_t:s0"),
        _with_linux(mount_label="system_u:object_r:container_file_t:s0"),
        _with_namespace("user"),
        _with_namespace("time"),
        _without_mount_namespace,
        _with_linux(uid_mappings=_MAPPING),
        _with_linux(seccomp=Seccomp("SCMP_ACT_NO_SUCH")),
        _with_linux(seccomp=_BAD_SECCOMP),
        _with_linux(rootfs_propagation="sideways"),
        _with_mount(OciMount("/x", "tmpfs", "tmpfs", ("idmap",))),
        _with_mount(OciMount("/x", "tmpfs", "tmpfs", (), _MAPPING, _MAPPING)),
        _with_mount(OciMount("/x", "bind", "/etc", ("rbind",), _MAPPING, _MAPPING)),
        _with_mount(OciMount("/x", "no-such-fs", "x")),
        _with_mount(OciMount("/x", "tmpfs", "tmpfs", ("no-such-option=1",))),
        _with_mount(OciMount("/x", "bind", "/no/such/place", ("rbind",))),
        _with_linux(sysctl={"kernel.no_such_thing": "1"}),
    ],
    ids=[
        "apparmor",
        "selinux",
        "mount label",
        "user namespace",
        "time namespace",
        "no mount namespace",
        "mappings without a user namespace",
        "unknown seccomp action",
        "seccomp notify without a listener",
        "unknown propagation",
        "idmap",
        "mapped tmpfs",
        "mapped bind",
        "unknown file system",
        "unknown option",
        "missing source",
        "unknown sysctl",
    ],
)
async def test_e23_config_that_cannot_be_applied_fails(pod, adjust):
    result = await pod.run("echo ran", adjust=adjust)
    assert result.error
    assert result.out == ""
    assert not Cgroups(discover()).children(pod.spec.cgroup)


@pytest.mark.parametrize(
    "fields",
    [
        {"security": security(apparmor=SecurityProfile(ProfileType.RUNTIME_DEFAULT))},
        {"security": security(apparmor=SecurityProfile(ProfileType.LOCALHOST, "mine"))},
        {"resources": Resources(cpuset_cpus="4095")},
        {"resources": Resources(cpuset_mems="900")},
        {"resources": Resources(memory_limit_in_bytes=1 << 20, memory_swap_limit_in_bytes=1 << 10)},
        {"resources": Resources(cpu_quota=5)},
        {"resources": Resources(hugepage_limits=(HugepageLimit("2MB", 1 << 21),))},
        {"resources": Resources(oom_score_adj=5000)},
        {"cdi_devices": ("vendor.com/device=one",)},
        {"mounts": (Mount("/x", "/etc", mount_options=("exotic",)),)},
    ],
    ids=str,
)
async def test_e23_request_that_cannot_be_applied_fails(pod, fields):
    result = await pod.run("echo ran", **fields)
    assert result.error
    assert result.out == ""
    assert not Cgroups(discover()).children(pod.spec.cgroup)


@pytest.mark.needs_cgroup1
async def test_e23_limits_of_the_other_cgroup_version(pod):
    result = await pod.run("echo ran", resources=Resources(unified={"memory.high": "1000000"}))
    assert result.kind == "Unsupported"


async def test_e23_selinux_of_a_request(pod):
    result = await pod.run(
        "echo ran", security=security(selinux=SelinuxOptions(type="container_t"))
    )
    assert result.error
    assert "SELinux" in result.error


async def test_e23_user_namespace_of_a_request(bench):
    mapping = (IdMapping(100000, 0, 65536),)
    userns = UserNamespace(NamespaceMode.POD, mapping, mapping)
    with pytest.raises(Unsupported, match="user namespace"):
        await bench.pod(replace(OWN_PIDS, userns=userns))


async def test_e23_hooks_of_an_adjusted_config(pod):
    hooks = Hooks(prestart=(Hook("/bin/true"),))
    result = await pod.run("echo ran", adjust=lambda config: replace(config, hooks=hooks))
    assert result.kind == "Unsupported"


async def test_e23_failed_launch_leaves_no_process_and_no_exit(bench, pod):
    for adjust in (_with_linux(sysctl={"kernel.no_such_thing": "1"}), _with_namespace("user")):
        await pod.run("echo ran", adjust=adjust)
    assert await bench.host.supervisor.processes() == []


# E24

_CALLS = """
import ctypes, errno, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
for name, number, *args in {calls}:
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(arg) for arg in args])
    print(name, errno.errorcode.get(ctypes.get_errno(), 0) if result < 0 else "done")
"""
# x86-64 numbers (asm/unistd_64.h); (name, number, arguments that would do no harm).
_REFUSED = [
    ("unshare user", 272, 0x10000000),
    ("unshare mount", 272, 0x20000),
    ("setns", 308, 0, 0),
    ("mount", 165, 0, 0, 0, 0, 0),
    ("umount2", 166, 0, 0),
    ("pivot_root", 155, 0, 0),
    ("open_tree", 428, 0, 0, 0),
    ("move_mount", 429, 0, 0, 0, 0, 0),
    ("fsopen", 430, 0, 0),
    ("mount_setattr", 442, 0, 0, 0, 0, 0),
    ("keyctl", 250, 0, 0, 0),
    ("add_key", 248, 0, 0, 0, 0, 0),
    ("request_key", 249, 0, 0, 0, 0),
    ("bpf", 321, 0, 0, 0),
    ("perf_event_open", 298, 0, 0, 0, 0, 0),
    ("io_uring_setup", 425, 0, 0),
    ("io_uring_enter", 426, -1, 0, 0, 0),
    ("io_uring_register", 427, -1, 0, 0, 0),
    ("userfaultfd", 323, 0),
    ("kexec_load", 246, 0, 0, 0, 0),
    ("init_module", 175, 0, 0, 0),
    ("finit_module", 313, -1, 0, 0),
    ("open_by_handle_at", 304, -1, 0, 0),
    ("swapon", 167, 0, 0),
    ("reboot", 169, 0, 0, 0),
    ("syslog", 103, 10, 0, 0),
    ("settimeofday", 164, 0, 0),
    ("acct", 163, 0),
    ("quotactl", 179, 0, 0, 0, 0),
    ("iopl", 172, 0),
    ("lookup_dcookie", 212, 0, 0, 0),
    ("nfsservctl", 180, 0, 0, 0),
    ("personality of old programs", 135, 0x0400000),
]
_ALLOWED = [("getpid", 39), ("sched_yield", 24), ("personality asked", 135, 0xFFFFFFFF)]


def needs_x86():
    return pytest.mark.skipif(os.uname().machine != "x86_64", reason="call numbers of x86-64")


@needs_x86()
@pytest.mark.parametrize("as_exec", [False, True], ids=["first process", "exec"])
async def test_e24_default_profile_refuses(pod, as_exec):
    command = python(_CALLS.format(calls=_REFUSED + _ALLOWED))
    if as_exec:
        box = await pod.start(_SLEEP, mounts=python_mounts())
        await box.says("ready")
        result = await box.exec(command)
    else:
        result = await pod.run(command, mounts=python_mounts())
    answers = dict(line.rsplit(" ", 1) for line in result.lines)
    refused = {name for name, *_ in _REFUSED}
    assert {name: answers[name] for name in refused} == dict.fromkeys(refused, "EPERM")
    assert {answers[name] for name, *_ in _ALLOWED} == {"done"}


@needs_x86()
async def test_e24_new_namespaces_cannot_be_cloned(pod):
    calls = [("clone", 56, 0x10000000 | 17, 0, 0, 0, 0), ("clone3", 435, 0, 0)]
    result = await pod.run(python(_CALLS.format(calls=calls)), mounts=python_mounts())
    # ENOSYS makes C libraries take the older call, whose flags can be looked at.
    assert result.lines == ["clone EPERM", "clone3 ENOSYS"]


@needs_x86()
async def test_e24_capability_opens_what_belongs_to_it(pod):
    """With SYS_ADMIN the calls reach the kernel, which then judges the arguments."""
    asked = security(capabilities=Capabilities(add=("SYS_ADMIN",)))
    calls = [("mount", 165, 0, 0, 0, 0, 0), ("unshare", 272, 0x4000000), ("keyctl", 250, 0, 0, 0)]
    result = await pod.run(
        python(_CALLS.format(calls=calls)), mounts=python_mounts(), security=asked
    )
    assert result.lines == ["mount EFAULT", "unshare done", "keyctl EPERM"]


@needs_x86()
async def test_e24_calls_of_other_abis_are_no_way_around(pod):
    """The x32 form of a refused call."""
    calls = [("x32 unshare", 272 | 0x40000000, 0x10000000), ("x32 mount", 165 | 0x40000000)]
    result = await pod.run(python(_CALLS.format(calls=calls)), mounts=python_mounts())
    assert "done" not in result.out
    assert result.code != 0 or set(result.out.split()) <= {
        "x32",
        "unshare",
        "mount",
        "EPERM",
        "ENOSYS",
    }


@pytest.mark.parametrize("user", [0, 1000])
@pytest.mark.parametrize("no_new_privs", [False, True])
async def test_e24_filter_is_there_and_nothing_after_it_failed(pod, user, no_new_privs):
    asked = security(run_as_user=user, no_new_privs=no_new_privs)
    look = ("/bin/grep", "-E", "^Seccomp:|^NoNewPrivs", "/proc/self/status")
    box = await pod.start(_SLEEP, security=asked)
    await box.says("ready")
    for result in (await pod.run(look, security=asked), await box.exec(look)):
        facts = dict(line.split(":\t") for line in result.lines)
        assert facts == {"NoNewPrivs": str(int(no_new_privs)), "Seccomp": "2"}


async def test_e24_unconfined_and_privileged_have_no_filter(pod):
    look = ("/bin/grep", "^Seccomp:", "/proc/self/status")
    for asked in (
        security(seccomp=SecurityProfile(ProfileType.UNCONFINED)),
        security(privileged=True),
    ):
        assert (await pod.run(look, security=asked)).out.split() == ["Seccomp:", "0"]


async def test_e24_filter_that_allows_only_execve_still_starts_the_program(pod):
    """Last of all: a filter under which none of our own steps could be done."""
    rules = (SeccompRule(("execve",), "SCMP_ACT_ALLOW"),)
    adjust = _with_linux(seccomp=Seccomp("SCMP_ACT_KILL_PROCESS", syscalls=rules))
    result = await pod.run(("/bin/true",), adjust=adjust)
    # The program itself dies of SIGSYS at its first call.
    assert (result.error, result.code) == ("", 159)
    box = await pod.start(_SLEEP)
    await box.says("ready")


async def test_keyring_is_not_the_launchers(pod):
    asked = security(seccomp=SecurityProfile(ProfileType.UNCONFINED), masked_paths=())
    code = """
import ctypes
libc = ctypes.CDLL(None)
libc.syscall.restype = ctypes.c_long
print(libc.syscall(250, 0, ctypes.c_int(-3), 0))  # KEYCTL_GET_KEYRING_ID of the session keyring
"""
    results = [
        await pod.run(python(code), mounts=python_mounts(), security=asked) for _ in range(2)
    ]
    serials = {int(result.out) for result in results}
    assert len(serials) == 2


async def test_unsupported_is_told_before_anything_is_made(pod):
    box = await pod.create("true")
    with pytest.raises(Unsupported):
        compile_container(_with_namespace("user")(box.config), Sources(root="fd:0"))
