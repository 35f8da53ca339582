"""Bad requests about containers."""

from __future__ import annotations

from conformance.bad_world import UNKNOWN, Row, box_row

from polypod.client import pb
from polypod.plugin.runtime import Feature

_SC = "linux.security_context"
_R = "linux.resources"
_PATHS = (Feature.HOST_PATH_MOUNTS,)
_DEVICES = (Feature.DEVICES,)
_LIMITS = (Feature.RESOURCES,)


def _mount(**fields) -> list[pb.Mount]:
    return [pb.Mount(**{"host_path": "/tmp", "container_path": "/data", **fields})]


def _device(**fields) -> list[pb.Device]:
    return [pb.Device(**{"host_path": "/dev/null", "container_path": "/dev/x", **fields})]


def _localhost(reference: str) -> pb.SecurityProfile:
    return pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref=reference)


CREATE = [
    Row("create: nothing", "CreateContainer", lambda _w: pb.CreateContainerRequest(),
        "INVALID_ARGUMENT", ("pod_sandbox_id",)),
    Row("create: no config", "CreateContainer",
        lambda w: pb.CreateContainerRequest(pod_sandbox_id=w.ready), "INVALID_ARGUMENT", ("config",)),
    Row("create: unknown pod", "CreateContainer", lambda w: w.box(pod=UNKNOWN), "NOT_FOUND",
        (UNKNOWN,)),
    Row("create: stopped pod", "CreateContainer", lambda w: w.box(pod=w.stopped),
        "FAILED_PRECONDITION", ("not ready",)),
    Row("create: bad copy of the pod's config", "CreateContainer",
        lambda w: pb.CreateContainerRequest(pod_sandbox_id=w.ready, config=w.box().config,
                                            sandbox_config=pb.PodSandboxConfig()),
        "INVALID_ARGUMENT", ("sandbox_config.metadata",)),
    box_row("no name", "metadata.name", "", "metadata.name"),
    box_row("NUL in the name", "metadata.name", "a\0", "metadata.name", "NUL"),
    box_row("name taken by another content", "metadata.name", "created", "attempt",
            code="ALREADY_EXISTS"),
    box_row("no image", "image.image", "", "image"),
    box_row("unknown image", "image.image", "localhost/nothing:here", "nothing",
            code="NOT_FOUND"),
    box_row("malformed image", "image.image", "Not//A Reference", "reference"),
    box_row("oversize image", "image.image", "a" * ((1 << 20) + 1), "image"),
    box_row("NUL in the command", "command", ["sh", "a\0b"], "command", "NUL"),
    box_row("NUL in the arguments", "args", ["a\0b"], "args", "NUL"),
    box_row("empty program", "command", [""], "command"),
    box_row("variable without a name", "envs", [pb.KeyValue(key="", value=b"x")], "envs[0].key"),
    box_row("variable with = in its name", "envs", [pb.KeyValue(key="a=b", value=b"x")], "envs"),
    box_row("variable with NUL in its value", "envs", [pb.KeyValue(key="a", value=b"x\0")], "NUL"),
    box_row("working directory that climbs out", "working_dir", "/../../etc", "working_dir"),
    box_row("log outside", "log_path", "../../etc/passwd", "log_path"),
    box_row("absolute log", "log_path", "/etc/passwd", "log_path"),
    box_row("stdin once without stdin", "stdin_once", True, "stdin"),
    box_row("unknown stop signal", "stop_signal", 999, "stop_signal"),
    box_row("NUL in a label", "labels", {"a": "\0"}, "labels"),
    # Mounts
    box_row("mount to nowhere", "mounts", _mount(container_path=""), "container_path"),
    box_row("mount of nothing", "mounts", _mount(host_path=""), "host_path"),
    box_row("mount of a relative path", "mounts", _mount(host_path="tmp"), "host_path"),
    box_row("mount over the root", "mounts", _mount(container_path="/"), "root", needs=_PATHS),
    box_row("mount that climbs out", "mounts", _mount(container_path="/../../etc"), "climbs",
            needs=_PATHS),
    box_row("mount of what cannot be made", "mounts", _mount(host_path="/proc/no/such"),
            "/proc/no/such", needs=_PATHS),
    box_row("mount of image and path", "mounts", _mount(image=pb.ImageSpec(image="localhost/a")),
            "image"),
    box_row("mount with an unknown propagation", "mounts", _mount(propagation=7), "propagation"),
    box_row("mount recursively read-only, but writable", "mounts",
            _mount(recursive_read_only=True), "readonly"),
    box_row("mount recursively read-only, but shared", "mounts",
            _mount(recursive_read_only=True, readonly=True,
                   propagation=pb.PROPAGATION_HOST_TO_CONTAINER), "propagation"),
    box_row("mount shared back without privilege", "mounts",
            _mount(propagation=pb.PROPAGATION_BIDIRECTIONAL), "privileged",
            needs=(Feature.BIDIRECTIONAL_MOUNTS, *_PATHS)),
    box_row("mount with an unknown option", "mounts", _mount(mount_options=["suid"]), "suid",
            needs=_PATHS),
    box_row("mount with an empty range of ids", "mounts",
            _mount(uidMappings=[pb.IDMapping(length=0)]), "uidMappings"),
    box_row("image as a volume", "mounts",
            [pb.Mount(container_path="/data", image=pb.ImageSpec(image="localhost/a"))], "image",
            code="FAILED_PRECONDITION", lacks=(Feature.IMAGE_VOLUMES,)),
    box_row("image that is not here as a volume", "mounts",
            [pb.Mount(container_path="/data", image=pb.ImageSpec(image="localhost/a"))], "not here",
            code="NOT_FOUND", needs=(Feature.IMAGE_VOLUMES,)),
    # Devices
    box_row("device without a path", "devices", _device(host_path=""), "host_path"),
    box_row("relative device", "devices", _device(host_path="dev/null"), "host_path"),
    box_row("device with unknown permissions", "devices", _device(permissions="rx"),
            "permissions"),
    box_row("device that is not there", "devices", _device(host_path="/dev/no-such-device"),
            "no-such-device", needs=_DEVICES),
    box_row("device that is a file", "devices", _device(host_path="/etc/passwd"), "/etc/passwd",
            needs=_DEVICES),
    box_row("CDI device", "CDI_devices", [pb.CDIDevice(name="vendor.com/class=name")], "devices",
            code="FAILED_PRECONDITION", lacks=_DEVICES),
    box_row("CDI device that no file has", "CDI_devices", [pb.CDIDevice(name="vendor.com/class=name")],
            "no file", code="NOT_FOUND", needs=_DEVICES),
    box_row("CDI device without a name", "CDI_devices", [pb.CDIDevice()], "name"),
    # Limits
    box_row("negative period", f"{_R}.cpu_period", -1, "cpu_period"),
    box_row("negative shares", f"{_R}.cpu_shares", -1, "cpu_shares"),
    box_row("negative memory", f"{_R}.memory_limit_in_bytes", -5, "memory", needs=_LIMITS),
    box_row("swap below memory", _R,
            pb.LinuxContainerResources(memory_limit_in_bytes=2 << 20,
                                       memory_swap_limit_in_bytes=1 << 20), "swap", needs=_LIMITS),
    box_row("cpus that are none", f"{_R}.cpuset_cpus", "a-b", "cpuset", needs=_LIMITS),
    box_row("score beyond the last", f"{_R}.oom_score_adj", 1001, "oom_score_adj"),
    # Who it is and what it may
    box_row("user by number and name", _SC,
            pb.LinuxContainerSecurityContext(run_as_user=pb.Int64Value(value=1),
                                             run_as_username="root"), "run_as_username"),
    box_row("group without user", f"{_SC}.run_as_group", pb.Int64Value(value=1), "run_as_group"),
    box_row("negative user", f"{_SC}.run_as_user", pb.Int64Value(value=-1), "run_as_user"),
    box_row("name that the image does not know", f"{_SC}.run_as_username", "nobody-of-here",
            "nobody-of-here"),
    box_row("negative group", f"{_SC}.supplemental_groups", [-1], "supplemental_groups"),
    box_row("privileged in a pod that is not", f"{_SC}.privileged", True, "privileged",
            needs=(Feature.PRIVILEGED,)),
    box_row("seccomp profile without a name", f"{_SC}.seccomp", _localhost(""), "localhost_ref"),
    box_row("seccomp profile that is relative", f"{_SC}.seccomp", _localhost("a.json"),
            "absolute", needs=(Feature.SECCOMP,)),
    box_row("seccomp profile that climbs", f"{_SC}.seccomp", _localhost("/tmp/../etc/passwd"),
            "seccomp", needs=(Feature.SECCOMP,)),
    box_row("seccomp profile that is not there", f"{_SC}.seccomp", _localhost("/no/such.json"),
            "/no/such.json", needs=(Feature.SECCOMP,)),
    box_row("seccomp profile that is none", f"{_SC}.seccomp", _localhost("/etc/passwd"),
            "seccomp", needs=(Feature.SECCOMP,)),
    box_row("seccomp profile that never ends", f"{_SC}.seccomp", _localhost("/dev/zero"),
            "/dev/zero", needs=(Feature.SECCOMP,)),
    box_row("AppArmor profile", f"{_SC}.apparmor", _localhost("some"), "AppArmor",
            code="FAILED_PRECONDITION", lacks=(Feature.APPARMOR,)),
    box_row("SELinux options", f"{_SC}.selinux_options", pb.SELinuxOption(level="s0"), "SELinux",
            code="FAILED_PRECONDITION", lacks=(Feature.SELINUX,)),
    box_row("processes of nobody", f"{_SC}.namespace_options", pb.NamespaceOption(pid=pb.TARGET),
            "target_id"),
    box_row("processes of an unknown container", f"{_SC}.namespace_options",
            pb.NamespaceOption(pid=pb.TARGET, target_id=UNKNOWN), UNKNOWN, code="NOT_FOUND",
            needs=(Feature.TARGET_PID,)),
    Row("create: processes of another pod's container", "CreateContainer",
        lambda w: w.box(lambda c: c.linux.security_context.namespace_options.CopyFrom(
            pb.NamespaceOption(pid=pb.TARGET, target_id=w.elsewhere))),
        "INVALID_ARGUMENT", ("target_id",), needs=(Feature.TARGET_PID,)),
    box_row("network mode CONTAINER", f"{_SC}.namespace_options",
            pb.NamespaceOption(network=pb.CONTAINER), "network"),
]  # fmt: skip

