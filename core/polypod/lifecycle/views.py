"""What lifecycle answers: plain values that the api room encodes, never live objects.

Spec:
    kubernetes/cri-api api.proto; semantics in ARCHITECTURE.md, "Answers come from the record".
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path
from typing import Protocol

from polypod.plugin.ids import ContainerId, ImageId, SandboxId
from polypod.plugin.images import FilesystemUsage, Image, PullProgress
from polypod.plugin.requests import (
    Auth,
    ContainerConfig,
    Resources,
    SandboxConfig,
)
from polypod.plugin.runtime import ContainerUsage, Feature


class SandboxState(StrEnum):
    """CREATING is never listed; UNKNOWN is reported as NOTREADY."""

    CREATING = "creating"
    READY = "ready"
    NOT_READY = "not-ready"
    UNKNOWN = "unknown"
    REMOVED = "removed"


class ContainerState(StrEnum):
    """CREATING is never listed."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"
    UNKNOWN = "unknown"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class SandboxView:
    """One sandbox as committed."""

    id: SandboxId
    config: SandboxConfig
    state: SandboxState
    created_at_ns: int
    handler: str
    """As requested (CRI reports this one)."""
    chosen_handler: str
    """The one that placement chose."""
    ips: tuple[str, ...] = ()
    """Empty for the host's network, and once the network is torn down."""
    containers: tuple[ContainerView, ...] = ()
    """Its containers, where a status was asked for."""
    at_ns: int = 0
    """When that was, on the clock of the events."""
    info: Mapping[str, object] = field(default_factory=dict)
    """JSON values for a verbose status: chosen handler, directories, explain record, backend facts."""


@dataclass(frozen=True, slots=True)
class ContainerView:
    """One container as committed."""

    id: ContainerId
    sandbox_id: SandboxId
    config: ContainerConfig
    state: ContainerState
    image_id: ImageId
    image_ref: str
    """Repo digest where there is one, else the image id."""
    created_at_ns: int
    log_path: Path
    """Always absolute, always inside a directory of the pod or of ours."""
    started_at_ns: int = 0
    finished_at_ns: int = 0
    exit_code: int = 0
    reason: str = ""
    """``Completed``, ``Error``, ``OOMKilled``, ``StartError``, ``Unknown``."""
    message: str = ""
    resources: Resources | None = None
    """What is in force now, after updates."""
    stop_signal: int = 15
    user: tuple[int, int, tuple[int, ...]] | None = None
    """uid, gid, supplementary groups really used."""
    pid: int | None = None
    volume_images: Mapping[str, ImageId] = field(default_factory=dict)
    """Path of a mounted image → its id, as a pull answers it."""
    info: Mapping[str, object] = field(default_factory=dict)


class EventKind(Enum):
    """What an event tells; the numbers are CRI's."""

    CREATED = 0
    STARTED = 1
    STOPPED = 2
    DELETED = 3


@dataclass(frozen=True, slots=True)
class EventView:
    """Something that happened to a container, or to a sandbox: then both ids are the same."""

    object_id: str
    kind: EventKind
    at_ns: int
    """Comparable with `SandboxView.at_ns`, never the same twice."""
    sandbox: SandboxView
    containers: tuple[ContainerView, ...]
    """Of the sandbox, at that moment."""


@dataclass(frozen=True, slots=True)
class Filter:
    """ListPodSandbox and ListContainers filters, ANDed; states None = any. Id prefixes count."""

    id: str = ""
    sandbox_id: str = ""
    state: str = ""
    """A `SandboxState` or `ContainerState` value; ``""`` = any."""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StatsView:
    """One container's counters with its identity, as ContainerStats wants them."""

    container: ContainerView
    usage: ContainerUsage | None
    usage_nano_cores: int | None
    """None until two samples exist: never a zero that nobody measured."""
    writable_layer: FilesystemUsage | None


@dataclass(frozen=True, slots=True)
class Interface:
    """One network interface inside a pod, and what it has counted: rx is what the pod received."""

    name: str
    rx_bytes: int = 0
    rx_packets: int = 0
    rx_errors: int = 0
    rx_dropped: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    tx_errors: int = 0
    tx_dropped: int = 0


@dataclass(frozen=True, slots=True)
class PodStatsView:
    """One pod's counters."""

    sandbox: SandboxView
    usage: ContainerUsage | None
    usage_nano_cores: int | None
    interfaces: tuple[Interface, ...] | None
    """None where the pod has no network of its own."""
    read_at_ns: int
    containers: tuple[StatsView, ...]

    @property
    def default_interface(self) -> Interface | None:
        """``eth0``, else the first."""
        found = self.interfaces or ()
        return next((each for each in found if each.name == "eth0"), found[0] if found else None)


@dataclass(frozen=True, slots=True)
class MetricDescriptor:
    """What a metric is called, and the labels of its series, in order."""

    name: str
    help: str
    label_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MetricView:
    """One figure of one series."""

    name: str
    counter: bool
    label_values: tuple[str, ...]
    """In the order of the descriptor's keys."""
    value: int
    at_ns: int


@dataclass(frozen=True, slots=True)
class PodMetricsView:
    """One pod's metrics."""

    sandbox_id: SandboxId
    metrics: tuple[MetricView, ...]
    containers: Mapping[ContainerId, tuple[MetricView, ...]]


@dataclass(frozen=True, slots=True)
class Census:
    """How many of what there is; by handler and state."""

    sandboxes: Mapping[tuple[str, str], int]
    containers: Mapping[tuple[str, str], int]
    event_readers: int = 0
    event_readers_lost: int = 0


