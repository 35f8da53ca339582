"""What plugins make of a container: every field, removal, and two plugins at one field."""

from __future__ import annotations

from dataclasses import replace

import pytest
from google.protobuf import text_format

from polypod.plugin import FailedPrecondition, OciConfig, Process
from polypod.plugin.oci import (
    CpuLimits,
    DeviceRule,
    Hook,
    Hooks,
    Linux,
    MemoryLimits,
    Namespace,
    OciDevice,
    OciHugepageLimit,
    OciMount,
    OciResources,
    Rlimit,
    Seccomp,
    SeccompArg,
    SeccompRule,
)
from polypod_nri.adjusting import Adjusted
from polypod_nri.wire import api

CONFIG = OciConfig(
    Process(args=("/bin/sh",), env=("PATH=/bin", "KEEP=1"), rlimits=(Rlimit("RLIMIT_CORE", 1, 2),)),
    mounts=(OciMount("/proc", "proc", "proc"), OciMount("/data", "bind", "/srv", ("rbind",))),
    linux=Linux(
        namespaces=(Namespace("pid"), Namespace("ipc", "/x")),
        devices=(OciDevice("/dev/fuse", "c", 10, 229),),
        resources=OciResources(memory=MemoryLimits(limit=100), unified={"memory.high": "5"}),
        sysctl={"net.ipv4.ip_forward": "0"},
    ),
    annotations={"old": "1"},
)


def wanted(text):
    return text_format.Parse(text, api.ContainerAdjustment())


def adjusted(*texts, config=CONFIG):
    made = Adjusted(config)
    for number, text in enumerate(texts):
        made.apply(wanted(text), f"0{number}-p{number}")
    return made.config


def test_nothing_wanted_changes_nothing():
    assert adjusted("") == CONFIG


def test_annotations():
    text = 'annotations { key: "new" value: "2" } annotations { key: "-old" value: "" }'
    assert adjusted(text).annotations == {"new": "2"}


def test_mounts_are_added_replaced_and_removed():
    text = """
        mounts { destination: "-/proc" }
        mounts { destination: "/data" source: "/other" options: "ro" }
        mounts { destination: "/new" type: "tmpfs" source: "tmpfs" options: ["nosuid", "size=1m"] }
    """
    assert adjusted(text).mounts == (
        OciMount("/data", "bind", "/other", ("ro",)),
        OciMount("/new", "tmpfs", "tmpfs", ("nosuid", "size=1m")),
    )


def test_environment():
    text = (
        'env { key: "-KEEP" } env { key: "PATH" value: "/usr/bin" } env { key: "N" value: "a=b" }'
    )
    assert adjusted(text).process.env == ("PATH=/usr/bin", "N=a=b")


def test_arguments():
    assert adjusted('args: ["/bin/true", "x"]').process.args == ("/bin/true", "x")


def test_oci_hooks_of_several_plugins_are_all_kept():
    found = adjusted(
        'hooks { prestart { path: "/a" args: ["a", "b"] env: "X=1" timeout { value: 5 } } }',
        'hooks { prestart { path: "/b" } poststop { path: "/c" } }',
    ).hooks
    assert found == Hooks(
        prestart=(Hook("/a", ("a", "b"), ("X=1",), 5), Hook("/b")), poststop=(Hook("/c"),)
    )


def test_rlimits():
    text = 'rlimits { type: "RLIMIT_NOFILE" hard: 9 soft: 8 } rlimits { type: "RLIMIT_CORE" }'
    assert adjusted(text).process.rlimits == (
        Rlimit("RLIMIT_CORE", 0, 0),
        Rlimit("RLIMIT_NOFILE", 8, 9),
    )


def test_a_device_may_be_used_too():
    text = """linux { devices {
        path: "/dev/x" type: "b" major: 7 minor: 1 file_mode { value: 384 } uid { value: 5 } gid { value: 6 }
    } devices { path: "-/dev/fuse" } }"""
    linux = adjusted(text).linux
    assert linux.devices == (OciDevice("/dev/x", "b", 7, 1, 0o600, 5, 6),)
    assert linux.resources.devices == (DeviceRule(True, "b", 7, 1, "rwm"),)


