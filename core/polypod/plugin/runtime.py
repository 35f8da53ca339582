"""The contract of a runtime backend: one descriptor, one required Protocol, small optional ones.

A plugin answers `Hooks.polypod_runtime_types` with `RuntimeType` descriptors. Configuration maps each
runtime handler to a type and options; core opens the type once per handler and calls the object.

Terms. A *sandbox* is the pod's isolation (namespaces, a VM, nothing). A *container* is created, then
started, killed, deleted: the OCI lifecycle. Core owns ids, names, states, logs, networks, images; the
backend owns isolation alone. Every method is safe to repeat after a crash of the daemon:
``stop_sandbox``, ``remove_sandbox`` and ``delete`` of something unknown succeed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from polypod.plugin.ids import ContainerId, ExecId, SandboxId
from polypod.plugin.requests import ContainerConfig, Resources, SandboxConfig

if TYPE_CHECKING:
    from polypod.plugin.oci import OciConfig, Process
    from polypod.plugin.rootfs import Rootfs, RootfsForm
    from polypod.plugin.services import (
        ExitStatus,
        SandboxNamespaces,
        Session,
        Stdio,
        Supervisor,
    )


class Feature(StrEnum):
    """What a backend may be able to do; anything not declared is refused before it is asked."""

    HOST_NETWORK = "host-network"
    HOST_PID = "host-pid"
    HOST_IPC = "host-ipc"
    SHARED_PID = "shared-pid"
    TARGET_PID = "target-pid"
    PRIVILEGED = "privileged"
    DEVICES = "devices"
    HOST_PATH_MOUNTS = "host-path-mounts"
    BIDIRECTIONAL_MOUNTS = "bidirectional-mounts"
    RECURSIVE_READ_ONLY = "recursive-read-only"
    IMAGE_VOLUMES = "image-volumes"
    USER_NAMESPACES = "user-namespaces"
    SECCOMP = "seccomp"
    APPARMOR = "apparmor"
    SELINUX = "selinux"
    SYSCTLS = "sysctls"
    RESOURCES = "resources"
    TTY = "tty"


@dataclass(frozen=True, slots=True)
class RuntimeContext:
    """What an opened backend is given, and all that it may use of core."""

    handler: str
    """The name in the request that leads here; one backend object per handler."""
    options: Mapping[str, object]
    """``[handlers.NAME.options]``, unparsed: each type checks its own."""
    root: Path
    """This handler's own directory that survives a reboot (mode 0700, exists)."""
    state: Path
    """This handler's own directory that dies with the boot (mode 0700, exists)."""
    cgroup_parent: str
    """Below this path of every hierarchy everything is ours, nothing above it."""
    supervisor: Supervisor


@dataclass(frozen=True, slots=True)
class RuntimeType:
    """What a plugin offers: static facts that core needs before it opens anything."""

    name: str
    summary: str
    """One line for `polypod plugins`."""
    open: Callable[[RuntimeContext], Awaitable[RuntimeBackend]]
    rootfs_forms: tuple[RootfsForm, ...]
    """Forms that it accepts, best first."""
    features: frozenset[Feature] = frozenset()
    sandbox_namespaces: frozenset[str] = frozenset()
    """Kinds that core shall make for a sandbox (``network ipc uts pid``); without ``network`` the
    sandbox has no address of its own."""
    platforms: tuple[str, ...] = ()
    """``os/arch`` whose images it runs; empty = the host's."""
    unusable: str = ""
    """Why this host cannot run it; ``""`` = it can."""
    exceptions: Mapping[str, str] = field(default_factory=dict)
    """Contract checks that it does not pass by design → the reason; printed in a generated table."""


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """All that a backend is told of a sandbox."""

    id: SandboxId
    config: SandboxConfig
    namespaces: SandboxNamespaces | None
    """Made by core as `RuntimeType.sandbox_namespaces` and the request ask."""
    directory: Path
    """The sandbox's own directory below ``state``: hostname, hosts, resolv.conf, shm."""
    cgroup: str
    """Path below every hierarchy, for the sandbox; containers live below it."""


@dataclass(frozen=True, slots=True)
class ImageVolume:
    """An image that a container has as a read-only volume."""

    rootfs: Rootfs
    """Of the volume alone: what is written there is seen by nobody else."""
    sub_path: str = ""
    """What of it is mounted, resolved beneath its root; ``""`` = all."""


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """All that a backend is told of a container; ``config`` has passed every adjust hook."""

    id: ContainerId
    sandbox: SandboxSpec
    request: ContainerConfig
    config: OciConfig
    rootfs: Rootfs
    stdio: Stdio
    directory: Path
    """The container's own directory below ``state`` (the bundle: ``config.json``)."""
    cgroup: str
    image_volumes: Mapping[str, ImageVolume] = field(default_factory=dict)
    """Destination of a mount whose source is ``image:…`` → what is mounted there."""


