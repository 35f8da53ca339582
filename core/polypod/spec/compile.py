"""OCI config → launch plan: the order in which a container comes into being, as data.

The order is the security: cgroups before the cgroup namespace; mounts, then masks, before the root
changes; descriptors closed before the working directory is entered, so that no ``/proc/self/fd/N`` leads
out (E2); capabilities shrink after everything that needs them; seccomp last of all (E24).

Spec:
    runtime-spec runtime.md (lifecycle), config.md, config-linux.md.
"""

from __future__ import annotations

import base64
import resource
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from polypod.plan import operations as op
from polypod.plan.operations import Operation, Plan
from polypod.plugin.errors import InvalidArgument, Unsupported
from polypod.plugin.oci import (
    CapabilitySets,
    Linux,
    Namespace,
    OciConfig,
    OciDevice,
    OciMount,
    Process,
    Rlimit,
    Seccomp,
)
from polypod.spec.capabilities import ALL_CAPABILITIES
from polypod.spec.devices import DEFAULT_DEVICES
from polypod.spec.mount_options import RDONLY, parse_mount_options, parse_propagation
from polypod.spec.paths import container_path
from polypod.spec.seccomp import compile_filter, filter_flags
from polypod.spec.sysctls import checked_sysctls

# linux/sched.h
_CLONE: Final = {
    "mount": 0x20000,
    "uts": 0x4000000,
    "ipc": 0x8000000,
    "pid": 0x20000000,
    "network": 0x40000000,
}
_LATE: Final = frozenset(["cgroup"])
"""Made by the process itself once it is in its cgroup."""
_JOINED_FIRST: Final = ("network", "ipc", "uts", "cgroup")
_BIT: Final = {name: 1 << number for number, name in enumerate(ALL_CAPABILITIES)}
_NO_CAPABILITIES: Final = CapabilitySets()
_UMASK: Final = 0o022
_UTS_SYSCTLS: Final = frozenset(["kernel.domainname", "kernel.hostname"])
_DEV_LINKS: Final = (
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/core", "/proc/kcore"),
    ("/dev/ptmx", "pts/ptmx"),
)


@dataclass(frozen=True, slots=True)
class Streams:
    """Sources of the standard streams: three of them, or a console socket."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    console: str = ""


@dataclass(frozen=True, slots=True)
class CgroupView:
    """What ``/sys/fs/cgroup`` shows."""

    version: int = 2
    hierarchies: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = ()
    """v1: (directory, mount options, further links) of each hierarchy."""


@dataclass(frozen=True, slots=True)
class MountSource:
    """An opened source of a bind mount."""

    source: str
    is_directory: bool


@dataclass(frozen=True, slots=True)
class Sources:
    """What was opened for a launch: every value is a source such as ``fd:3``."""

    root: str
    streams: Streams = Streams()
    cgroups: tuple[str, ...] = ()
    """The files that a process writes "0" into, to join."""
    namespaces: Mapping[str, str] = field(default_factory=dict)
    """`Namespace.path` → source, for those to join."""
    mounts: Mapping[str, MountSource] = field(default_factory=dict)
    """Destination of a bind mount → what was opened for it."""
    cgroup_view: CgroupView = CgroupView()
    dev: str = ""
    """A file system for ``/dev`` with all nodes, where the container's root may not make any."""
    nodes: Mapping[str, str] = field(default_factory=dict)
    """For the same reason: path of a device elsewhere → what was opened for it."""


@dataclass(frozen=True, slots=True)
class ExecSources:
    """What was opened for an extra process in a running container."""

    pidfd: str
    """Of the container's first process, whose namespaces are joined."""
    kinds: tuple[str, ...]
    """The kinds that the container does not share with the host."""
    streams: Streams = Streams()
    cgroups: tuple[str, ...] = ()
    watched: bool = True
    """Somebody who sees the container's processes may trace them."""


