"""Protobuf requests → the dataclasses of `polypod.plugin.requests`; refuses what cannot be meant.

Every refusal is an `InvalidArgument` that names the field. Nothing here looks at the host.

Spec:
    ``proto/runtime/v1/api.proto``.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeVar

from polypod.api import signals
from polypod.api.v1 import api_pb2 as pb
from polypod.lifecycle.views import ContainerState, Filter, SandboxState
from polypod.plugin import requests as r
from polypod.plugin.errors import InvalidArgument

if TYPE_CHECKING:
    from google.protobuf.message import Message

E = TypeVar("E", bound=IntEnum)

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
MAX_TEXT_LENGTH = 1 << 20
"""No single string of a request is longer: the whole may be 16 MiB, an annotation 256 KiB."""


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
    _require(request, "config", "config")
    return sandbox_config(request.config, "config"), _text(
        request.runtime_handler, "runtime_handler"
    )


def create_container(
    request: pb.CreateContainerRequest,
) -> tuple[str, r.ContainerConfig, r.SandboxConfig | None]:
    """Return the sandbox id, the container's config, the repeated sandbox config if there is one."""
    sandbox_id = object_id(request.pod_sandbox_id, "pod_sandbox_id")
    _require(request, "config", "config")
    sandbox = None
    if request.HasField("sandbox_config"):
        sandbox = sandbox_config(request.sandbox_config, "sandbox_config")
    return sandbox_id, container_config(request.config), sandbox


def sandbox_config(message: pb.PodSandboxConfig, field: str) -> r.SandboxConfig:
    """Return a sandbox' config; ``field`` is its place in the request, for errors."""
    _require(message, "metadata", f"{field}.metadata")
    meta = message.metadata
    _named(meta.name, f"{field}.metadata.name")
    for name in ("namespace", "uid"):
        _text(getattr(meta, name), f"{field}.metadata.{name}")
    linux = message.linux
    return r.SandboxConfig(
        metadata=r.PodMetadata(meta.name, meta.uid, meta.namespace, meta.attempt),
        hostname=_text(message.hostname, f"{field}.hostname"),
        log_directory=_absolute(message.log_directory, f"{field}.log_directory"),
        dns=_dns(message),
        port_mappings=tuple(
            _port_mapping(item, f"{field}.port_mappings[{i}]")
            for i, item in enumerate(message.port_mappings)
        ),
        labels=_pairs(message.labels, f"{field}.labels"),
        annotations=_pairs(message.annotations, f"{field}.annotations"),
        cgroup_parent=_text(linux.cgroup_parent, f"{field}.linux.cgroup_parent"),
        security=_sandbox_security(linux.security_context, f"{field}.linux.security_context"),
        sysctls=_pairs(linux.sysctls, f"{field}.linux.sysctls"),
        overhead=_optional_resources(linux, "overhead", f"{field}.linux.overhead"),
        resources=_optional_resources(linux, "resources", f"{field}.linux.resources"),
    )


def container_config(message: pb.ContainerConfig) -> r.ContainerConfig:
    """Return a container's config."""
    _require(message, "metadata", "config.metadata")
    _named(message.metadata.name, "config.metadata.name")
    _require(message, "image", "config.image")
    if message.stdin_once and not message.stdin:
        raise InvalidArgument("config.stdin_once is set without config.stdin")
    linux = message.linux
    return r.ContainerConfig(
        metadata=r.ContainerMetadata(message.metadata.name, message.metadata.attempt),
        image=image_spec(message.image, "config.image"),
        command=_texts(message.command, "config.command"),
        args=_texts(message.args, "config.args"),
        working_dir=_text(message.working_dir, "config.working_dir"),
        envs=_envs(message.envs),
        mounts=tuple(_mount(m, f"config.mounts[{i}]") for i, m in enumerate(message.mounts)),
        devices=tuple(_device(d, f"config.devices[{i}]") for i, d in enumerate(message.devices)),
        cdi_devices=tuple(_cdi(d.name, i) for i, d in enumerate(message.CDI_devices)),
        labels=_pairs(message.labels, "config.labels"),
        annotations=_pairs(message.annotations, "config.annotations"),
        log_path=_text(message.log_path, "config.log_path"),
        stdin=message.stdin,
        stdin_once=message.stdin_once,
        tty=message.tty,
        resources=resources(linux.resources, "config.linux.resources"),
        security=_container_security(linux.security_context, "config.linux.security_context"),
        stop_signal=signals.number(message.stop_signal, "config.stop_signal"),
    )