class BackendState(Enum):
    """The states of the OCI runtime-spec."""

    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """What the backend knows of a container right now."""

    id: ContainerId
    sandbox_id: SandboxId
    state: BackendState
    pid: int | None = None
    """On the host, if it has one."""
    exit: ExitStatus | None = None
    oom_killed: bool = False


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything alive that carries our ids: recovery compares it with the records."""

    sandboxes: Mapping[SandboxId, bool]
    """Id → still healthy (its holder lives)."""
    containers: Mapping[ContainerId, BackendStatus]


@dataclass(frozen=True, slots=True)
class ContainerExited:
    """A container's first process is gone."""

    container_id: ContainerId
    status: ExitStatus
    oom_killed: bool = False


@dataclass(frozen=True, slots=True)
class SandboxDied:
    """What holds a sandbox together (an init, a VM) is gone without being asked."""

    sandbox_id: SandboxId
    reason: str


BackendEvent = ContainerExited | SandboxDied


class RuntimeBackend(Protocol):
    """What every backend can do. All methods raise errors of `polypod.plugin.errors` or OSError."""

    async def create_sandbox(self, spec: SandboxSpec, /) -> None:
        """Make the pod's isolation. On failure nothing is left behind.

        Raises:
            Unsupported: the request asks for what this backend cannot do; before anything is made.
        """
        ...

    async def stop_sandbox(self, sandbox_id: SandboxId, /) -> None:
        """End everything that still runs in it. Idempotent; unknown ids succeed."""
        ...

    async def remove_sandbox(self, sandbox_id: SandboxId, /) -> None:
        """Give back everything. Idempotent; unknown ids succeed."""
        ...

    async def create(self, spec: ContainerSpec, /) -> None:
        """Prepare a container up to, not including, the user's program (runtime-spec, create).

        Called together with `start` inside CRI's StartContainer. On failure nothing is left.
        """
        ...

    async def start(self, container_id: ContainerId, /) -> BackendStatus:
        """Execute the user's program; returns once execve has succeeded.

        Raises:
            BackendError: the program could not be executed; the text is shown to the user.
        """
        ...

    async def kill(self, container_id: ContainerId, signal: int, /, *, whole: bool = False) -> None:
        """Signal the first process, or (``whole``) every process of the container.

        A container that is gone already is no error.
        """
        ...

    async def delete(self, container_id: ContainerId, /) -> None:
        """Give back what `create` made. Idempotent; the container is stopped before, by core."""
        ...

    async def update(self, container_id: ContainerId, resources: Resources, /) -> None:
        """Change limits of a created or running container, all or none."""
        ...

    async def status(self, container_id: ContainerId, /) -> BackendStatus:
        """Return the state. NotFound if unknown."""
        ...

    async def list(self) -> Inventory:
        """Return everything alive; called at start and after an event stream broke."""
        ...

    def events(self) -> AsyncIterator[BackendEvent]:
        """Yield what happens without being asked, each once."""
        ...

    async def close(self) -> None:
        """Let go of connections; workloads go on."""
        ...


@runtime_checkable
class Checkpointable(Protocol):
    """A backend that can write down what runs, and go on from it."""

    async def freeze(self, container_ids: Sequence[ContainerId], /) -> None:
        """Let running containers stand still, all of them or none."""
        ...

    async def thaw(self, container_ids: Sequence[ContainerId], /) -> None:
        """Let them go on. Idempotent; what is not frozen, or gone, stays as it is."""
        ...

    async def capture(self, container_id: ContainerId, directory: Path, /) -> None:
        """Write a frozen container into an empty directory: regular files and directories alone.

        Not the root file system: that is the image store's.

        Raises:
            FailedPrecondition: this container, or this host, cannot be captured; the text says why.
        """
        ...

    async def restore(self, spec: ContainerSpec, directory: Path, /) -> None:
        """Do what `RuntimeBackend.create` does, so that `start` goes on from what was captured.

        Everything but the program's own state comes from ``spec``: the files may be hostile. The directory
        stays until the container is removed.

        Raises:
            InvalidArgument: the files are not what `capture` writes.
        """
        ...


@runtime_checkable
class Narrowed(Protocol):
    """Optional: what a handler can do depends on its options, such as the binary that it runs."""

    @property
    def features(self) -> frozenset[Feature]:
        """Those of the type's features that this handler has; the others are refused as if not declared."""
        ...


@dataclass(frozen=True, slots=True)
class PodResources:
    """What a whole pod may take, as UpdatePodSandboxResources tells it."""

    resources: Resources | None = None
    """The sum of its containers' limits."""
    overhead: Resources | None = None
    """What running the pod costs beside them."""


@runtime_checkable
class Resizable(Protocol):
    """Optional: change what a whole sandbox may take while it runs."""

    async def resize(self, sandbox_id: SandboxId, limits: PodResources, /) -> None:
        """Set the sandbox's own limits to the sum of both, all or none; 0 leaves a limit as it is.

        Raises:
            NotFound: no such sandbox.
            BackendError: the host refused; the old limits hold.
        """
        ...


@dataclass(frozen=True, slots=True)
class ExecSpec:
    """An extra process in a running container."""

    id: ExecId
    container_id: ContainerId
    process: Process
    stdio: Stdio
    config: OciConfig
    """The container's own: an exec has no more rights than it (E7, E16)."""