def test_a_removed_device_may_not_be_used_any_more():
    rules = (
        DeviceRule(False),
        DeviceRule(True, "c", 10, 229),
        DeviceRule(True, "c", 1, 3),
        DeviceRule(False, "c", 10, 229),
    )
    resources = replace(CONFIG.linux.resources, devices=rules)
    config = replace(CONFIG, linux=replace(CONFIG.linux, resources=resources))
    linux = adjusted('linux { devices { path: "-/dev/fuse" } }', config=config).linux
    assert linux.devices == ()
    assert linux.resources.devices == (rules[0], rules[2], rules[3])


def test_namespaces():
    text = 'linux { namespaces { type: "ipc" path: "/y" } namespaces { type: "-pid" } }'
    assert adjusted(text).linux.namespaces == (Namespace("ipc", "/y"),)


def test_sysctls():
    text = """linux { sysctl { key: "-net.ipv4.ip_forward" value: "" }
              sysctl { key: "kernel.msgmax" value: "1" } }"""
    assert adjusted(text).linux.sysctl == {"kernel.msgmax": "1"}


def test_limits():
    text = """linux { resources {
        memory { limit { value: 1 } reservation { value: 2 } swap { value: 3 } swappiness { value: 4 }
                 disable_oom_killer { value: true } }
        cpu { shares { value: 5 } quota { value: 6 } period { value: 7 } cpus: "0-1" mems: "0" }
        pids { limit: 8 }
        hugepage_limits { page_size: "2MB" limit: 9 }
        unified { key: "memory.low" value: "10" }
    } }"""
    assert adjusted(text).linux.resources == OciResources(
        memory=MemoryLimits(1, 2, 3, 4, disable_oom_killer=True),
        cpu=CpuLimits(5, 6, 7, "0-1", "0"),
        pids_limit=8,
        hugepage_limits=(OciHugepageLimit("2MB", 9),),
        unified={"memory.high": "5", "memory.low": "10"},
    )


def test_score_of_the_oom_killer():
    assert adjusted("linux { oom_score_adj { value: -7 } }").process.oom_score_adj == -7


def test_seccomp():
    text = """linux { seccomp_policy {
        default_action: "SCMP_ACT_ERRNO" default_errno { value: 38 } architectures: "SCMP_ARCH_X86_64"
        flags: "SECCOMP_FILTER_FLAG_LOG"
        syscalls { names: ["read", "write"] action: "SCMP_ACT_ALLOW" errno_ret { value: 1 }
                   args { index: 1 value: 2 value_two: 3 op: "SCMP_CMP_EQ" } }
    } }"""
    rule = SeccompRule(
        ("read", "write"), "SCMP_ACT_ALLOW", 1, (SeccompArg(1, 2, "SCMP_CMP_EQ", 3),)
    )
    assert adjusted(text).linux.seccomp == Seccomp(
        "SCMP_ACT_ERRNO", 38, ("SCMP_ARCH_X86_64",), ("SECCOMP_FILTER_FLAG_LOG",), (rule,)
    )


def test_cdi_devices_are_core_s_to_add():
    made = Adjusted(CONFIG)
    made.apply(wanted('CDI_devices { name: "a/b=c" }'), "00-p0")
    assert made.take_cdi_devices() == ["a/b=c"]
    assert made.take_cdi_devices() == []


CONFLICTS = {
    "cdi": ('CDI_devices { name: "a/b=c" }', "CdiDevices 'a/b=c'"),
    "annotation": ('annotations { key: "a" value: "1" }', "Annotations 'a'"),
    "mount": ('mounts { destination: "/new" source: "/x" }', "Mounts '/new'"),
    "env": ('env { key: "A" value: "1" }', "Env 'A'"),
    "args": ('args: "/bin/true"', "Args"),
    "rlimit": ('rlimits { type: "RLIMIT_NOFILE" }', "Rlimits 'RLIMIT_NOFILE'"),
    "device": ('linux { devices { path: "/dev/x" type: "c" } }', "Devices '/dev/x'"),
    "namespace": ('linux { namespaces { type: "uts" } }', "Namespace 'uts'"),
    "sysctl": ('linux { sysctl { key: "kernel.msgmax" value: "1" } }', "Sysctl 'kernel.msgmax'"),
    "memory": ("linux { resources { memory { limit { value: 1 } } } }", "MemLimit"),
    "cpus": ('linux { resources { cpu { cpus: "1" } } }', "CPUSetCPUs"),
    "pids": ("linux { resources { pids { limit: 1 } } }", "PidsLimit"),
    "pages": (
        'linux { resources { hugepage_limits { page_size: "2MB" limit: 1 } } }',
        "HugepageLimits '2MB'",
    ),
    "unified": (
        'linux { resources { unified { key: "memory.low" value: "1" } } }',
        "CgroupsUnified 'memory.low'",
    ),
    "oom": ("linux { oom_score_adj { value: 1 } }", "OomScoreAdj"),
    "seccomp": ('linux { seccomp_policy { default_action: "SCMP_ACT_ALLOW" } }', "SeccompPolicy"),
}


