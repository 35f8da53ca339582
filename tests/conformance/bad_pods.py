"""Bad requests about sandboxes."""

from __future__ import annotations

from conformance.bad_world import UNKNOWN, Row, pod_row

from polypod.client import pb
from polypod.plugin.runtime import Feature

_BIG = "x" * ((1 << 20) + 1)
_SYSCTLS = (Feature.SYSCTLS,)
_SC = "linux.security_context"
_NS = f"{_SC}.namespace_options"
_USERNS = pb.UserNamespace(mode=pb.POD)
_RANGE = pb.IDMapping(host_id=100_000, container_id=0, length=65_536)


def _profile(kind: int, reference: str = "") -> pb.SecurityProfile:
    return pb.SecurityProfile(profile_type=kind, localhost_ref=reference)


_LOCALHOST = pb.SecurityProfile.Localhost

RUN = [
    Row("run: nothing", "RunPodSandbox", lambda _w: pb.RunPodSandboxRequest(), "INVALID_ARGUMENT",
        ("config",)),
    Row("run: no metadata", "RunPodSandbox",
        lambda _w: pb.RunPodSandboxRequest(config=pb.PodSandboxConfig(hostname="a")),
        "INVALID_ARGUMENT", ("metadata",)),
    pod_row("no name", "metadata.name", "", "name"),
    pod_row("no uid", "metadata.uid", "", "uid"),
    pod_row("NUL in the name", "metadata.name", "a\0b", "metadata.name", "NUL"),
    pod_row("NUL in the uid", "metadata.uid", "a\0b", "metadata.uid", "NUL"),
    pod_row("NUL in the namespace", "metadata.namespace", "a\0b", "NUL"),
    pod_row("oversize name", "metadata.name", _BIG, "metadata.name"),
    pod_row("NUL in a label", "labels", {"a": "b\0"}, "labels", "NUL"),
    pod_row("NUL in an annotation's name", "annotations", {"a\0": "b"}, "annotations", "NUL"),
    pod_row("oversize annotation", "annotations", {"a": _BIG}, "annotations"),
    pod_row("relative log directory", "log_directory", "var/log", "log_directory", "absolute"),
    pod_row("hostname with a slash", "hostname", "a/b", "hostname"),
    pod_row("hostname with a line break", "hostname", "a\nb", "hostname"),
    pod_row("hostname of 65 letters", "hostname", "a" * 65, "hostname"),
    pod_row("name server that is none", "dns_config", pb.DNSConfig(servers=["ns.example"]),
            "servers"),
    pod_row("line smuggled into resolv.conf", "dns_config",
            pb.DNSConfig(searches=["a\nnameserver 1.2.3.4"]), "searches"),
    pod_row("option smuggled into resolv.conf", "dns_config",
            pb.DNSConfig(options=["ndots:1\nnameserver 1.2.3.4"]), "options"),
    pod_row("port above the last", "port_mappings",
            [pb.PortMapping(container_port=65536, host_port=1)], "container_port"),
    pod_row("negative host port", "port_mappings",
            [pb.PortMapping(container_port=1, host_port=-1)], "host_port"),
    pod_row("host port to nowhere", "port_mappings", [pb.PortMapping(host_port=80)],
            "container_port"),
    pod_row("unknown protocol", "port_mappings",
            [pb.PortMapping(protocol=9, container_port=1, host_port=1)], "protocol"),
    pod_row("host address that is none", "port_mappings",
            [pb.PortMapping(container_port=1, host_port=1, host_ip="here")], "host_ip"),
    pod_row("unknown network mode", f"{_NS}.network", 7, "network"),
    pod_row("network mode CONTAINER", f"{_NS}.network", pb.CONTAINER, "network"),
    pod_row("ipc mode TARGET", f"{_NS}.ipc", pb.TARGET, "ipc"),
    pod_row("pid mode TARGET without one", f"{_NS}.pid", pb.TARGET, "target_id"),
    pod_row("user namespace without ranges", f"{_NS}.userns_options", _USERNS, "uids"),
    pod_row("user namespace with an empty range", f"{_NS}.userns_options",
            pb.UserNamespace(mode=pb.POD, uids=[pb.IDMapping(length=0)], gids=[_RANGE]), "length"),
    pod_row("ranges for no user namespace", f"{_NS}.userns_options",
            pb.UserNamespace(mode=pb.NODE, uids=[_RANGE], gids=[_RANGE]), "NODE"),
    pod_row("user namespace mode CONTAINER", f"{_NS}.userns_options",
            pb.UserNamespace(mode=pb.CONTAINER), "mode"),
    pod_row("group without user", f"{_SC}.run_as_group", pb.Int64Value(value=1), "run_as_group"),
    pod_row("negative user", f"{_SC}.run_as_user", pb.Int64Value(value=-1), "run_as_user"),
    pod_row("user that means none", f"{_SC}.run_as_user", pb.Int64Value(value=(1 << 32) - 1),
            "run_as_user"),
    pod_row("negative group", f"{_SC}.supplemental_groups", [-5], "supplemental_groups"),
    pod_row("unknown groups policy", f"{_SC}.supplemental_groups_policy", 9,
            "supplemental_groups_policy"),
    pod_row("seccomp profile without a name", f"{_SC}.seccomp", _profile(_LOCALHOST), "localhost_ref"),
    pod_row("unknown kind of profile", f"{_SC}.seccomp", _profile(9), "profile_type"),
    pod_row("old seccomp form", f"{_SC}.seccomp_profile_path", "some/thing", "seccomp"),
    pod_row("AppArmor profile", f"{_SC}.apparmor", _profile(_LOCALHOST, "some"), "AppArmor",
            code="FAILED_PRECONDITION", lacks=(Feature.APPARMOR,)),
    pod_row("SELinux options", f"{_SC}.selinux_options", pb.SELinuxOption(level="s0"), "SELinux",
            code="FAILED_PRECONDITION", lacks=(Feature.SELINUX,)),
    pod_row("parameter of the host", "linux.sysctls", {"kernel.panic": "1"}, "kernel.panic",
            needs=_SYSCTLS),
    pod_row("parameter that climbs", "linux.sysctls", {"net.../../kernel/panic": "1"}, "sysctls",
            needs=_SYSCTLS),
    pod_row("parameter with a line break", "linux.sysctls", {"net.core.somaxconn": "1\n2"},
            "somaxconn", needs=_SYSCTLS),
    pod_row("parameter given twice", "linux.sysctls",
            {"net.core.somaxconn": "1", "net/core/somaxconn": "2"}, "twice",
            needs=_SYSCTLS),
    pod_row("relative cgroup parent", "linux.cgroup_parent", "kubepods/pod1", "cgroup_parent"),
    pod_row("cgroup parent that climbs", "linux.cgroup_parent", "/a/../../b", "cgroup_parent"),
    pod_row("cgroup parent with a line break", "linux.cgroup_parent", "/a\nb", "cgroup_parent"),
    pod_row("negative period", "linux.resources", pb.LinuxContainerResources(cpu_period=-1),
            "cpu_period"),
    pod_row("negative overhead", "linux.overhead", pb.LinuxContainerResources(cpu_shares=-1),
            "cpu_shares"),
    Row("run: unknown handler", "RunPodSandbox",
        lambda w: pb.RunPodSandboxRequest(config=w.pod().config, runtime_handler="no-such-one"),
        "NOT_FOUND", ("no-such-one",)),
    Row("run: handler with NUL", "RunPodSandbox",
        lambda w: pb.RunPodSandboxRequest(config=w.pod().config, runtime_handler="a\0"),
        "INVALID_ARGUMENT", ("runtime_handler",)),
    Row("run: name of a stopped sandbox", "RunPodSandbox",
        lambda w: pb.RunPodSandboxRequest(config=w.stopped_config), "ALREADY_EXISTS",
        ("attempt",)),
    Row("run: name of a ready sandbox, other content", "RunPodSandbox",
        lambda w: pb.RunPodSandboxRequest(config=_other_content(w)), "ALREADY_EXISTS", ("ready",)),
    *(
        pod_row(f"{what} where it is not offered", path, value, handler_word,
                code="FAILED_PRECONDITION", lacks=(feature,))
        for what, path, value, handler_word, feature in (
            ("hostUsers: false", f"{_NS}.userns_options",
             pb.UserNamespace(mode=pb.POD, uids=[_RANGE], gids=[_RANGE]), "hostUsers",
             Feature.USER_NAMESPACES),
            ("host network", f"{_NS}.network", pb.NODE, "network", Feature.HOST_NETWORK),
            ("host processes", f"{_NS}.pid", pb.NODE, "processes", Feature.HOST_PID),
            ("host ipc", f"{_NS}.ipc", pb.NODE, "ipc", Feature.HOST_IPC),
            ("privileged", f"{_SC}.privileged", True, "privileged", Feature.PRIVILEGED),
            ("sysctls", "linux.sysctls", {"net.core.somaxconn": "1"}, "sysctls", Feature.SYSCTLS),
        )
    ),
]  # fmt: skip