@runtime_checkable
class Execs(Protocol):
    """Optional: run extra processes."""

    async def exec(self, spec: ExecSpec, /) -> Session:
        """Run a process with the container's confinement in a child cgroup of its own."""
        ...


@dataclass(frozen=True, slots=True)
class PressureLine:
    """One line of a pressure file: shares of the last 10, 60 and 300 s in percent, and time in all."""

    avg10: float = 0.0
    avg60: float = 0.0
    avg300: float = 0.0
    total_ns: int = 0


@dataclass(frozen=True, slots=True)
class Pressure:
    """For how long some, and all, of the tasks waited for a resource (kernel, PSI)."""

    some: PressureLine = PressureLine()
    full: PressureLine = PressureLine()


@dataclass(frozen=True, slots=True)
class ContainerUsage:
    """Counters of one container, or of a whole sandbox, at one moment; None = not known here."""

    timestamp_ns: int
    cpu_usage_core_ns: int | None = None
    memory_usage_bytes: int | None = None
    memory_working_set_bytes: int | None = None
    memory_rss_bytes: int | None = None
    memory_page_faults: int | None = None
    memory_major_page_faults: int | None = None
    memory_available_bytes: int | None = None
    swap_usage_bytes: int | None = None
    swap_available_bytes: int | None = None
    processes: int | None = None
    cpu_pressure: Pressure | None = None
    memory_pressure: Pressure | None = None
    io_pressure: Pressure | None = None
    source: str = ""
    """Who counted: ``cgroup``, ``guest cgroup``, ``hypervisor``, ``simulation`` …"""


@runtime_checkable
class StatsSource(Protocol):
    """Optional: counters."""

    async def stats(
        self, container_ids: Sequence[ContainerId], /
    ) -> Mapping[ContainerId, ContainerUsage]:
        """Return counters of those that are alive; the others are left out."""
        ...


class MetricGroup(StrEnum):
    """Groups of the metrics of pods; ``metrics.pod_groups`` of the configuration chooses."""

    CPU = "cpu"
    MEMORY = "memory"
    NETWORK = "network"
    DISK = "disk"
    DISK_IO = "disk-io"
    PROCESS = "process"
    OOM = "oom"
    PRESSURE = "pressure"
    SPEC = "spec"


@dataclass(frozen=True, slots=True)
class DeviceIo:
    """What a container has read from and written to one block device."""

    name: str
    """``/dev/NAME`` where it has one."""
    number: str
    """``major:minor``."""
    reads: int = 0
    read_bytes: int = 0
    writes: int = 0
    write_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ContainerDetail:
    """Counters of one container that only metrics have; None = not known, or not asked for."""

    timestamp_ns: int
    cpu_user_ns: int | None = None
    cpu_system_ns: int | None = None
    cpu_periods: int | None = None
    cpu_throttled_periods: int | None = None
    cpu_throttled_ns: int | None = None
    memory_cache_bytes: int | None = None
    memory_mapped_file_bytes: int | None = None
    memory_kernel_bytes: int | None = None
    memory_max_usage_bytes: int | None = None
    memory_limit_hits: int | None = None
    oom_kills: int | None = None
    processes: int | None = None
    """Processes; `ContainerUsage.processes` counts their threads where the kernel's counter does."""
    threads_max: int | None = None
    """0 = no limit, as cAdvisor tells it."""
    file_descriptors: int | None = None
    sockets: int | None = None
    soft_files: int | None = None
    io: tuple[DeviceIo, ...] = ()


@runtime_checkable
class MetricsSource(Protocol):
    """Optional: counters beyond `StatsSource`, for those who ask for metrics."""

    async def details(
        self, container_ids: Sequence[ContainerId], groups: frozenset[MetricGroup], /
    ) -> Mapping[ContainerId, ContainerDetail]:
        """Return what these groups need of containers that are alive; the others are left out."""
        ...


@runtime_checkable
class SandboxStatsSource(Protocol):
    """Optional: counters of whole sandboxes, as the host pays for them."""

    async def sandbox_stats(
        self, sandbox_ids: Sequence[SandboxId], /
    ) -> Mapping[SandboxId, ContainerUsage]:
        """Return counters of those that are there; the others are left out.

        What runs the pod counts: a hypervisor's process, not only the containers. Called for all
        sandboxes at once, so one pass over all is worth more than one question for each.
        """
        ...


@runtime_checkable
class Forwards(Protocol):
    """Optional: port-forward of sandboxes whose localhost is not that of their network namespace.

    Without it core connects from inside the namespace, which is right for everything but a machine of
    its own.
    """

    async def forward(self, sandbox_id: SandboxId, port: int, /) -> int:
        """Return a stream socket that leads to a TCP port of the sandbox's localhost.

        IPv4 is tried first, then IPv6. The descriptor belongs to the caller; closing one direction of it
        closes that direction of the connection inside.

        Raises:
            BackendError: nobody listens there.
        """
        ...