def image_spec(message: pb.ImageSpec, field: str) -> r.ImageSpec:
    """Return an image spec.

    Raises:
        InvalidArgument: it names no image.
    """
    if not message.image:
        raise InvalidArgument(f"{field}.image is empty: give an image id, tag or digest")
    return r.ImageSpec(
        image=_text(message.image, f"{field}.image"),
        annotations=_pairs(message.annotations, f"{field}.annotations"),
        user_specified_image=_text(message.user_specified_image, f"{field}.user_specified_image"),
        runtime_handler=_text(message.runtime_handler, f"{field}.runtime_handler"),
        image_ref=_text(message.image_ref, f"{field}.image_ref"),
    )


def image_reference(request: Message) -> str:
    """Return the reference of a request whose ``image`` must be there."""
    _require(request, "image", "image")
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


def seconds(value: int, field: str) -> float:
    """Return a time-out; a negative one is refused."""
    if value < 0:
        raise InvalidArgument(f"{field} is {value}: give seconds, 0 or more")
    return float(value)


def command(values: Iterable[str], field: str) -> tuple[str, ...]:
    """Return a command line of at least one word."""
    words = _texts(values, field)
    if not words or not words[0]:
        raise InvalidArgument(f"{field} is empty: name the program to run")
    return words


def pod_cidrs(request: pb.UpdateRuntimeConfigRequest) -> tuple[str, ...]:
    """Return the pod address ranges; empty if the kubelet sent none."""
    text = request.runtime_config.network_config.pod_cidr
    return tuple(part.strip() for part in text.split(",") if part.strip())


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
        cpuset_cpus=_text(message.cpuset_cpus, f"{field}.cpuset_cpus"),
        cpuset_mems=_text(message.cpuset_mems, f"{field}.cpuset_mems"),
        hugepage_limits=tuple(
            r.HugepageLimit(item.page_size, item.limit) for item in message.hugepage_limits
        ),
        unified=_pairs(message.unified, f"{field}.unified"),
        memory_swap_limit_in_bytes=message.memory_swap_limit_in_bytes,
    )


def _require(message: Message, name: str, field: str) -> None:
    if not message.HasField(name):
        raise InvalidArgument(f"{field} is missing")


def _named(value: str, field: str) -> None:
    if not value:
        raise InvalidArgument(f"{field} is empty")
    _text(value, field)


def _text(value: str, field: str) -> str:
    if "\0" in value:
        raise InvalidArgument(f"{field} contains a NUL character")
    if len(value) > MAX_TEXT_LENGTH:
        raise InvalidArgument(f"{field} has {len(value)} characters, allowed are {MAX_TEXT_LENGTH}")
    return value


def _texts(values: Iterable[str], field: str) -> tuple[str, ...]:
    return tuple(_text(value, f"{field}[{i}]") for i, value in enumerate(values))


def _pairs(message: Any, field: str) -> dict[str, str]:  # noqa: ANN401 - a protobuf map
    pairs = dict(message)
    for key, value in pairs.items():
        _text(key, f"{field} key")
        _text(value, f"{field}[{key!r}]")
    return pairs


def _absolute(value: str, field: str) -> str:
    _text(value, field)
    if value and not value.startswith("/"):
        raise InvalidArgument(f"{field} is {value!r}: give an absolute path")
    return value


def _enum(kind: type[E], value: int, field: str) -> E:
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(f"{item.value} ({item.name})" for item in kind)
        raise InvalidArgument(f"{field} is {value}: known values are {known}") from None


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
        _enum(r.Protocol, message.protocol, f"{field}.protocol"),
        message.container_port,
        message.host_port,
        _text(message.host_ip, f"{field}.host_ip"),
    )


def _namespaces(message: pb.NamespaceOption, field: str) -> r.NamespaceOptions:
    modes = {
        kind: _enum(r.NamespaceMode, getattr(message, kind), f"{field}.{kind}")
        for kind in ("network", "pid", "ipc")
    }
    for kind in ("network", "ipc"):
        if modes[kind] not in {r.NamespaceMode.POD, r.NamespaceMode.NODE}:
            raise InvalidArgument(f"{field}.{kind} is {modes[kind].name}: only POD and NODE apply")
    if modes["pid"] is r.NamespaceMode.TARGET and not message.target_id:
        raise InvalidArgument(f"{field}.target_id is empty: pid mode TARGET needs a container")
    userns = None
    if message.HasField("userns_options"):
        userns = _userns(message.userns_options, f"{field}.userns_options")
    return r.NamespaceOptions(**modes, target_id=message.target_id, userns=userns)