def _other_content(world) -> pb.PodSandboxConfig:
    config = pb.PodSandboxConfig()
    config.CopyFrom(world.pod_config)
    config.labels["another"] = "one"
    return config


_POD_CALLS = (
    "StopPodSandbox",
    "RemovePodSandbox",
    "PodSandboxStatus",
    "PortForward",
    "PodSandboxStats",
    "CheckpointPod",
)

IDS = [
    Row(f"{call}: {what}", call, lambda _w, call=call, value=value: _named(call, value),
        "INVALID_ARGUMENT", ("pod_sandbox_id",))
    for call in _POD_CALLS
    for what, value in (("no id", ""), ("id of 300 letters", "a" * 300))
]  # fmt: skip

LISTS = [
    Row("status: unknown id", "PodSandboxStatus", lambda _w: _named("PodSandboxStatus", UNKNOWN),
        "NOT_FOUND", (UNKNOWN,)),
    Row("forward: unknown id", "PortForward", lambda _w: _named("PortForward", UNKNOWN),
        "NOT_FOUND", (UNKNOWN,)),
    Row("forward: stopped pod", "PortForward", lambda w: _named("PortForward", w.stopped),
        "FAILED_PRECONDITION", ("ready",)),
    *(
        Row(f"forward: port {port}", "PortForward",
            lambda w, port=port: pb.PortForwardRequest(pod_sandbox_id=w.ready, port=[80, port]),
            "INVALID_ARGUMENT", ("port[1]",))
        for port in (-1, 0, 65536)
    ),
    Row("forward: too many ports", "PortForward",
        lambda w: pb.PortForwardRequest(pod_sandbox_id=w.ready, port=[80] * 100_000),
        "INVALID_ARGUMENT", ("port",)),
    Row("list: unknown state", "ListPodSandbox",
        lambda _w: pb.ListPodSandboxRequest(
            filter=pb.PodSandboxFilter(state=pb.PodSandboxStateValue(state=9))),
        "INVALID_ARGUMENT", ("filter.state",)),
    Row("stream: unknown state", "StreamPodSandboxes",
        lambda _w: pb.StreamPodSandboxesRequest(
            filter=pb.PodSandboxFilter(state=pb.PodSandboxStateValue(state=9))),
        "INVALID_ARGUMENT", ("filter.state",)),
    Row("stream: unknown state of containers", "StreamContainers",
        lambda _w: pb.StreamContainersRequest(
            filter=pb.ContainerFilter(state=pb.ContainerStateValue(state=9))),
        "INVALID_ARGUMENT", ("filter.state",)),
    Row("stats: unknown id", "PodSandboxStats", lambda _w: _named("PodSandboxStats", UNKNOWN),
        "NOT_FOUND", (UNKNOWN,)),
    Row("checkpoint: unknown pod", "CheckpointPod", lambda _w: _named("CheckpointPod", UNKNOWN),
        "NOT_FOUND", (UNKNOWN,)),
    Row("checkpoint: unknown option", "CheckpointPod",
        lambda w: pb.CheckpointPodRequest(
            pod_sandbox_id=w.ready, output_path="/nowhere", options={"faster": "yes"}),
        "INVALID_ARGUMENT", ("faster",)),
    Row("checkpoint: no container", "CheckpointContainer",
        lambda _w: pb.CheckpointContainerRequest(location="/nowhere/c.tar"), "INVALID_ARGUMENT",
        ("container_id",)),
    Row("checkpoint: unknown container", "CheckpointContainer",
        lambda _w: pb.CheckpointContainerRequest(container_id=UNKNOWN, location="/nowhere/c.tar"),
        "NOT_FOUND", (UNKNOWN,)),
    Row("checkpoint: no place", "CheckpointContainer",
        lambda w: pb.CheckpointContainerRequest(container_id=w.running), "INVALID_ARGUMENT",
        ("location",)),
    Row("checkpoint: negative time-out", "CheckpointContainer",
        lambda w: pb.CheckpointContainerRequest(
            container_id=w.running, location="/nowhere/c.tar", timeout=-1),
        "INVALID_ARGUMENT", ("timeout",)),
    Row("restore: nothing", "RestorePod", lambda _w: pb.RestorePodRequest(), "INVALID_ARGUMENT",
        ("config",)),
    Row("restore: no checkpoint", "RestorePod",
        lambda w: pb.RestorePodRequest(config=w.pod().config), "INVALID_ARGUMENT",
        ("checkpoint_path",)),
    Row("restore: unknown option", "RestorePod",
        lambda w: pb.RestorePodRequest(
            config=w.pod().config, checkpoint_path="/nowhere", options={"faster": "yes"}),
        "INVALID_ARGUMENT", ("faster",)),
    Row("resize: nothing", "UpdatePodSandboxResources",
        lambda _w: pb.UpdatePodSandboxResourcesRequest(), "INVALID_ARGUMENT", ("pod_sandbox_id",)),
    Row("resize: to nothing", "UpdatePodSandboxResources",
        lambda w: pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=w.ready), "INVALID_ARGUMENT",
        ("resources",)),
    Row("resize: negative shares", "UpdatePodSandboxResources",
        lambda w: pb.UpdatePodSandboxResourcesRequest(
            pod_sandbox_id=w.ready, overhead=pb.LinuxContainerResources(cpu_shares=-1)),
        "INVALID_ARGUMENT", ("overhead.cpu_shares",)),
    Row("resize: unknown", "UpdatePodSandboxResources",
        lambda _w: pb.UpdatePodSandboxResourcesRequest(
            pod_sandbox_id=UNKNOWN, resources=pb.LinuxContainerResources(cpu_shares=5)),
        "NOT_FOUND", (UNKNOWN,)),
    Row("resize: stopped", "UpdatePodSandboxResources",
        lambda w: pb.UpdatePodSandboxResourcesRequest(
            pod_sandbox_id=w.stopped, resources=pb.LinuxContainerResources(cpu_shares=5)),
        "FAILED_PRECONDITION", ("not ready",)),
    Row("config: ranges that are none", "UpdateRuntimeConfig",
        lambda _w: pb.UpdateRuntimeConfigRequest(runtime_config=pb.RuntimeConfig(
            network_config=pb.NetworkConfig(pod_cidr="10.0.0.0/8,nonsense"))),
        "INVALID_ARGUMENT", ("nonsense",)),
]  # fmt: skip


def _named(call: str, value: str):
    more = {"output_path": "/nowhere"} if call == "CheckpointPod" else {}
    return getattr(pb, f"{call}Request")(pod_sandbox_id=value, **more)


ROWS = [*RUN, *IDS, *LISTS]
