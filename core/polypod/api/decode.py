"""Protobuf requests → the dataclasses of `polypod.plugin.requests`; refuses what cannot be meant.

Every refusal is an `InvalidArgument` that names the field. Nothing here looks at the host.

Spec:
    ``proto/runtime/v1/api.proto``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from polypod.api import decode_security as security
from polypod.api import decode_values as values
from polypod.api import signals
from polypod.api.v1 import api_pb2 as pb
from polypod.lifecycle.views import ContainerState, Filter, SandboxState, StreamChoice
from polypod.plugin import requests as r
from polypod.plugin.errors import InvalidArgument

if TYPE_CHECKING:
    from google.protobuf.message import Message

SANDBOX_STATES = {
    pb.SANDBOX_READY: SandboxState.READY,
    pb.SANDBOX_NOTREADY: SandboxState.NOT_READY,
}
CONTAINER_STATES = {
    pb.CONTAINER_CREATED: ContainerState.CREATED,
    pb.CONTAINER_RUNNING: ContainerState.RUNNING,
    pb.CONTAINER_EXITED: ContainerState.EXITED,
    pb.CONTAINER_UNKNOWN: ContainerState.UNKNOWN,
}
MAX_ID_LENGTH = 256
MAX_PORTS = 127
"""Of one port-forward: each has two channels of the 255 of a WebSocket."""


def object_id(value: str, field: str) -> str:
    """Return an id or id prefix.

    Raises:
        InvalidArgument: it is empty, or longer than any id.
    """
    if not value:
        raise InvalidArgument(f"{field} is empty: give a full id or a unique prefix")
    if len(value) > MAX_ID_LENGTH:
        raise InvalidArgument(f"{field} has {len(value)} characters: no id is that long")
    return value


def run_sandbox(request: pb.RunPodSandboxRequest) -> tuple[r.SandboxConfig, str]:
    """Return the sandbox' config and the handler asked for."""
    values.require(request, "config", "config")
    return sandbox_config(request.config, "config"), values.text(
        request.runtime_handler, "runtime_handler"
    )


def create_container(
    request: pb.CreateContainerRequest,
) -> tuple[str, r.ContainerConfig, r.SandboxConfig | None]:
    """Return the sandbox id, the container's config, the repeated sandbox config if there is one."""
    sandbox_id = object_id(request.pod_sandbox_id, "pod_sandbox_id")
    values.require(request, "config", "config")
    sandbox = None
    if request.HasField("sandbox_config"):
        sandbox = sandbox_config(request.sandbox_config, "sandbox_config")
    return sandbox_id, container_config(request.config), sandbox


def sandbox_config(message: pb.PodSandboxConfig, field: str) -> r.SandboxConfig:
    """Return a sandbox' config; ``field`` is its place in the request, for errors."""
    values.require(message, "metadata", f"{field}.metadata")
    meta = message.metadata
    values.named(meta.name, f"{field}.metadata.name")
    for name in ("namespace", "uid"):
        values.text(getattr(meta, name), f"{field}.metadata.{name}")
    linux = message.linux
    return r.SandboxConfig(
        metadata=r.PodMetadata(meta.name, meta.uid, meta.namespace, meta.attempt),
        hostname=values.text(message.hostname, f"{field}.hostname"),
        log_directory=values.absolute(message.log_directory, f"{field}.log_directory"),
        dns=_dns(message),
        port_mappings=tuple(
            _port_mapping(item, f"{field}.port_mappings[{i}]")
            for i, item in enumerate(message.port_mappings)
        ),
        labels=values.pairs(message.labels, f"{field}.labels"),
        annotations=values.pairs(message.annotations, f"{field}.annotations"),
        cgroup_parent=values.text(linux.cgroup_parent, f"{field}.linux.cgroup_parent"),
        security=security.sandbox(linux.security_context, f"{field}.linux.security_context"),
        sysctls=values.pairs(linux.sysctls, f"{field}.linux.sysctls"),
        overhead=_optional_resources(linux, "overhead", f"{field}.linux.overhead"),
        resources=_optional_resources(linux, "resources", f"{field}.linux.resources"),
    )