def compile_container(config: OciConfig, sources: Sources) -> Plan:
    """Return the plan of a container's first process.

    Raises:
        InvalidArgument: the config contradicts itself.
        Unsupported: it asks for what this engine does not do; nothing was made yet.
    """
    _refuse_what_is_missing(config)
    made, joined, pid = _namespaces(config.linux.namespaces, sources.namespaces)
    users = _users(config.linux, sources.namespaces)
    flags = 0
    for kind in ["mount"] if users else made:
        flags |= _CLONE.get(kind, 0)
    operations = [
        *([op.JoinCgroups(sources=list(sources.cgroups))] if sources.cgroups else []),
        *_oom_score(config.process),
        *_enter(joined, made, users),
        *_own_namespaces(config, made),
        *_root(config, sources),
        op.StartSession(),
        *_streams(config.process, sources.streams, own_console=True, given=not users),
        *_close_paths(config.linux),
        op.ChangeRoot(),
        *_close_root(config),
        *_become(config.process, config.linux.seccomp),
    ]
    return Plan(flags, operations, pid)


def compile_exec(process: Process, seccomp: Seccomp | None, sources: ExecSources) -> Plan:
    """Return the plan of an extra process: the container's confinement, nothing of its set-up."""
    joined = [kind for kind in ("user", *_JOINED_FIRST, "mount") if kind in sources.kinds]
    operations = [
        *([op.JoinCgroups(sources=list(sources.cgroups))] if sources.cgroups else []),
        *_oom_score(process),
        op.JoinNamespaces(items=[], kinds=joined, pidfd=sources.pidfd),
        op.StartSession(),
        *_streams(process, sources.streams, own_console=False, given="user" not in sources.kinds),
        *_become(process, seccomp),
    ]
    pid = sources.pidfd if "pid" in sources.kinds else ""
    return Plan(0, operations, pid, watched=sources.watched)


def _refuse_what_is_missing(config: OciConfig) -> None:
    """E23: what was asked for and cannot be had fails here; it is never left out in silence."""
    linux, process = config.linux, config.process
    if process.apparmor_profile:
        raise Unsupported(
            f"AppArmor profile {process.apparmor_profile!r}: not enabled on this host"
        )
    if process.selinux_label or linux.mount_label:
        raise Unsupported(f"SELinux label {process.selinux_label!r}: not enabled on this host")
    if any(item.type == "time" for item in linux.namespaces):
        raise Unsupported("time namespaces are not supported by the namespaces engine yet")
    users = [item for item in linux.namespaces if item.type == "user"]
    if any(not item.path for item in users):
        raise Unsupported("a user namespace is the pod's: a container cannot make one of its own")
    if {bool(users)} != {bool(linux.uid_mappings), bool(linux.gid_mappings)}:
        raise Unsupported("linux.uidMappings and gidMappings go together with a user namespace")
    if not any(item.type == "mount" for item in linux.namespaces):
        raise InvalidArgument("linux.namespaces: a mount namespace is needed for a root of its own")


def _namespaces(
    wanted: tuple[Namespace, ...], sources: Mapping[str, str]
) -> tuple[list[str], list[list[str]], str]:
    """Return (kinds to make, [kind, source] to join, source of the pid namespace to be born in)."""
    made: list[str] = []
    joined: list[list[str]] = []
    pid = ""
    for item in wanted:
        if not item.path:
            made.append(item.type)
        elif item.path not in sources:
            raise InvalidArgument(f"namespace {item.type}: {item.path!r} was not opened")
        elif item.type == "user":
            continue
        elif item.type == "pid":
            pid = sources[item.path]
        else:
            joined.append([item.type, sources[item.path]])
    return made, joined, pid


def _users(linux: Linux, sources: Mapping[str, str]) -> str:
    """Return the source of the user namespace; ``""`` = the host's."""
    return next((sources[item.path] for item in linux.namespaces if item.type == "user"), "")


def _enter(joined: list[list[str]], made: list[str], users: str) -> Iterator[Operation]:
    """The user namespace first: it shall own what is made. What takes the host's rights came before."""
    if users:
        yield op.EnterUserNamespace(
            source=users, kinds=[kind for kind in made if kind not in _LATE]
        )
    if joined:
        yield op.JoinNamespaces(items=joined, kinds=[], pidfd="")
    late = [kind for kind in made if kind in _LATE]
    if late:
        yield op.Unshare(kinds=late)


