"""The OCI runtime configuration (runtime-spec 1.3, ``config.json``) as frozen dataclasses.

`polypod_adjust_container` gets and returns an `OciConfig`. Names are the spec's, in snake case;
``polypod.spec.oci_json`` reads and writes the spec's JSON. Bytes, µs and ids as in the spec.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

OCI_VERSION = "1.3.0"


@dataclass(frozen=True, slots=True)
class User:
    """``process.user``; ``umask`` None leaves the runtime's 0o022."""

    uid: int = 0
    gid: int = 0
    umask: int | None = None
    additional_gids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CapabilitySets:
    """The five sets, names with ``CAP_``, upper case."""

    bounding: tuple[str, ...] = ()
    effective: tuple[str, ...] = ()
    inheritable: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rlimit:
    """``type`` with ``RLIMIT_``."""

    type: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class Process:
    """``process``. Strings of ``env`` are ``NAME=value`` in surrogateescape, so bytes survive."""

    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    cwd: str = "/"
    terminal: bool = False
    console_size: tuple[int, int] | None = None
    """(height, width) in characters."""
    user: User = User()
    capabilities: CapabilitySets | None = None
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = False
    oom_score_adj: int | None = None
    apparmor_profile: str = ""
    selinux_label: str = ""


@dataclass(frozen=True, slots=True)
class OciIdMapping:
    """``linux.uidMappings`` and ``gidMappings``."""

    container_id: int
    host_id: int
    size: int


@dataclass(frozen=True, slots=True)
class OciMount:
    """One of ``mounts``. Options are those of the spec (``ro``, ``rbind``, ``rslave``, ``nosuid`` …)."""

    destination: str
    type: str = ""
    source: str = ""
    options: tuple[str, ...] = ()
    uid_mappings: tuple[OciIdMapping, ...] = ()
    gid_mappings: tuple[OciIdMapping, ...] = ()


@dataclass(frozen=True, slots=True)
class Namespace:
    """``type`` is one of pid network mount ipc uts user cgroup time; ``path`` ``""`` makes a new one."""

    type: str
    path: str = ""


@dataclass(frozen=True, slots=True)
class OciDevice:
    """One of ``linux.devices``: ``type`` is c, b, u or p."""

    path: str
    type: str
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceRule:
    """One of ``linux.resources.devices``; major/minor None = any."""

    allow: bool
    type: str = "a"
    major: int | None = None
    minor: int | None = None
    access: str = "rwm"


@dataclass(frozen=True, slots=True)
class MemoryLimits:
    """``linux.resources.memory`` in bytes; None = not set, -1 = unlimited."""

    limit: int | None = None
    reservation: int | None = None
    swap: int | None = None
    swappiness: int | None = None
    disable_oom_killer: bool = False


@dataclass(frozen=True, slots=True)
class CpuLimits:
    """``linux.resources.cpu``; period and quota in µs."""

    shares: int | None = None
    quota: int | None = None
    period: int | None = None
    cpus: str = ""
    mems: str = ""


@dataclass(frozen=True, slots=True)
class OciHugepageLimit:
    """``limit`` in bytes."""

    page_size: str
    limit: int


@dataclass(frozen=True, slots=True)
class OciResources:
    """``linux.resources``."""

    devices: tuple[DeviceRule, ...] = ()
    memory: MemoryLimits = MemoryLimits()
    cpu: CpuLimits = CpuLimits()
    pids_limit: int | None = None
    hugepage_limits: tuple[OciHugepageLimit, ...] = ()
    unified: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SeccompArg:
    """One comparison of ``linux.seccomp.syscalls[].args``; ``op`` is ``SCMP_CMP_…``."""

    index: int
    value: int
    op: str
    value_two: int = 0


@dataclass(frozen=True, slots=True)
class SeccompRule:
    """One of ``linux.seccomp.syscalls``; ``action`` is ``SCMP_ACT_…``."""

    names: tuple[str, ...]
    action: str
    errno_ret: int | None = None
    args: tuple[SeccompArg, ...] = ()


@dataclass(frozen=True, slots=True)
class Seccomp:
    """``linux.seccomp``."""

    default_action: str
    default_errno_ret: int | None = None
    architectures: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    syscalls: tuple[SeccompRule, ...] = ()


@dataclass(frozen=True, slots=True)
class Linux:
    """``linux``."""

    namespaces: tuple[Namespace, ...] = ()
    uid_mappings: tuple[OciIdMapping, ...] = ()
    gid_mappings: tuple[OciIdMapping, ...] = ()
    devices: tuple[OciDevice, ...] = ()
    cgroups_path: str = ""
    resources: OciResources = OciResources()
    rootfs_propagation: str = ""
    seccomp: Seccomp | None = None
    sysctl: Mapping[str, str] = field(default_factory=dict)
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    mount_label: str = ""


@dataclass(frozen=True, slots=True)
class Hook:
    """One OCI hook; ``timeout_s`` None = none."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout_s: int | None = None


@dataclass(frozen=True, slots=True)
class Hooks:
    """``hooks``, in the order in which the spec runs them."""

    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = ()
    create_container: tuple[Hook, ...] = ()
    start_container: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


@dataclass(frozen=True, slots=True)
class OciConfig:
    """The whole ``config.json``."""

    process: Process
    root_path: str = "rootfs"
    root_readonly: bool = False
    hostname: str = ""
    domainname: str = ""
    mounts: tuple[OciMount, ...] = ()
    linux: Linux = Linux()
    hooks: Hooks = Hooks()
    annotations: Mapping[str, str] = field(default_factory=dict)
    oci_version: str = OCI_VERSION