def container_config(message: pb.ContainerConfig) -> r.ContainerConfig:
    """Return a container's config."""
    values.require(message, "metadata", "config.metadata")
    values.named(message.metadata.name, "config.metadata.name")
    values.require(message, "image", "config.image")
    if message.stdin_once and not message.stdin:
        raise InvalidArgument("config.stdin_once is set without config.stdin")
    linux = message.linux
    return r.ContainerConfig(
        metadata=r.ContainerMetadata(message.metadata.name, message.metadata.attempt),
        image=image_spec(message.image, "config.image"),
        command=values.texts(message.command, "config.command"),
        args=values.texts(message.args, "config.args"),
        working_dir=values.text(message.working_dir, "config.working_dir"),
        envs=_envs(message.envs),
        mounts=tuple(_mount(m, f"config.mounts[{i}]") for i, m in enumerate(message.mounts)),
        devices=tuple(_device(d, f"config.devices[{i}]") for i, d in enumerate(message.devices)),
        cdi_devices=tuple(_cdi(d.name, i) for i, d in enumerate(message.CDI_devices)),
        labels=values.pairs(message.labels, "config.labels"),
        annotations=values.pairs(message.annotations, "config.annotations"),
        log_path=values.text(message.log_path, "config.log_path"),
        stdin=message.stdin,
        stdin_once=message.stdin_once,
        tty=message.tty,
        resources=resources(linux.resources, "config.linux.resources"),
        security=security.container(linux.security_context, "config.linux.security_context"),
        stop_signal=signals.number(message.stop_signal, "config.stop_signal"),
    )


def update_container(
    request: pb.UpdateContainerResourcesRequest,
) -> tuple[str, r.Resources, dict[str, str]]:
    """Return whose limits change, to what, and the annotations of the change."""
    container_id = object_id(request.container_id, "container_id")
    if request.HasField("windows"):
        raise InvalidArgument("windows is set: containers here are Linux ones")
    wanted = resources(request.linux, "linux")
    return container_id, wanted, values.pairs(request.annotations, "annotations")


def update_sandbox(
    request: pb.UpdatePodSandboxResourcesRequest,
) -> tuple[str, r.Resources | None, r.Resources | None]:
    """Return whose limits change, the overhead and the resources; None where there are none."""
    sandbox_id = object_id(request.pod_sandbox_id, "pod_sandbox_id")
    overhead = _optional_resources(request, "overhead", "overhead")
    return sandbox_id, overhead, _optional_resources(request, "resources", "resources")


def image_spec(message: pb.ImageSpec, field: str) -> r.ImageSpec:
    """Return an image spec.

    Raises:
        InvalidArgument: it names no image.
    """
    if not message.image:
        raise InvalidArgument(f"{field}.image is empty: give an image id, tag or digest")
    return r.ImageSpec(
        image=values.text(message.image, f"{field}.image"),
        annotations=values.pairs(message.annotations, f"{field}.annotations"),
        user_specified_image=values.text(
            message.user_specified_image, f"{field}.user_specified_image"
        ),
        runtime_handler=values.text(message.runtime_handler, f"{field}.runtime_handler"),
        image_ref=values.text(message.image_ref, f"{field}.image_ref"),
    )


def image_reference(request: Message) -> str:
    """Return the reference of a request whose ``image`` must be there."""
    values.require(request, "image", "image")
    return image_spec(request.image, "image").image  # type: ignore[attr-defined]  # any of three


def auth(message: pb.PullImageRequest) -> r.Auth | None:
    """Return the credentials of a pull, None if there are none."""
    if not message.HasField("auth"):
        return None
    a = message.auth
    return r.Auth(
        username=a.username,
        password=a.password,
        auth=a.auth,
        server_address=a.server_address,
        identity_token=a.identity_token,
        registry_token=a.registry_token,
    )