@pytest.mark.parametrize(("text", "what"), CONFLICTS.values(), ids=CONFLICTS)
def test_two_plugins_that_set_one_field_are_both_named(text, what):
    with pytest.raises(FailedPrecondition) as caught:
        adjusted(text, text)
    assert str(caught.value) == f"NRI plugins 00-p0 and 01-p1 both set {what}"


@pytest.mark.parametrize(("text", "what"), CONFLICTS.values(), ids=CONFLICTS)
def test_one_plugin_may_say_a_thing_twice(text, what):
    made = Adjusted(CONFIG)
    made.apply(wanted(text), "00-p0")
    made.apply(wanted(text), "00-p0")
    assert made.owners.message("id").owners["id"] != api.FieldOwners(), what


REPLACED = {
    "annotation": 'annotations { key: "-a" value: "" } annotations { key: "a" value: "2" }',
    "mount": 'mounts { destination: "-/new" } mounts { destination: "/new" source: "/z" }',
    "env": 'env { key: "-A" } env { key: "A" value: "2" }',
    "args": 'args: ["", "/bin/false"]',
    "device": 'linux { devices { path: "-/dev/x" } devices { path: "/dev/x" type: "b" } }',
    "namespace": 'linux { namespaces { type: "-uts" } namespaces { type: "uts" path: "/z" } }',
    "sysctl": """linux { sysctl { key: "-kernel.msgmax" value: "" }
                 sysctl { key: "kernel.msgmax" value: "2" } }""",
}


@pytest.mark.parametrize("name", REPLACED)
def test_removal_and_a_new_value_replace_what_another_plugin_set(name):
    replaced = adjusted(CONFLICTS[name][0], REPLACED[name])
    assert replaced == adjusted(REPLACED[name])
    assert replaced != adjusted(CONFLICTS[name][0])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("linux { io_priority { } }", "an io priority"),
        ("linux { scheduler { } }", "a scheduler"),
        ("linux { rdt { } }", "cache allocation"),
        ("linux { memory_policy { } }", "a memory policy"),
        ('linux { cgroups_path: "/x" }', "another cgroup path"),
        ('linux { net_devices { key: "eth1" value { name: "e" } } }', "network devices"),
        ('linux { seccomp_policy { listener_path: "/x" } }', "a seccomp listener"),
        ("linux { resources { memory { kernel { value: 1 } } } }", "MemKernelLimit"),
        ("linux { resources { cpu { realtime_period { value: 1 } } } }", "CPURealtimePeriod"),
        ('linux { resources { rdt_class { value: "x" } } }', "RdtClass"),
        ("linux { resources { devices { allow: true } } }", "rules of the device controller"),
    ],
)
def test_what_cannot_be_set_is_refused_and_not_ignored(text, what):
    with pytest.raises(FailedPrecondition, match=f"NRI plugin 00-p0: it asks for {what}"):
        adjusted(text)


@pytest.mark.parametrize(
    "text",
    [
        'mounts { destination: "relative" }',
        'env { key: "A=B" value: "1" }',
        'env { value: "1" }',
        'args: ""',
    ],
)
def test_what_makes_no_sense_names_the_plugin(text):
    with pytest.raises(FailedPrecondition, match="NRI plugin 00-p0: "):
        adjusted(text)


def test_owners_are_told_by_field_and_key():
    made = Adjusted(CONFIG)
    made.apply(wanted('env { key: "A" value: "1" } linux { oom_score_adj { value: 1 } }'), "00-a")
    made.apply(wanted('env { key: "B" value: "1" } hooks { poststop { path: "/x" } }'), "01-b")
    made.apply(wanted('hooks { poststop { path: "/y" } }'), "02-c")
    owners = made.owners.message("id").owners["id"]
    assert dict(owners.compound[api.Env].owners) == {"A": "00-a", "B": "01-b"}
    assert dict(owners.simple) == {api.OomScoreAdj: "00-a", api.OciHooks: "01-b,02-c"}
