"""OCI config → launch plan: the order of operations is the security."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polypod.plan.operations import Plan
from polypod.plugin.errors import InvalidArgument, Unsupported
from polypod.plugin.oci import (
    CapabilitySets,
    Linux,
    Namespace,
    OciConfig,
    OciDevice,
    OciIdMapping,
    OciMount,
    Process,
    Rlimit,
    Seccomp,
    User,
)
from polypod.spec.compile import (
    CgroupView,
    ExecSources,
    MountSource,
    Sources,
    Streams,
    bound_nodes,
    compile_container,
    compile_exec,
)

NAMESPACES = (
    Namespace("mount"),
    Namespace("network", "sandbox:network"),
    Namespace("uts", "sandbox:uts"),
    Namespace("ipc", "sandbox:ipc"),
    Namespace("pid", "sandbox:pid"),
    Namespace("cgroup"),
)
SECCOMP = Seccomp("SCMP_ACT_ALLOW")
CONFIG = OciConfig(
    Process(
        ("/bin/true",),
        ("PATH=/bin",),
        cwd="/srv",
        user=User(1000, 1000, additional_gids=(1000, 5)),
        capabilities=CapabilitySets(bounding=("CAP_CHOWN",), permitted=("CAP_CHOWN",)),
        no_new_privileges=True,
        rlimits=(Rlimit("RLIMIT_NOFILE", 10, 2**64 - 1),),
        oom_score_adj=10,
    ),
    root_readonly=True,
    mounts=(
        OciMount("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
        OciMount("/dev", "tmpfs", "tmpfs", ("nosuid", "ro", "size=65536k")),
        OciMount("/sys/fs/cgroup", "cgroup", "cgroup", ("ro",)),
        OciMount("/data", "bind", "/srv/data", ("rbind", "ro")),
    ),
    linux=Linux(
        namespaces=NAMESPACES,
        seccomp=SECCOMP,
        masked_paths=("/proc/kcore",),
        readonly_paths=("/proc/sys",),
        rootfs_propagation="rslave",
    ),
)
SOURCES = Sources(
    root="fd:0",
    streams=Streams("fd:1", "fd:2", "fd:3"),
    cgroups=("fd:4",),
    namespaces={
        f"sandbox:{kind}": f"fd:{n}" for n, kind in enumerate(("network", "uts", "ipc", "pid"), 5)
    },
    mounts={"/data": MountSource("fd:9", is_directory=True)},
    cgroup_view=CgroupView(1, (("cpu,cpuacct", ("cpu", "cpuacct"), ("cpu", "cpuacct")),)),
)


def names(plan: Plan) -> list[str]:
    return [operation.name for operation in plan.operations]


def one(plan: Plan, name: str):
    (found,) = [each for each in plan.operations if each.name == name]
    return found


def test_order_of_a_whole_container():
    assert names(compile_container(CONFIG, SOURCES)) == [
        "join-cgroups",
        "set-oom-score",
        "join-namespaces",
        "unshare",
        "attach-root",
        "mount",
        "mount",
        *["make-device"] * 6,
        *["make-link"] * 6,
        "mount-cgroups",
        "attach-mount",
        "make-directory",
        "start-session",
        "use-stdio",
        "read-only-paths",
        "mask-paths",
        "change-root",
        "read-only-mounts",
        "set-propagation",
        "set-limits",
        "close-descriptors",
        "set-user",
        "change-directory",
        "set-capabilities",
        "set-no-new-privileges",
        "load-seccomp",
        "execute",
    ]


def test_e2_descriptors_are_closed_before_the_working_directory_is_entered():
    order = names(compile_container(CONFIG, SOURCES))
    assert order.index("close-descriptors") < order.index("change-directory")
    assert not {"use-stdio", "attach-mount"} & set(order[order.index("close-descriptors") :])


def test_e24_seccomp_is_last_before_execve():
    for plan in (
        compile_container(CONFIG, SOURCES),
        compile_exec(CONFIG.process, SECCOMP, ExecSources("fd:0", ("mount", "pid"))),
    ):
        assert names(plan)[-2:] == ["load-seccomp", "execute"]


def test_the_plan_survives_the_wire():
    plan = compile_container(CONFIG, SOURCES)
    assert Plan.from_wire(plan.to_wire()) == plan


def test_a_new_namespace_is_a_clone_flag_and_a_held_one_is_joined():
    plan = compile_container(CONFIG, SOURCES)
    assert plan.clone_flags == 0x20000
    assert plan.pid_namespace == "fd:8"
    assert one(plan, "join-namespaces").items == [
        ["network", "fd:5"],
        ["uts", "fd:6"],
        ["ipc", "fd:7"],
    ]
    own = replace(
        CONFIG, linux=replace(CONFIG.linux, namespaces=(Namespace("mount"), Namespace("pid")))
    )
    assert compile_container(own, SOURCES).clone_flags == 0x20000 | 0x20000000


def test_cgroups_are_shown_as_the_host_has_them():
    assert one(compile_container(CONFIG, SOURCES), "mount-cgroups").hierarchies == [
        ["cpu,cpuacct", ["cpu", "cpuacct"], ["cpu", "cpuacct"]]
    ]
    unified = compile_container(CONFIG, replace(SOURCES, cgroup_view=CgroupView(2)))
    assert "cgroup2" in [each.fstype for each in unified.operations if each.name == "mount"]


def test_a_read_only_dev_is_closed_after_it_was_filled():
    plan = compile_container(CONFIG, SOURCES)
    (dev,) = [each for each in plan.operations if each.name == "mount" and each.target == "/dev"]
    assert dev.attributes & 1 == 0
    assert one(plan, "read-only-mounts").paths == ["/dev", "/"]


def test_capabilities_are_masks():
    found = one(compile_container(CONFIG, SOURCES), "set-capabilities")
    assert (found.bounding, found.permitted, found.effective) == (1, 1, 0)


def test_no_limit_is_the_kernels_largest_number():
    assert one(compile_container(CONFIG, SOURCES), "set-limits").limits == [[7, 10, -1]]


def test_a_terminal_replaces_the_streams():
    process = replace(CONFIG.process, terminal=True, console_size=(25, 80))
    plan = compile_container(
        replace(CONFIG, process=process), replace(SOURCES, streams=Streams(console="fd:1"))
    )
    terminal = one(plan, "open-terminal")
    assert (terminal.console, terminal.width, terminal.height) == ("fd:1", 80, 25)
    assert terminal.bind_console
    assert "use-stdio" not in names(plan)


def test_an_exec_joins_what_the_container_does_not_share():
    sources = ExecSources("fd:0", ("mount", "pid", "network"), cgroups=("fd:1",))
    plan = compile_exec(CONFIG.process, None, sources)
    assert plan.pid_namespace == "fd:0"
    assert one(plan, "join-namespaces").kinds == ["network", "mount"]
    assert names(plan)[0] == "join-cgroups"


IDS = (OciIdMapping(0, 100_000, 65_536),)
IN_USERS = replace(
    CONFIG,
    linux=replace(
        CONFIG.linux,
        namespaces=(
            *(item for item in NAMESPACES if item.type != "pid"),
            Namespace("pid"),
            Namespace("user", "sandbox:user"),
        ),
        uid_mappings=IDS,
        gid_mappings=IDS,
        devices=(OciDevice("/dev/x", "c", 1, 1), OciDevice("/y", "c", 1, 1)),
    ),
)
USER_SOURCES = replace(
    SOURCES,
    namespaces={**SOURCES.namespaces, "sandbox:user": "fd:10"},
    dev="fd:11",
    nodes={"/y": "fd:12"},
)


def test_order_of_a_container_in_a_user_namespace():
    plan = compile_container(IN_USERS, USER_SOURCES)
    assert names(plan)[:10] == [
        "join-cgroups",
        "set-oom-score",
        "enter-user-namespace",
        "join-namespaces",
        "unshare",
        "attach-root",
        "mount",
        "attach-mount",
        *["make-link"] * 2,
    ]
    # The first process has a mount namespace of the host's alone, the others belong to the user namespace.
    assert plan.clone_flags == 0x20000
    assert one(plan, "enter-user-namespace").kinds == ["mount", "pid"]
    assert plan.is_born_midway
    assert "make-device" not in names(plan)
    attached = {each.target: each.source for each in plan.operations if each.name == "attach-mount"}
    assert attached == {"/dev": "fd:11", "/data": "fd:9", "/y": "fd:12"}
    assert one(plan, "use-stdio").uid == -1


def test_a_container_that_joins_the_pods_processes_is_born_at_once():
    linux = replace(IN_USERS.linux, namespaces=(*NAMESPACES, Namespace("user", "sandbox:user")))
    plan = compile_container(replace(IN_USERS, linux=linux), USER_SOURCES)
    assert not plan.is_born_midway
    assert not plan.may_be_born_last(can_show_others=True)
    assert plan.pid_namespace == "fd:8"


def test_who_joins_others_is_born_last_where_its_proc_can_show_them():
    plan = compile_container(
        replace(CONFIG, linux=replace(CONFIG.linux, namespaces=NAMESPACES)), SOURCES
    )
    assert plan.pid_namespace
    assert plan.may_be_born_last(can_show_others=True)
    assert not plan.may_be_born_last(can_show_others=False)
    extra = compile_exec(CONFIG.process, None, ExecSources("fd:0", ("mount", "pid")))
    assert extra.may_be_born_last(can_show_others=False)
    alone = compile_exec(CONFIG.process, None, ExecSources("fd:0", ("mount",)))
    assert not alone.may_be_born_last(can_show_others=True)
    unseen = compile_exec(
        CONFIG.process, None, ExecSources("fd:0", ("mount", "pid"), watched=False)
    )
    assert not unseen.may_be_born_last(can_show_others=True)
    assert not Plan.from_wire(unseen.to_wire()).watched


def test_without_a_dev_of_its_own_every_node_is_bound():
    assert bound_nodes(IN_USERS) == (True, IN_USERS.linux.devices[1:])
    plain = replace(IN_USERS, mounts=())
    ready, nodes = bound_nodes(plain)
    assert not ready
    assert {each.path for each in nodes} == {
        *(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "x")),
        "/y",
    }
    bound = replace(IN_USERS, mounts=(OciMount("/dev", "bind", "/dev", ("rbind",)),))
    assert bound_nodes(bound) == (False, IN_USERS.linux.devices[1:])


def test_an_exec_joins_the_user_namespace():
    sources = ExecSources("fd:0", ("mount", "user", "pid"))
    plan = compile_exec(CONFIG.process, None, sources)
    assert one(plan, "join-namespaces").kinds == ["user", "mount"]
    assert one(plan, "use-stdio").uid == -1


@pytest.mark.parametrize("missing", [{"uid_mappings": ()}, {"gid_mappings": ()}])
def test_mappings_and_a_user_namespace_go_together(missing):
    with pytest.raises(Unsupported, match="gidMappings"):
        compile_container(replace(IN_USERS, linux=replace(IN_USERS.linux, **missing)), USER_SOURCES)
    with pytest.raises(Unsupported, match="gidMappings"):
        compile_container(
            replace(CONFIG, linux=replace(CONFIG.linux, **{next(iter(missing)): IDS})), SOURCES
        )


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (replace(CONFIG, process=replace(CONFIG.process, apparmor_profile="x")), "AppArmor"),
        (replace(CONFIG, process=replace(CONFIG.process, selinux_label="x")), "SELinux"),
        (
            replace(
                CONFIG,
                linux=replace(CONFIG.linux, namespaces=(*NAMESPACES, Namespace("user"))),
            ),
            "user",
        ),
    ],
)
def test_e23_what_cannot_be_applied_is_refused(config, word):
    with pytest.raises(Unsupported, match=word):
        compile_container(config, SOURCES)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (replace(CONFIG, process=replace(CONFIG.process, args=())), "args"),
        (replace(CONFIG, linux=replace(CONFIG.linux, namespaces=())), "mount namespace"),
        (
            replace(
                CONFIG,
                linux=replace(
                    CONFIG.linux, namespaces=(Namespace("mount"), Namespace("ipc", "/x"))
                ),
            ),
            "/x",
        ),
        (
            replace(CONFIG, process=replace(CONFIG.process, rlimits=(Rlimit("RLIMIT_X", 1, 1),))),
            "RLIMIT_X",
        ),
        (
            replace(CONFIG, process=replace(CONFIG.process, rlimits=(Rlimit("RLIMIT_CPU", 2, 1),))),
            "exceeds",
        ),
        (replace(CONFIG, mounts=(OciMount("/x", "bind", "/y", ("bind",)),)), "/y"),
        (replace(CONFIG, mounts=(OciMount("/../x", "tmpfs"),)), "climbs"),
        (replace(CONFIG, linux=replace(CONFIG.linux, rootfs_propagation="odd")), "odd"),
    ],
)
def test_bad_configs_name_the_place(config, word):
    with pytest.raises(InvalidArgument, match=word):
        compile_container(config, SOURCES)
