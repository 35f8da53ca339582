"""E23: what was asked for and cannot be applied fails; it is never left out in silence."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.containment_parts import OWN_PIDS, security

from polypod.backend.cgroups import Cgroups, discover
from polypod.plugin.errors import Unsupported
from polypod.plugin.oci import Hook, Hooks, Namespace, OciIdMapping, OciMount, Seccomp, SeccompRule
from polypod.plugin.requests import (
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
from polypod.plugin.runtime import Feature
from polypod.spec.compile import Sources, compile_container

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay, pytest.mark.needs_busybox]

_SLEEP = "echo ready; exec sleep 100"


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
        _with_mount(OciMount("/x", "bind", "/proc/sys", ("rbind",), _MAPPING, _MAPPING)),
        _with_mount(OciMount("/x", "bind", "/etc", ("rbind",), _MAPPING)),
        _with_mount(OciMount("/x", "no-such-fs", "x")),
        _with_mount(OciMount("/x", "tmpfs", "tmpfs", ("no-such-option=1",))),
        _with_mount(OciMount("/x", "bind", "/no/such/place", ("rbind",))),
        _with_linux(sysctl={"net.ipv4.no_such_thing": "1"}),
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
        "a file system that cannot be mapped",
        "users mapped, groups not",
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


async def test_e23_user_namespace_that_the_host_cannot_have(bench):
    bench.backend.users_problem = "of this test"
    assert Feature.USER_NAMESPACES not in bench.backend.features
    offered = replace(bench.handler.type, features=bench.backend.features)
    bench.handler = replace(bench.handler, type=offered)
    mapping = (IdMapping(100000, 0, 65536),)
    userns = UserNamespace(NamespaceMode.POD, mapping, mapping)
    with pytest.raises(Unsupported, match="user namespace"):
        await bench.pod(replace(OWN_PIDS, userns=userns))


async def test_e23_hooks_of_an_adjusted_config(pod):
    hooks = Hooks(prestart=(Hook("/bin/true"),))
    result = await pod.run("echo ran", adjust=lambda config: replace(config, hooks=hooks))
    assert result.kind == "Unsupported"


async def test_e23_failed_launch_leaves_no_process_and_no_exit(bench, pod):
    for adjust in (_with_linux(sysctl={"net.ipv4.no_such_thing": "1"}), _with_namespace("user")):
        await pod.run("echo ran", adjust=adjust)
    assert await bench.host.supervisor.processes() == []


async def test_unsupported_is_told_before_anything_is_made(pod):
    box = await pod.create("true")
    with pytest.raises(Unsupported):
        compile_container(_with_namespace("user")(box.config), Sources(root="fd:0"))