_CALLS = (
    "StartContainer", "StopContainer", "RemoveContainer", "ContainerStatus", "ReopenContainerLog",
    "ContainerStats", "ExecSync",
)  # fmt: skip
_KNOWN_ONLY = (
    "StartContainer",
    "ContainerStatus",
    "ReopenContainerLog",
    "ContainerStats",
    "ExecSync",
)


def _named(call: str, value: str, **fields):
    if call in {"ExecSync", "Exec"}:
        fields.setdefault("cmd", ["true"])
    if call in {"Exec", "Attach"}:
        fields.setdefault("stdout", True)
    return getattr(pb, f"{call}Request")(container_id=value, **fields)


IDS = [
    *(
        Row(f"{call}: {what}", call, lambda _w, call=call, value=value: _named(call, value),
            "INVALID_ARGUMENT", ("container_id",))
        for call in _CALLS
        for what, value in (("no id", ""), ("id of 300 letters", "a" * 300))
    ),
    *(
        Row(f"{call}: ambiguous prefix", call, lambda w, call=call: _named(call, w.twice),
            "INVALID_ARGUMENT", ("ambiguous",))
        for call in _CALLS
    ),
    *(
        Row(f"{call}: unknown id", call, lambda _w, call=call: _named(call, UNKNOWN),
            "NOT_FOUND", (UNKNOWN,))
        for call in _KNOWN_ONLY
    ),
    Row("create: ambiguous target", "CreateContainer",
        lambda w: w.box(lambda c: c.linux.security_context.namespace_options.CopyFrom(
            pb.NamespaceOption(pid=pb.TARGET, target_id=w.twice))),
        "INVALID_ARGUMENT", ("ambiguous",), needs=(Feature.TARGET_PID,)),
]  # fmt: skip

