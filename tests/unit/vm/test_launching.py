"""What a guest is asked for a container: the same plan as on a host, with sources of the guest."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

import pytest

from polypod.plan.operations import Plan
from polypod.plugin import (
    ContainerConfig,
    ContainerId,
    ContainerMetadata,
    ContainerSecurity,
    ContainerSpec,
    ExecId,
    ExecSpec,
    ImageSpec,
    NamespaceMode,
    NamespaceOptions,
    PodMetadata,
    Resources,
    SandboxConfig,
    SandboxId,
    SandboxSpec,
    Stdio,
    Unsupported,
)
from polypod.plugin.oci import (
    CpuLimits,
    DeviceRule,
    Linux,
    MemoryLimits,
    Namespace,
    OciConfig,
    OciMount,
    OciResources,
    Process,
)
from polypod.plugin.rootfs import BlockRootfs, DirectoryRootfs
from polypod_vm import launching

POD = Path("/state/pod")
NAMESPACES = (
    Namespace("mount"),
    Namespace("network", "sandbox:network"),
    Namespace("uts"),
    Namespace("ipc"),
    Namespace("pid"),
    Namespace("cgroup"),
)
CONFIG = OciConfig(
    Process(args=("/bin/sh",)),
    hostname="pod",
    mounts=(
        OciMount("/proc", "proc", "proc"),
        OciMount("/etc/hosts", "bind", str(POD / "hosts"), ("rbind", "ro")),
        OciMount("/dev/shm", "bind", str(POD / "shm"), ("rbind", "nosuid")),
    ),
    linux=Linux(
        namespaces=NAMESPACES,
        resources=OciResources(
            memory=MemoryLimits(limit=1 << 26), cpu=CpuLimits(shares=512, cpus="3", mems="0")
        ),
    ),
)


def spec(
    config: OciConfig = CONFIG, pid: NamespaceMode = NamespaceMode.POD, **changes
) -> ContainerSpec:
    sandbox = SandboxSpec(
        SandboxId("a" * 64), SandboxConfig(PodMetadata("p", "u", "n")), None, POD, "/x"
    )
    security = ContainerSecurity(namespaces=NamespaceOptions(pid=pid))
    request = ContainerConfig(ContainerMetadata("c"), ImageSpec("i"), security=security)
    fields = {
        "id": ContainerId("b" * 64),
        "sandbox": sandbox,
        "request": request,
        "config": config,
        "rootfs": BlockRootfs(Path("/images/1.erofs"), "erofs"),
        "stdio": Stdio(None, 8, 9),
        "directory": POD / "c",
        "cgroup": "/x/c",
        **changes,
    }
    return ContainerSpec(**fields)


def request(**changes):
    wanted = spec(**changes)
    return launching.launch_request(wanted, launching.block_image(wanted.rootfs))


def plan_of(asked) -> Plan:
    return Plan.from_wire(asked["plan"])


def test_sources_are_those_of_the_guest():
    asked = request()
    plan = plan_of(asked)
    described = plan.describe()
    assert f"attach-root source=disk:{asked['root']['serial']}" in described
    assert "use-stdio stderr=stream:stderr stdin= stdout=stream:stdout" in described
    assert "join-cgroups sources=['cgroup:own']" in described
    assert "fd:" not in described
    assert len(asked["root"]["serial"]) <= 20


def test_network_is_the_machines_own():
    described = plan_of(request()).describe()
    assert "network" not in described
    assert not plan_of(request()).clone_flags & 0x40000000


def test_namespaces_of_the_pod_are_joined():
    plan = plan_of(request())
    assert plan.pid_namespace == "sandbox:pid"
    assert "[['uts', 'sandbox:uts'], ['ipc', 'sandbox:ipc']]" in plan.describe()


def test_a_container_may_have_processes_of_its_own():
    asked = request(pid=NamespaceMode.CONTAINER)
    assert plan_of(asked).pid_namespace == ""
    assert plan_of(asked).clone_flags & 0x20000000
    assert asked["own_pids"] is True
    assert request()["own_pids"] is False


def test_the_pods_files_are_the_guests_files():
    asked = request()
    assert asked["binds"] == {
        "bind:0": {"path": "/run/pod/hosts", "attributes": 1},
        "bind:1": {"path": "/run/pod/shm", "attributes": 2},
    }
    assert (
        "attach-mount is_directory=True source=bind:1 target=/dev/shm" in plan_of(asked).describe()
    )


@pytest.mark.parametrize(
    "source", ["/var/data", str(POD / "secret"), str(POD / "c" / "hosts"), "/hosts"]
)
def test_a_path_of_the_host_is_refused(source):
    mount = OciMount("/data", "bind", source, ("rbind",))
    with pytest.raises(Unsupported, match="path of the host"):
        request(config=replace(CONFIG, mounts=(mount,)))


def test_another_form_than_block_is_refused():
    with pytest.raises(Unsupported, match="DirectoryRootfs"):
        launching.block_image(DirectoryRootfs(Path("/x")))


def test_limits_are_files_of_cgroup_v2_without_the_hosts_processors():
    limits = dict(request()["limits"])
    assert limits["memory.max"] == str(1 << 26)
    assert "cpu.weight" in limits
    assert "cpuset.cpus" not in limits


def test_device_rules_are_a_program():
    rules = (DeviceRule(allow=False), DeviceRule(allow=True, type="c", major=1, minor=3))
    resources = replace(CONFIG.linux.resources, devices=rules)
    config = replace(CONFIG, linux=replace(CONFIG.linux, resources=resources))
    program = base64.b64decode(request(config=config)["devices"])
    assert program
    assert len(program) % 8 == 0
    assert request()["devices"] == ""


def test_an_exec_joins_its_container():
    process = Process(args=("true",))
    wanted = ExecSpec(ExecId("e" * 64), ContainerId("b" * 64), process, Stdio(None, 3, 4), CONFIG)
    asked = launching.exec_request(wanted, NamespaceMode.POD)
    plan = plan_of(asked)
    assert plan.pid_namespace == f"container:{'b' * 64}"
    assert "network" not in plan.describe()
    assert asked["container"] == "b" * 64


def test_update_is_in_files_of_cgroup_v2():
    asked = launching.update_request(
        "c", Resources(memory_limit_in_bytes=1 << 27, cpuset_cpus="0-3")
    )
    assert ["memory.max", str(1 << 27)] in [list(each) for each in asked["limits"]]
    assert all(name != "cpuset.cpus" for name, _ in asked["limits"])


@pytest.mark.parametrize(
    ("mode", "kinds"),
    [(NamespaceMode.POD, ["ipc", "pid", "uts"]), (NamespaceMode.CONTAINER, ["ipc", "uts"])],
)
def test_a_pod_shares_what_it_asked_for(mode, kinds):
    assert launching.pod_kinds(mode) == kinds


def test_streams_are_named():
    assert launching.streams_of(Stdio(1, 2, 3)) == {"stdin": 1, "stdout": 2, "stderr": 3}
    assert launching.streams_of(Stdio(console=5)) == {"console": 5}