def _own_namespaces(config: OciConfig, made: list[str]) -> Iterator[Operation]:
    if (config.hostname or config.domainname) and "uts" in made:
        yield op.SetHostname(hostname=config.hostname, domainname=config.domainname)
    if config.linux.sysctl:
        yield op.SetSysctls(values=_sysctls(config.linux))


def _sysctls(linux: Linux) -> dict[str, str]:
    """E9: a parameter that belongs to no namespace which the config makes or joins is the host's."""
    kinds = {item.type for item in linux.namespaces}
    own = any(item.type == "uts" and not item.path for item in linux.namespaces)
    return checked_sysctls(
        linux.sysctl,
        host_network="network" not in kinds,
        host_ipc="ipc" not in kinds,
        extra_allowed=_UTS_SYSCTLS if own else frozenset(),
    )


def _oom_score(process: Process) -> Iterator[Operation]:
    if process.oom_score_adj is not None:
        yield op.SetOomScore(value=process.oom_score_adj, best_effort=True)


def _root(config: OciConfig, sources: Sources) -> Iterator[Operation]:
    yield op.AttachRoot(source=sources.root)
    targets = [container_path(item.destination, "mounts.destination") for item in config.mounts]
    if "/dev" not in targets:
        yield from _devices(config, sources)
    for mount, target in zip(config.mounts, targets, strict=True):
        yield _mount(mount, target, sources)
        if target == "/dev" and mount.type == "tmpfs":
            # Right after it, so that a volume on one of them wins; a bound /dev is left as it is.
            yield from _devices(config, sources)
    for device in config.linux.devices:
        if not _in_dev(device):
            yield from _device(device, sources)
    if config.process.cwd not in ("", "/"):
        yield op.MakeDirectory(path=config.process.cwd, mode=0o755)


def _devices(config: OciConfig, sources: Sources) -> Iterator[Operation]:
    for device in (*DEFAULT_DEVICES, *filter(_in_dev, config.linux.devices)):
        yield from _device(device, sources)
    for path, target in _DEV_LINKS:
        yield op.MakeLink(path=path, target=target)


def _in_dev(device: OciDevice) -> bool:
    return device.path.startswith("/dev/")


def bound_nodes(config: OciConfig) -> tuple[bool, tuple[OciDevice, ...]]:
    """Return what a launch into a user namespace needs: a ready ``/dev`` or not, and nodes to bind."""
    kinds = [item.type for item in config.mounts if item.destination == "/dev"]
    if kinds:
        return "tmpfs" in kinds, tuple(each for each in config.linux.devices if not _in_dev(each))
    return False, (*DEFAULT_DEVICES, *config.linux.devices)


def _mount(mount: OciMount, target: str, sources: Sources) -> Operation:
    if mount.destination in sources.mounts:
        opened = sources.mounts[mount.destination]
        return op.AttachMount(source=opened.source, target=target, is_directory=opened.is_directory)
    if target == "/dev" and mount.type == "tmpfs" and sources.dev:
        return op.AttachMount(source=sources.dev, target=target, is_directory=True)
    options = parse_mount_options(mount.options, target)
    if options.bind or not mount.type or mount.type == "bind":
        raise InvalidArgument(f"mount {target}: its source {mount.source!r} was not opened")
    if mount.uid_mappings or mount.gid_mappings:
        raise Unsupported(f"mount {target}: only bind mounts can be idmapped")
    attributes = options.set_ | options.recursive_set
    if mount.type != "cgroup":
        data: list[list[str | None]] = [[key, value] for key, value in options.data]
        return op.MountNew(
            fstype=mount.type, target=target, options=data, attributes=_early(target, attributes)
        )
    if sources.cgroup_view.version == 2:
        return op.MountNew(fstype="cgroup2", target=target, options=[], attributes=attributes)
    hierarchies = [
        [directory, list(names), list(links)]
        for directory, names, links in sources.cgroup_view.hierarchies
    ]
    return op.MountCgroups(target=target, hierarchies=hierarchies, attributes=attributes)


def _early(target: str, attributes: int) -> int:
    """Devices and mount points are still to be made in ``/dev``: it is closed later."""
    return attributes & ~RDONLY if target == "/dev" else attributes