def sandbox_filter(message: pb.PodSandboxFilter) -> Filter:
    """Return the conditions of ListPodSandbox."""
    state = ""
    if message.HasField("state"):
        state = _state(SANDBOX_STATES, message.state.state, "filter.state")
    return Filter(id=message.id, state=state, labels=dict(message.label_selector))


def container_filter(message: pb.ContainerFilter) -> Filter:
    """Return the conditions of ListContainers."""
    state = ""
    if message.HasField("state"):
        state = _state(CONTAINER_STATES, message.state.state, "filter.state")
    return Filter(
        id=message.id,
        sandbox_id=message.pod_sandbox_id,
        state=state,
        labels=dict(message.label_selector),
    )


def stats_filter(message: pb.ContainerStatsFilter) -> Filter:
    """Return the conditions of ListContainerStats."""
    return Filter(
        id=message.id, sandbox_id=message.pod_sandbox_id, labels=dict(message.label_selector)
    )


def pod_stats_filter(message: pb.PodSandboxStatsFilter) -> Filter:
    """Return the conditions of ListPodSandboxStats."""
    return Filter(id=message.id, labels=dict(message.label_selector))


def seconds(value: int, field: str) -> float:
    """Return a time-out; a negative one is refused."""
    if value < 0:
        raise InvalidArgument(f"{field} is {value}: give seconds, 0 or more")
    return float(value)


def command(given: Iterable[str], field: str) -> tuple[str, ...]:
    """Return a command line of at least one word."""
    words = values.texts(given, field)
    if not words or not words[0]:
        raise InvalidArgument(f"{field} is empty: name the program to run")
    return words


def stream_choice(message: pb.ExecRequest | pb.AttachRequest) -> StreamChoice:
    """Return the streams of an exec or attach."""
    return StreamChoice(
        stdin=message.stdin, stdout=message.stdout, stderr=message.stderr, tty=message.tty
    )


def ports(given: Iterable[int], field: str) -> tuple[int, ...]:
    """Return the ports of a port-forward; empty = any."""
    found = tuple(given)
    for i, port in enumerate(found):
        if not 0 < port < 65536:
            raise InvalidArgument(f"{field}[{i}] is {port}: ports are 1 to 65535")
    if len(found) > MAX_PORTS:
        raise InvalidArgument(f"{field} has {len(found)} entries: at most {MAX_PORTS} are served")
    return found


def pod_cidrs(request: pb.UpdateRuntimeConfigRequest) -> tuple[str, ...]:
    """Return the pod address ranges; empty if the kubelet sent none."""
    joined = request.runtime_config.network_config.pod_cidr
    return tuple(part.strip() for part in joined.split(",") if part.strip())


def resources(message: pb.LinuxContainerResources, field: str) -> r.Resources:
    """Return limits."""
    for name in ("cpu_period", "cpu_shares"):
        if getattr(message, name) < 0:
            raise InvalidArgument(f"{field}.{name} is negative: 0 means not set")
    return r.Resources(
        cpu_period=message.cpu_period,
        cpu_quota=message.cpu_quota,
        cpu_shares=message.cpu_shares,
        memory_limit_in_bytes=message.memory_limit_in_bytes,
        oom_score_adj=message.oom_score_adj,
        cpuset_cpus=values.text(message.cpuset_cpus, f"{field}.cpuset_cpus"),
        cpuset_mems=values.text(message.cpuset_mems, f"{field}.cpuset_mems"),
        hugepage_limits=tuple(
            r.HugepageLimit(item.page_size, item.limit) for item in message.hugepage_limits
        ),
        unified=values.pairs(message.unified, f"{field}.unified"),
        memory_swap_limit_in_bytes=message.memory_swap_limit_in_bytes,
    )


def _state(table: dict[Any, Any], value: int, field: str) -> str:
    if value not in table:
        raise InvalidArgument(f"{field} is {value}: known values are {sorted(table)}")
    return str(table[value])