@dataclass(frozen=True, slots=True)
class ExecResult:
    """ExecSync's answer."""

    stdout: bytes
    stderr: bytes
    exit_code: int


@dataclass(frozen=True, slots=True)
class StreamChoice:
    """Which streams a client of exec or attach wants; a terminal has no stderr of its own."""

    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    tty: bool = False


@dataclass(frozen=True, slots=True)
class Condition:
    """One of Status' conditions."""

    type: str
    status: bool
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class HandlerView:
    """One configured handler; unusable ones are not announced in CRI but shown by `polypod plugins`."""

    name: str
    type: str
    is_default: bool
    features: frozenset[Feature]
    unusable: str = ""


@dataclass(frozen=True, slots=True)
class StatusView:
    """Status: conditions, handlers, runtime features, and JSON values for verbose."""

    conditions: tuple[Condition, ...]
    handlers: tuple[HandlerView, ...]
    supplemental_groups_policy: bool
    info: Mapping[str, object] = field(default_factory=dict)


class EventReader(Protocol):
    """A subscription to what happens; whoever opened it must `close` it."""

    def events(self) -> AsyncIterator[EventView]:
        """Yield events as they come. ResourceExhausted: some are lost. Unavailable: the server leaves."""
        ...

    def close(self) -> None:
        """Listen no more. Idempotent."""
        ...


class Lifecycle(Protocol):
    """Everything that the wire may ask of the heart; `polypod.lifecycle.core.Core` implements it.

    Ids are what the client sent: full ids or unique prefixes. Errors are those of
    `polypod.plugin.errors`. Until recovery has ended every method raises `Unavailable`.
    The obligations of each method are those of its RPC in ``proto/runtime/v1/api.proto``.
    """

    async def run_sandbox(self, config: SandboxConfig, handler: str, /) -> SandboxId: ...
    async def stop_sandbox(self, sandbox_id: str, /) -> None: ...
    async def remove_sandbox(self, sandbox_id: str, /) -> None: ...
    async def sandbox_status(self, sandbox_id: str, /, *, verbose: bool = False) -> SandboxView: ...
    async def list_sandboxes(self, filter_: Filter, /) -> Sequence[SandboxView]: ...
    async def create_container(
        self, sandbox_id: str, config: ContainerConfig, sandbox_config: SandboxConfig | None, /
    ) -> ContainerId: ...
    async def start_container(self, container_id: str, /) -> None: ...
    async def stop_container(self, container_id: str, timeout_s: float, /) -> None: ...
    async def remove_container(self, container_id: str, /) -> None: ...
    async def container_status(
        self, container_id: str, /, *, verbose: bool = False
    ) -> ContainerView: ...
    async def list_containers(self, filter_: Filter, /) -> Sequence[ContainerView]: ...
    async def update_container(
        self,
        container_id: str,
        resources: Resources,
        annotations: Mapping[str, str] | None = None,
        /,
    ) -> None: ...
    async def update_sandbox(
        self, sandbox_id: str, overhead: Resources | None, resources: Resources | None, /
    ) -> None: ...
    async def exec_sync(
        self, container_id: str, command: Sequence[str], timeout_s: float, /
    ) -> ExecResult: ...
    async def exec_url(
        self, container_id: str, command: Sequence[str], choice: StreamChoice, /
    ) -> str: ...
    async def attach_url(self, container_id: str, choice: StreamChoice, /) -> str: ...
    async def forward_url(self, sandbox_id: str, ports: Sequence[int], /) -> str: ...
    async def checkpoint_container(
        self, container_id: str, location: str, timeout_s: float, /
    ) -> None: ...
    async def checkpoint_pod(
        self,
        sandbox_id: str,
        output: str,
        container_ids: Sequence[str],
        options: Mapping[str, str],
        /,
    ) -> None: ...
    async def restore_pod(
        self,
        checkpoint: str,
        config: SandboxConfig,
        handler: str,
        containers: Sequence[ContainerConfig],
        options: Mapping[str, str],
        /,
    ) -> tuple[SandboxId, Mapping[str, ContainerId]]: ...
    async def reopen_log(self, container_id: str, /) -> None: ...
    async def container_stats(self, container_id: str, /) -> StatsView: ...
    async def list_container_stats(self, filter_: Filter, /) -> Sequence[StatsView]: ...
    async def pod_stats(self, sandbox_id: str, /) -> PodStatsView: ...
    async def list_pod_stats(self, filter_: Filter, /) -> Sequence[PodStatsView]: ...
    def metric_descriptors(self) -> Sequence[MetricDescriptor]: ...
    async def list_metrics(self) -> Sequence[PodMetricsView]: ...
    def open_events(self) -> EventReader: ...
    async def update_runtime_config(self, pod_cidrs: Sequence[str], /) -> None: ...
    async def status(self, /, *, verbose: bool = False) -> StatusView: ...
    async def list_images(self, reference: str, /) -> Sequence[Image]: ...
    async def image_status(self, reference: str, /) -> Image | None: ...
    async def pull_image(self, reference: str, auth: Auth | None, /) -> Image: ...
    def pull_progress(self, reference: str, /) -> Sequence[PullProgress]: ...
    async def remove_image(self, reference: str, /) -> None: ...
    async def image_filesystems(self, /) -> tuple[FilesystemUsage, FilesystemUsage]: ...