def _userns(message: pb.UserNamespace, field: str) -> r.UserNamespace:
    mode = _enum(r.NamespaceMode, message.mode, f"{field}.mode")
    if mode not in {r.NamespaceMode.POD, r.NamespaceMode.NODE}:
        raise InvalidArgument(f"{field}.mode is {mode.name}: only POD and NODE apply")
    uids, gids = _mappings(message.uids, f"{field}.uids"), _mappings(message.gids, f"{field}.gids")
    if mode is r.NamespaceMode.POD and not (uids and gids):
        raise InvalidArgument(f"{field}: mode POD needs uids and gids")
    if mode is r.NamespaceMode.NODE and (uids or gids):
        raise InvalidArgument(f"{field}: mode NODE takes neither uids nor gids")
    return r.UserNamespace(mode, uids, gids)


def _mappings(items: Iterable[pb.IDMapping], field: str) -> tuple[r.IdMapping, ...]:
    found = tuple(r.IdMapping(m.host_id, m.container_id, m.length) for m in items)
    for i, item in enumerate(found):
        if item.length == 0:
            raise InvalidArgument(f"{field}[{i}].length is 0")
    return found


def _sandbox_security(message: pb.LinuxSandboxSecurityContext, field: str) -> r.SandboxSecurity:
    user, group = _ids(message, field)
    if group is not None and user is None:
        raise InvalidArgument(f"{field}.run_as_group needs run_as_user")
    return r.SandboxSecurity(
        namespaces=_namespaces(message.namespace_options, f"{field}.namespace_options"),
        selinux=_selinux(message),
        run_as_user=user,
        run_as_group=group,
        readonly_rootfs=message.readonly_rootfs,
        supplemental_groups=_groups(message, field),
        supplemental_groups_policy=_policy(message, field),
        privileged=message.privileged,
        seccomp=_profile(message, "seccomp", message.seccomp_profile_path, field),
        apparmor=_profile(message, "apparmor", "", field),
    )


def _container_security(
    message: pb.LinuxContainerSecurityContext, field: str
) -> r.ContainerSecurity:
    user, group = _ids(message, field)
    if user is not None and message.run_as_username:
        raise InvalidArgument(f"{field}: run_as_user and run_as_username exclude each other")
    if group is not None and user is None and not message.run_as_username:
        raise InvalidArgument(f"{field}.run_as_group needs run_as_user or run_as_username")
    caps = message.capabilities
    return r.ContainerSecurity(
        capabilities=r.Capabilities(
            _texts(caps.add_capabilities, f"{field}.capabilities.add_capabilities"),
            _texts(caps.drop_capabilities, f"{field}.capabilities.drop_capabilities"),
            _texts(caps.add_ambient_capabilities, f"{field}.capabilities.add_ambient_capabilities"),
        ),
        privileged=message.privileged,
        namespaces=_namespaces(message.namespace_options, f"{field}.namespace_options"),
        selinux=_selinux(message),
        run_as_user=user,
        run_as_group=group,
        run_as_username=_text(message.run_as_username, f"{field}.run_as_username"),
        readonly_rootfs=message.readonly_rootfs,
        supplemental_groups=_groups(message, field),
        supplemental_groups_policy=_policy(message, field),
        no_new_privs=message.no_new_privs,
        masked_paths=_texts(message.masked_paths, f"{field}.masked_paths"),
        readonly_paths=_texts(message.readonly_paths, f"{field}.readonly_paths"),
        seccomp=_profile(message, "seccomp", message.seccomp_profile_path, field),
        apparmor=_profile(message, "apparmor", message.apparmor_profile, field),
    )


SecurityMessage = pb.LinuxSandboxSecurityContext | pb.LinuxContainerSecurityContext
MAX_USER_ID = (1 << 32) - 2
"""The last one, 2**32 - 1, means "no id" to the kernel."""


def _ids(message: SecurityMessage, field: str) -> tuple[int | None, int | None]:
    user = message.run_as_user.value if message.HasField("run_as_user") else None
    group = message.run_as_group.value if message.HasField("run_as_group") else None
    for name, value in (("run_as_user", user), ("run_as_group", group)):
        if value is not None and not 0 <= value <= MAX_USER_ID:
            raise InvalidArgument(f"{field}.{name} is {value}: ids are 0 to {MAX_USER_ID}")
    return user, group