def _dns(message: pb.PodSandboxConfig) -> r.DnsConfig | None:
    if not message.HasField("dns_config"):
        return None
    dns = message.dns_config
    return r.DnsConfig(tuple(dns.servers), tuple(dns.searches), tuple(dns.options))


def _port_mapping(message: pb.PortMapping, field: str) -> r.PortMapping:
    for name in ("container_port", "host_port"):
        if not 0 <= getattr(message, name) <= 65535:
            raise InvalidArgument(f"{field}.{name} is {getattr(message, name)}: ports end at 65535")
    if message.host_port and not message.container_port:
        raise InvalidArgument(f"{field}.container_port is 0: a host port must lead somewhere")
    return r.PortMapping(
        values.enum_member(r.Protocol, message.protocol, f"{field}.protocol"),
        message.container_port,
        message.host_port,
        values.address(message.host_ip, f"{field}.host_ip"),
    )


def _envs(items: Iterable[pb.KeyValue]) -> tuple[tuple[str, bytes], ...]:
    found = tuple((item.key, item.value) for item in items)
    for i, (key, value) in enumerate(found):
        if not key or "=" in key or "\0" in key:
            raise InvalidArgument(f"config.envs[{i}].key is {key!r}: empty, or with = or NUL")
        if b"\0" in value:
            raise InvalidArgument(f"config.envs[{i}].value of {key!r} contains a NUL byte")
    return found


def _mount(message: pb.Mount, field: str) -> r.Mount:
    image = None
    if message.HasField("image"):
        image = image_spec(message.image, f"{field}.image")
        if message.host_path:
            raise InvalidArgument(f"{field}: host_path and image exclude each other")
    elif not message.host_path:
        raise InvalidArgument(f"{field}.host_path is empty")
    if not message.container_path:
        raise InvalidArgument(f"{field}.container_path is empty")
    propagation = values.enum_member(
        r.MountPropagation, message.propagation, f"{field}.propagation"
    )
    if message.recursive_read_only and not message.readonly:
        raise InvalidArgument(f"{field}.recursive_read_only needs readonly")
    if message.recursive_read_only and propagation is not r.MountPropagation.PRIVATE:
        raise InvalidArgument(f"{field}.recursive_read_only needs private propagation")
    return r.Mount(
        container_path=values.text(message.container_path, f"{field}.container_path"),
        host_path=values.absolute(message.host_path, f"{field}.host_path"),
        readonly=message.readonly,
        selinux_relabel=message.selinux_relabel,
        propagation=propagation,
        uid_mappings=values.mappings(message.uidMappings, f"{field}.uidMappings"),
        gid_mappings=values.mappings(message.gidMappings, f"{field}.gidMappings"),
        recursive_read_only=message.recursive_read_only,
        image=image,
        image_sub_path=values.text(message.image_sub_path, f"{field}.image_sub_path"),
        mount_options=values.texts(message.mount_options, f"{field}.mount_options"),
    )


def _device(message: pb.Device, field: str) -> r.Device:
    if not message.host_path:
        raise InvalidArgument(f"{field}.host_path is empty")
    permissions = message.permissions or "rwm"
    if not set(permissions) <= set("rwm"):
        raise InvalidArgument(f"{field}.permissions is {permissions!r}: only r, w and m exist")
    path = values.absolute(message.host_path, f"{field}.host_path")
    inside = values.absolute(message.container_path, f"{field}.container_path") or path
    return r.Device(inside, path, permissions)


def _cdi(name: str, index: int) -> str:
    if not name:
        raise InvalidArgument(f"config.CDI_devices[{index}].name is empty")
    return values.text(name, f"config.CDI_devices[{index}].name")


def _optional_resources(
    message: pb.LinuxPodSandboxConfig | pb.UpdatePodSandboxResourcesRequest, name: str, field: str
) -> r.Resources | None:
    if not message.HasField(name):
        return None
    return resources(getattr(message, name), field)