STATES = [
    Row("start: running", "StartContainer", lambda w: _named("StartContainer", w.running),
        "FAILED_PRECONDITION", ("running",)),
    Row("start: exited", "StartContainer", lambda w: _named("StartContainer", w.exited),
        "FAILED_PRECONDITION", ("exited",)),
    *(
        Row(f"{call}: {state}", call,
            lambda w, call=call, state=state: _named(call, getattr(w, state)),
            "FAILED_PRECONDITION", ("not running",))
        for call in ("ReopenContainerLog", "ExecSync", "Exec", "Attach")
        for state in ("created", "exited")
    ),
    Row("exec: nothing", "ExecSync", lambda w: pb.ExecSyncRequest(container_id=w.running),
        "INVALID_ARGUMENT", ("cmd",)),
    Row("exec: empty program", "ExecSync", lambda w: _named("ExecSync", w.running, cmd=[""]),
        "INVALID_ARGUMENT", ("cmd",)),
    Row("exec: NUL", "ExecSync", lambda w: _named("ExecSync", w.running, cmd=["sh", "a\0"]),
        "INVALID_ARGUMENT", ("cmd", "NUL")),
    Row("exec: negative time-out", "ExecSync",
        lambda w: _named("ExecSync", w.running, timeout=-1), "INVALID_ARGUMENT", ("timeout",)),
    Row("exec: program that is not there", "ExecSync",
        lambda w: _named("ExecSync", w.running, cmd=["/no/such/program"]), "UNKNOWN",
        ("/no/such/program",)),
    *(
        Row(f"{call}: {what}", call, lambda w, call=call, more=more: _named(call, w.running, **more),
            "INVALID_ARGUMENT", words)
        for call in ("Exec", "Attach")
        for what, more, words in (
            ("no stream", {"stdout": False}, ("stdin, stdout, stderr",)),
            ("terminal with stderr", {"tty": True, "stderr": True}, ("stderr",)),
        )
    ),
    Row("Exec: nothing", "Exec", lambda w: _named("Exec", w.running, cmd=[]), "INVALID_ARGUMENT",
        ("cmd",)),
    Row("Exec: NUL", "Exec", lambda w: _named("Exec", w.running, cmd=["a\0"]), "INVALID_ARGUMENT",
        ("cmd", "NUL")),
    Row("Attach: terminal to a container without", "Attach",
        lambda w: _named("Attach", w.running, tty=True), "INVALID_ARGUMENT", ("tty",)),
    Row("Attach: stdin to a container without", "Attach",
        lambda w: _named("Attach", w.running, stdin=True), "INVALID_ARGUMENT", ("stdin",)),
    *(
        Row(f"update: {what}", "UpdateContainerResources",
            lambda w, more=more: _update(w.running, **more), "INVALID_ARGUMENT", words, _LIMITS)
        for what, more, words in (
            ("negative shares", {"cpu_shares": -1}, ("cpu_shares",)),
            ("negative period", {"cpu_period": -1}, ("cpu_period",)),
            ("period out of range", {"cpu_period": 5}, ("cpu_period",)),
            ("quota out of range", {"cpu_quota": 5}, ("cpu_quota",)),
            ("negative memory", {"memory_limit_in_bytes": -5}, ("memory_limit_in_bytes",)),
            ("swap below memory",
             {"memory_limit_in_bytes": 1 << 26, "memory_swap_limit_in_bytes": 1 << 25}, ("swap",)),
            ("cpuset that is none", {"cpuset_cpus": "../0"}, ("cpuset_cpus",)),
            ("NUL in the cpuset", {"cpuset_mems": "0\0"}, ("cpuset_mems", "NUL")),
            ("score out of range", {"oom_score_adj": 2000}, ("oom_score_adj",)),
            ("page size that is none",
             {"hugepage_limits": [pb.HugepageLimit(page_size="x", limit=1)]}, ("hugepage_limits",)),
        )
    ),
    Row("update: nothing", "UpdateContainerResources",
        lambda _w: pb.UpdateContainerResourcesRequest(), "INVALID_ARGUMENT", ("container_id",)),
    Row("update: unknown", "UpdateContainerResources",
        lambda _w: _update(UNKNOWN, cpu_shares=5), "NOT_FOUND", (UNKNOWN,)),
    Row("update: ended", "UpdateContainerResources", lambda w: _update(w.exited, cpu_shares=5),
        "FAILED_PRECONDITION", ("exited",)),
    Row("update: Windows", "UpdateContainerResources",
        lambda w: pb.UpdateContainerResourcesRequest(
            container_id=w.running, windows=pb.WindowsContainerResources()),
        "INVALID_ARGUMENT", ("windows",)),
    Row("list: unknown state", "ListContainers",
        lambda _w: pb.ListContainersRequest(
            filter=pb.ContainerFilter(state=pb.ContainerStateValue(state=9))),
        "INVALID_ARGUMENT", ("filter.state",)),
]  # fmt: skip


def _update(box: str, **limits) -> pb.UpdateContainerResourcesRequest:
    return pb.UpdateContainerResourcesRequest(
        container_id=box, linux=pb.LinuxContainerResources(**limits)
    )


ROWS = [*CREATE, *IDS, *STATES]
