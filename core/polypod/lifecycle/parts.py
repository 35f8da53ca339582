"""What the composition root hands to the heart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from polypod.lifecycle.clock import Clock, SystemClock
from polypod.lifecycle.ports import (
    ConfigBuilder,
    HookCalls,
    Interfaces,
    Logs,
    StreamUrls,
    Telemetry,
)
from polypod.lifecycle.views import HandlerView
from polypod.plugin.images import ImageStore
from polypod.plugin.network import Network
from polypod.plugin.runtime import MetricGroup, RuntimeBackend, RuntimeType
from polypod.plugin.services import Supervisor
from polypod.store.database import Database


@dataclass(frozen=True, slots=True)
class Handler:
    """One configured runtime handler with its opened backend."""

    name: str
    type: RuntimeType
    backend: RuntimeBackend
    image_store: ImageStore


@dataclass(frozen=True, slots=True)
class Settings:
    """Time limits in seconds, and sizes."""

    run_s: float = 240.0
    """A whole RunPodSandbox: the kubelet's own limit."""
    create_s: float = 120.0
    """A whole CreateContainer or StartContainer."""
    undo_s: float = 30.0
    """Each single undo step."""
    kill_s: float = 10.0
    """From SIGKILL until the backend must have told the exit."""
    drain_s: float = 5.0
    """From the exit until what the container wrote must be in its log."""
    close_s: float = 10.0
    """For calls in flight when the server stops."""
    resync_s: float = 1.0
    """Before a broken event stream is opened again."""
    events_behind: int = 1000
    """Events that a reader of GetContainerEvents may be behind before its stream is ended (A14)."""
    metric_groups: frozenset[MetricGroup] = frozenset(MetricGroup)
    """Of ListPodSandboxMetrics."""
    stats_s: float = 10.0
    """Between background samples."""
    exec_output_bytes: int = 8 * 1024 * 1024 - 1024
    """Of stdout and of stderr of one ExecSync, so that both fit a 16 MiB answer (A1)."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that `polypod.lifecycle.core.Core` is made of."""

    handlers: Mapping[str, Handler]
    default_handler: str
    image_store: ImageStore
    """The default store: where PullImage without a handler puts images."""
    network: Network
    supervisor: Supervisor
    logs: Logs
    hooks: HookCalls
    builder: ConfigBuilder
    urls: StreamUrls
    database: Database
    root: Path
    """Survives a reboot; own directories below it exist with mode 0700."""
    state: Path
    """Dies with the boot."""
    cgroup_parent: str = "/polypod"
    state_files: Path | None = None
    telemetry: Telemetry | None = None
    interfaces: Interfaces | None = None
    """None: pods have no interfaces that anybody counts."""
    clock: Clock = field(default_factory=SystemClock)
    settings: Settings = Settings()
    failpoints: str = ""
    """Rules in the grammar of `polypod.lifecycle.failpoints`."""
    unusable_handlers: tuple[HandlerView, ...] = ()
    """Configured ones that could not be opened: named in Status and in "no such handler"."""
