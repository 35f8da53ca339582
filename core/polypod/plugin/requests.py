"""The requests of CRI as frozen dataclasses: what hooks and backends see of them.

Field names are those of CRI v1 (``proto/runtime/v1/api.proto``); the api room decodes protobuf into
these and nobody else touches protobuf. Absent messages are ``None``; absent strings are ``""``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum


class NamespaceMode(IntEnum):
    """CRI ``NamespaceMode``, same numbers."""

    POD = 0
    CONTAINER = 1
    NODE = 2
    TARGET = 3


class MountPropagation(IntEnum):
    """CRI ``MountPropagation``, same numbers."""

    PRIVATE = 0
    HOST_TO_CONTAINER = 1
    BIDIRECTIONAL = 2


class ProfileType(IntEnum):
    """CRI ``SecurityProfile.ProfileType``, same numbers."""

    RUNTIME_DEFAULT = 0
    UNCONFINED = 1
    LOCALHOST = 2


class SupplementalGroupsPolicy(IntEnum):
    """CRI ``SupplementalGroupsPolicy``, same numbers."""

    MERGE = 0
    STRICT = 1


class Protocol(IntEnum):
    """CRI ``Protocol`` of a port mapping, same numbers."""

    TCP = 0
    UDP = 1
    SCTP = 2


@dataclass(frozen=True, slots=True)
class IdMapping:
    """One range of a user namespace; all three in numbers of ids."""

    host_id: int
    container_id: int
    length: int


@dataclass(frozen=True, slots=True)
class UserNamespace:
    """CRI ``UserNamespace``."""

    mode: NamespaceMode = NamespaceMode.NODE
    uids: tuple[IdMapping, ...] = ()
    gids: tuple[IdMapping, ...] = ()


@dataclass(frozen=True, slots=True)
class NamespaceOptions:
    """CRI ``NamespaceOption``."""

    network: NamespaceMode = NamespaceMode.POD
    pid: NamespaceMode = NamespaceMode.POD
    ipc: NamespaceMode = NamespaceMode.POD
    target_id: str = ""
    userns: UserNamespace | None = None


@dataclass(frozen=True, slots=True)
class SecurityProfile:
    """CRI ``SecurityProfile`` (seccomp and AppArmor)."""

    profile_type: ProfileType = ProfileType.RUNTIME_DEFAULT
    localhost_ref: str = ""


@dataclass(frozen=True, slots=True)
class SelinuxOptions:
    """CRI ``SELinuxOption``."""

    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""


@dataclass(frozen=True, slots=True)
class HugepageLimit:
    """``page_size`` in the kernel's spelling (``2MB``), ``limit`` in bytes."""

    page_size: str
    limit: int


@dataclass(frozen=True, slots=True)
class Resources:
    """CRI ``LinuxContainerResources``; 0 means "not set" as in CRI. Memory in bytes, cpu in µs."""

    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_shares: int = 0
    memory_limit_in_bytes: int = 0
    oom_score_adj: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    hugepage_limits: tuple[HugepageLimit, ...] = ()
    unified: Mapping[str, str] = field(default_factory=dict)
    memory_swap_limit_in_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Capabilities:
    """CRI ``Capability``: names with or without ``CAP_``, any case, ``ALL``."""

    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    add_ambient: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SandboxSecurity:
    """CRI ``LinuxSandboxSecurityContext``. ``run_as_*`` are None where the message is absent."""

    namespaces: NamespaceOptions = NamespaceOptions()
    selinux: SelinuxOptions | None = None
    run_as_user: int | None = None
    run_as_group: int | None = None
    readonly_rootfs: bool = False
    supplemental_groups: tuple[int, ...] = ()
    supplemental_groups_policy: SupplementalGroupsPolicy = SupplementalGroupsPolicy.MERGE
    privileged: bool = False
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None


@dataclass(frozen=True, slots=True)
class ContainerSecurity:
    """CRI ``LinuxContainerSecurityContext``; deprecated string forms are already folded in."""

    capabilities: Capabilities = Capabilities()
    privileged: bool = False
    namespaces: NamespaceOptions = NamespaceOptions()
    selinux: SelinuxOptions | None = None
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_username: str = ""
    readonly_rootfs: bool = False
    supplemental_groups: tuple[int, ...] = ()
    supplemental_groups_policy: SupplementalGroupsPolicy = SupplementalGroupsPolicy.MERGE
    no_new_privs: bool = False
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None


@dataclass(frozen=True, slots=True)
class PodMetadata:
    """What names a sandbox: all four together are unique."""

    name: str
    uid: str
    namespace: str
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class ContainerMetadata:
    """What names a container inside its sandbox."""

    name: str
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class DnsConfig:
    """CRI ``DNSConfig``."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PortMapping:
    """CRI ``PortMapping``; ``host_port`` 0 maps nothing."""

    protocol: Protocol = Protocol.TCP
    container_port: int = 0
    host_port: int = 0
    host_ip: str = ""


@dataclass(frozen=True, slots=True)
class SandboxConfig:
    """CRI ``PodSandboxConfig`` with ``LinuxPodSandboxConfig`` folded in."""

    metadata: PodMetadata
    hostname: str = ""
    log_directory: str = ""
    dns: DnsConfig | None = None
    port_mappings: tuple[PortMapping, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    cgroup_parent: str = ""
    security: SandboxSecurity = SandboxSecurity()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    overhead: Resources | None = None
    resources: Resources | None = None


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """CRI ``ImageSpec``."""

    image: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    user_specified_image: str = ""
    runtime_handler: str = ""
    image_ref: str = ""


@dataclass(frozen=True, slots=True)
class Mount:
    """CRI ``Mount``."""

    container_path: str
    host_path: str = ""
    readonly: bool = False
    selinux_relabel: bool = False
    propagation: MountPropagation = MountPropagation.PRIVATE
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    recursive_read_only: bool = False
    image: ImageSpec | None = None
    image_sub_path: str = ""
    mount_options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Device:
    """CRI ``Device``: ``permissions`` is a subset of ``rwm``."""

    container_path: str
    host_path: str
    permissions: str = "rwm"


@dataclass(frozen=True, slots=True)
class ContainerConfig:
    """CRI ``ContainerConfig`` with ``LinuxContainerConfig`` folded in. Env values are bytes (CRI 0.36)."""

    metadata: ContainerMetadata
    image: ImageSpec
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    envs: tuple[tuple[str, bytes], ...] = ()
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    cdi_devices: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    log_path: str = ""
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    resources: Resources = Resources()
    security: ContainerSecurity = ContainerSecurity()
    stop_signal: int = 0
    """A signal number of Linux; 0 = the image's, else SIGTERM."""


@dataclass(frozen=True, slots=True)
class Auth:
    """CRI ``AuthConfig``; ``repr`` shows none of it (reliability: no credential in any log)."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    auth: str = field(default="", repr=False)
    server_address: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class SandboxRequest:
    """What `polypod_choose_handler` sees: the whole of RunPodSandbox."""

    config: SandboxConfig
    runtime_handler: str
    """As requested; ``""`` = the default handler."""