def _groups(message: SecurityMessage, field: str) -> tuple[int, ...]:
    groups = tuple(message.supplemental_groups)
    for i, group in enumerate(groups):
        if not 0 <= group <= MAX_USER_ID:
            raise InvalidArgument(
                f"{field}.supplemental_groups[{i}] is {group}: ids are 0 to {MAX_USER_ID}"
            )
    return groups


def _policy(message: SecurityMessage, field: str) -> r.SupplementalGroupsPolicy:
    return _enum(
        r.SupplementalGroupsPolicy,
        message.supplemental_groups_policy,
        f"{field}.supplemental_groups_policy",
    )


def _selinux(message: SecurityMessage) -> r.SelinuxOptions | None:
    if not message.HasField("selinux_options"):
        return None
    s = message.selinux_options
    return r.SelinuxOptions(s.user, s.role, s.type, s.level)


_OLD_PROFILES = {
    "runtime/default": r.ProfileType.RUNTIME_DEFAULT,
    "docker/default": r.ProfileType.RUNTIME_DEFAULT,
    "unconfined": r.ProfileType.UNCONFINED,
}


def _profile(message: SecurityMessage, name: str, old: str, field: str) -> r.SecurityProfile | None:
    """Read a profile; the message wins over the deprecated string, as in CRI."""
    if message.HasField(name):
        found: pb.SecurityProfile = getattr(message, name)
        kind = _enum(r.ProfileType, found.profile_type, f"{field}.{name}.profile_type")
        if kind is r.ProfileType.LOCALHOST and not found.localhost_ref:
            raise InvalidArgument(f"{field}.{name}.localhost_ref is empty: Localhost needs it")
        return r.SecurityProfile(kind, _text(found.localhost_ref, f"{field}.{name}.localhost_ref"))
    if not old:
        return None
    if old in _OLD_PROFILES:
        return r.SecurityProfile(_OLD_PROFILES[old])
    if old.startswith("localhost/") and len(old) > len("localhost/"):
        return r.SecurityProfile(r.ProfileType.LOCALHOST, old.removeprefix("localhost/"))
    raise InvalidArgument(
        f"{field}: {name} profile {old!r} is none of runtime/default, unconfined, localhost/NAME"
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
    propagation = _enum(r.MountPropagation, message.propagation, f"{field}.propagation")
    if message.recursive_read_only and not message.readonly:
        raise InvalidArgument(f"{field}.recursive_read_only needs readonly")
    if message.recursive_read_only and propagation is not r.MountPropagation.PRIVATE:
        raise InvalidArgument(f"{field}.recursive_read_only needs private propagation")
    return r.Mount(
        container_path=_text(message.container_path, f"{field}.container_path"),
        host_path=_absolute(message.host_path, f"{field}.host_path"),
        readonly=message.readonly,
        selinux_relabel=message.selinux_relabel,
        propagation=propagation,
        uid_mappings=_mappings(message.uidMappings, f"{field}.uidMappings"),
        gid_mappings=_mappings(message.gidMappings, f"{field}.gidMappings"),
        recursive_read_only=message.recursive_read_only,
        image=image,
        image_sub_path=_text(message.image_sub_path, f"{field}.image_sub_path"),
        mount_options=_texts(message.mount_options, f"{field}.mount_options"),
    )


def _device(message: pb.Device, field: str) -> r.Device:
    if not message.host_path:
        raise InvalidArgument(f"{field}.host_path is empty")
    permissions = message.permissions or "rwm"
    if not set(permissions) <= set("rwm"):
        raise InvalidArgument(f"{field}.permissions is {permissions!r}: only r, w and m exist")
    path = _absolute(message.host_path, f"{field}.host_path")
    inside = _absolute(message.container_path, f"{field}.container_path") or path
    return r.Device(inside, path, permissions)


def _cdi(name: str, index: int) -> str:
    if not name:
        raise InvalidArgument(f"config.CDI_devices[{index}].name is empty")
    return _text(name, f"config.CDI_devices[{index}].name")


def _optional_resources(
    message: pb.LinuxPodSandboxConfig, name: str, field: str
) -> r.Resources | None:
    if not message.HasField(name):
        return None
    return resources(getattr(message, name), field)