def _device(device: OciDevice, sources: Sources) -> Iterator[Operation]:
    if device.path in sources.nodes:
        source = sources.nodes[device.path]
        yield op.AttachMount(source=source, target=device.path, is_directory=False)
        return
    if sources.dev and _in_dev(device):
        return
    yield op.MakeDevice(
        path=device.path,
        kind=device.type,
        major=device.major,
        minor=device.minor,
        mode=0o666 if device.file_mode is None else device.file_mode,
        uid=device.uid or 0,
        gid=device.gid or 0,
    )


def _streams(
    process: Process, streams: Streams, *, own_console: bool, given: bool
) -> Iterator[Operation]:
    """``given``: to the program's user; in a user namespace that takes the host's rights, and is done before."""
    if process.terminal:
        height, width = process.console_size or (0, 0)
        yield op.OpenTerminal(
            console=streams.console,
            width=width,
            height=height,
            uid=process.user.uid,
            bind_console=own_console,
        )
        return
    yield op.UseStdio(
        stdin=streams.stdin,
        stdout=streams.stdout,
        stderr=streams.stderr,
        uid=process.user.uid if given else -1,
    )


def _close_paths(linux: Linux) -> Iterator[Operation]:
    """While the launcher's root is still there: its null device is what files are masked with (E4)."""
    if linux.readonly_paths:
        yield op.ReadOnlyPaths(paths=list(linux.readonly_paths))
    if linux.masked_paths:
        yield op.MaskPaths(paths=list(linux.masked_paths))


def _close_root(config: OciConfig) -> Iterator[Operation]:
    closed = [
        "/dev"
        for item in config.mounts
        if item.destination == "/dev" and "ro" in item.options and item.type == "tmpfs"
    ]
    if config.root_readonly:
        closed.append("/")
    if closed:
        yield op.ReadOnlyMounts(paths=closed)
    propagation = parse_propagation(config.linux.rootfs_propagation)
    if propagation:
        yield op.SetPropagation(propagation=propagation)


def _become(process: Process, seccomp: Seccomp | None) -> Iterator[Operation]:
    user = process.user
    if process.rlimits:
        limits = [_rlimit(item) for item in process.rlimits]
        yield op.SetLimits(limits=limits, best_effort=True)
    yield op.CloseDescriptors()
    yield op.SetUser(
        uid=user.uid,
        gid=user.gid,
        groups=list(user.additional_gids),
        umask=_UMASK if user.umask is None else user.umask,
    )
    yield op.ChangeDirectory(path=process.cwd or "/")
    yield _capabilities(process.capabilities or _NO_CAPABILITIES)
    if process.no_new_privileges:
        yield op.SetNoNewPrivileges()
    if seccomp is not None:
        program = base64.b64encode(compile_filter(seccomp)).decode()
        yield op.LoadSeccomp(program=program, flags=filter_flags(seccomp))
    if not process.args:
        raise InvalidArgument("process.args: must name a program")
    yield op.Execute(args=list(process.args), env=list(process.env), search=True)


def _capabilities(sets: CapabilitySets) -> Operation:
    return op.SetCapabilities(
        bounding=_mask(sets.bounding),
        effective=_mask(sets.effective),
        permitted=_mask(sets.permitted),
        inheritable=_mask(sets.inheritable),
        ambient=_mask(sets.ambient),
    )


def _mask(names: tuple[str, ...]) -> int:
    """Names that are not the kernel's are left out (runtime-spec 1.1: warn; the builder did)."""
    mask = 0
    for name in names:
        mask |= _BIT.get(name, 0)
    return mask


def _rlimit(item: Rlimit) -> list[int]:
    number = getattr(resource, item.type, None) if item.type.startswith("RLIMIT_") else None
    if not isinstance(number, int):
        raise InvalidArgument(f"process.rlimits: {item.type!r} is no resource limit of Linux")
    if item.soft > item.hard:
        raise InvalidArgument(f"process.rlimits {item.type}: soft {item.soft} exceeds {item.hard}")
    return [number, _limit(item.soft), _limit(item.hard)]


def _limit(value: int) -> int:
    """2⁶⁴-1 is the kernel's word for no limit, -1 is Python's."""
    return -1 if value < 0 or value >= (1 << 63) else value
