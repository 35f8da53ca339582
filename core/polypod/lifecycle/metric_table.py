"""The metrics of pods: name, labels and where the figure comes from, one row each.

Names, labels and units are cAdvisor's, because dashboards and autoscalers know those. CRI carries whole
numbers only, so seconds are cut.

Spec:
    kubernetes/cri-api api.proto, ListMetricDescriptors: descriptors do not change while a kubelet runs, and
    a metric's label values stand in the order of its descriptor's keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from polypod.lifecycle.views import ContainerView, Interface
from polypod.plugin.images import FilesystemUsage
from polypod.plugin.requests import Resources
from polypod.plugin.runtime import ContainerDetail, ContainerUsage, MetricGroup, Pressure

BASE_LABELS: Final = ("container", "id", "image", "name", "namespace", "pod")
"""Of every metric: the container's name, its cgroup, the image, the container's id, the pod's names."""
_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rows take their figures from: of one container, or of a whole pod."""

    usage: ContainerUsage | None
    detail: ContainerDetail
    container: ContainerView | None = None
    """None for the pod's own metrics."""
    interfaces: tuple[Interface, ...] = ()
    layer: FilesystemUsage | None = None
    at_ns: int = 0

    @property
    def resources(self) -> Resources | None:
        """The limits in force, of a container."""
        if self.container is None:
            return None
        return self.container.resources or self.container.config.resources


Figures = Iterable[tuple[tuple[str, ...], int | None]]
"""Further label values, and the figure; None = not known, so not told."""


@dataclass(frozen=True, slots=True)
class Row:
    """One metric."""

    group: MetricGroup
    name: str
    help: str
    figures: Callable[[Facts], Figures]
    labels: tuple[str, ...] = ()
    """Beside `BASE_LABELS`."""
    counter: bool = False
    """It only grows; else it is a gauge."""

    @property
    def label_keys(self) -> tuple[str, ...]:
        """All labels, in order."""
        return BASE_LABELS + self.labels


def _used(field: str, factor: int = 1) -> Callable[[Facts], Figures]:
    def figures(facts: Facts) -> Figures:
        value = getattr(facts.usage, field) if facts.usage is not None else None
        return [((), None if value is None else value // factor)]

    return figures


def _detail(field: str, factor: int = 1) -> Callable[[Facts], Figures]:
    def figures(facts: Facts) -> Figures:
        value = getattr(facts.detail, field)
        return [((), None if value is None else value // factor)]

    return figures


def _traffic(field: str) -> Callable[[Facts], Figures]:
    return lambda facts: [((each.name,), getattr(each, field)) for each in facts.interfaces]


def _io(field: str) -> Callable[[Facts], Figures]:
    return lambda facts: [((each.name,), getattr(each, field)) for each in facts.detail.io]


def _limit(field: str) -> Callable[[Facts], Figures]:
    def figures(facts: Facts) -> Figures:
        limits = facts.resources
        value = getattr(limits, field) if limits is not None else 0
        return [((), value if value > 0 else None)]

    return figures


def _waited(resource: str, line: str) -> Callable[[Facts], Figures]:
    def figures(facts: Facts) -> Figures:
        found: Pressure | None = getattr(facts.usage, f"{resource}_pressure", None)
        return [((), None if found is None else getattr(found, line).total_ns // _NS)]

    return figures


def _cpu(facts: Facts) -> Figures:
    value = facts.usage.cpu_usage_core_ns if facts.usage is not None else None
    return [(("total",), None if value is None else value // _NS)]


def _faults(facts: Facts) -> Figures:
    usage = facts.usage
    if usage is None:
        return []
    return [
        (("pgfault", "hierarchy"), usage.memory_page_faults),
        (("pgmajfault", "hierarchy"), usage.memory_major_page_faults),
    ]


def _blkio(facts: Facts) -> Figures:
    for each in facts.detail.io:
        major, _, minor = each.number.partition(":")
        yield (each.name, major, minor, "Read"), each.read_bytes
        yield (each.name, major, minor, "Write"), each.write_bytes


def _layer(field: str) -> Callable[[Facts], Figures]:
    def figures(facts: Facts) -> Figures:
        layer = facts.layer
        return [((str(layer.mountpoint),), getattr(layer, field))] if layer is not None else []

    return figures


def _started(facts: Facts) -> Figures:
    return [((), facts.container.started_at_ns // _NS)] if facts.container else []


def _seen(facts: Facts) -> Figures:
    return [((), facts.at_ns // _NS)] if facts.container else []


def _soft_files(facts: Facts) -> Figures:
    return [(("max_open_files",), facts.detail.soft_files)]


_G = MetricGroup


def _gauge(
    group: MetricGroup, name: str, text: str, figures: Callable[[Facts], Figures], *labels: str
) -> Row:
    return Row(group, name, text, figures, labels)


def _counter(
    group: MetricGroup, name: str, text: str, figures: Callable[[Facts], Figures], *labels: str
) -> Row:
    return Row(group, name, text, figures, labels, counter=True)


def _network() -> Sequence[Row]:
    rows = []
    for way, verb, short in (("receive", "received", "rx"), ("transmit", "transmitted", "tx")):
        for name, what, field in (
            ("bytes", "bytes", "bytes"),
            ("packets", "packets", "packets"),
            ("packets_dropped", "packets dropped while", "dropped"),
            ("errors", "errors while", "errors"),
        ):
            rows.append(
                Row(
                    _G.NETWORK,
                    f"container_network_{way}_{name}_total",
                    f"Number of {what} {verb} by the pod",
                    _traffic(f"{short}_{field}"),
                    ("interface",),
                    counter=True,
                )
            )
    return rows


def _pressure() -> Sequence[Row]:
    return [
        Row(
            _G.PRESSURE,
            f"container_pressure_{resource}_{name}_seconds_total",
            f"Seconds in which {who} waited for {resource}",
            _waited(resource, line),
            counter=True,
        )
        for resource in ("cpu", "memory", "io")
        for name, line, who in (
            ("waiting", "some", "some task"),
            ("stalled", "full", "every task"),
        )
    ]


ROWS: Final[tuple[Row, ...]] = (
    _counter(
        _G.CPU, "container_cpu_usage_seconds_total", "Cumulative cpu time consumed", _cpu, "cpu"
    ),
    _counter(
        _G.CPU,
        "container_cpu_user_seconds_total",
        "Cumulative user cpu time",
        _detail("cpu_user_ns", _NS),
    ),
    _counter(
        _G.CPU,
        "container_cpu_system_seconds_total",
        "Cumulative system cpu time",
        _detail("cpu_system_ns", _NS),
    ),
    _counter(
        _G.CPU,
        "container_cpu_cfs_periods_total",
        "Elapsed enforcement periods",
        _detail("cpu_periods"),
    ),
    _counter(
        _G.CPU,
        "container_cpu_cfs_throttled_periods_total",
        "Throttled periods",
        _detail("cpu_throttled_periods"),
    ),
    _counter(
        _G.CPU,
        "container_cpu_cfs_throttled_seconds_total",
        "Time for which it was throttled",
        _detail("cpu_throttled_ns", _NS),
    ),
    _gauge(
        _G.MEMORY,
        "container_memory_usage_bytes",
        "Memory in use, caches included",
        _used("memory_usage_bytes"),
    ),
    _gauge(
        _G.MEMORY,
        "container_memory_working_set_bytes",
        "Usage without inactive file pages",
        _used("memory_working_set_bytes"),
    ),
    _gauge(
        _G.MEMORY, "container_memory_rss", "Anonymous memory in bytes", _used("memory_rss_bytes")
    ),
    _gauge(_G.MEMORY, "container_memory_swap", "Swap in use in bytes", _used("swap_usage_bytes")),
    _gauge(
        _G.MEMORY, "container_memory_cache", "Page cache in bytes", _detail("memory_cache_bytes")
    ),
    _gauge(
        _G.MEMORY,
        "container_memory_mapped_file",
        "Mapped files in bytes",
        _detail("memory_mapped_file_bytes"),
    ),
    _gauge(
        _G.MEMORY,
        "container_memory_kernel_usage",
        "Kernel memory in bytes",
        _detail("memory_kernel_bytes"),
    ),
    _gauge(
        _G.MEMORY,
        "container_memory_max_usage_bytes",
        "Largest usage so far",
        _detail("memory_max_usage_bytes"),
    ),
    _counter(
        _G.MEMORY,
        "container_memory_failcnt",
        "How often the limit was hit",
        _detail("memory_limit_hits"),
    ),
    _counter(
        _G.MEMORY,
        "container_memory_failures_total",
        "Page faults",
        _faults,
        "failure_type",
        "scope",
    ),
    *_network(),
    _gauge(
        _G.DISK,
        "container_fs_usage_bytes",
        "Bytes of the writable layer",
        _layer("used_bytes"),
        "device",
    ),
    _gauge(
        _G.DISK,
        "container_fs_limit_bytes",
        "Size of the file system that holds the writable layer",
        _layer("limit_bytes"),
        "device",
    ),
    _gauge(
        _G.DISK,
        "container_fs_inodes_used",
        "Inodes of the writable layer",
        _layer("inodes_used"),
        "device",
    ),
    _gauge(
        _G.DISK,
        "container_fs_inodes_free",
        "Free inodes of the file system that holds the writable layer",
        _layer("inodes_free"),
        "device",
    ),
    _gauge(
        _G.DISK,
        "container_fs_inodes_total",
        "Inodes of the file system that holds the writable layer",
        _layer("inodes_total"),
        "device",
    ),
    _counter(_G.DISK_IO, "container_fs_reads_total", "Completed reads", _io("reads"), "device"),
    _counter(
        _G.DISK_IO, "container_fs_reads_bytes_total", "Bytes read", _io("read_bytes"), "device"
    ),
    _counter(_G.DISK_IO, "container_fs_writes_total", "Completed writes", _io("writes"), "device"),
    _counter(
        _G.DISK_IO, "container_fs_writes_bytes_total", "Bytes written", _io("write_bytes"), "device"
    ),
    _counter(
        _G.DISK_IO,
        "container_blkio_device_usage_total",
        "Bytes by device and operation",
        _blkio,
        "device",
        "major",
        "minor",
        "operation",
    ),
    _gauge(_G.PROCESS, "container_processes", "Processes running inside", _detail("processes")),
    _gauge(_G.PROCESS, "container_threads", "Threads running inside", _used("processes")),
    _gauge(
        _G.PROCESS,
        "container_threads_max",
        "Threads allowed inside; 0 = no limit",
        _detail("threads_max"),
    ),
    _gauge(
        _G.PROCESS,
        "container_file_descriptors",
        "Open file descriptors",
        _detail("file_descriptors"),
    ),
    _gauge(_G.PROCESS, "container_sockets", "Open sockets", _detail("sockets")),
    _gauge(
        _G.PROCESS,
        "container_ulimits_soft",
        "Soft limits of the first process",
        _soft_files,
        "ulimit",
    ),
    _counter(
        _G.OOM,
        "container_oom_events_total",
        "How often the kernel killed for memory",
        _detail("oom_kills"),
    ),
    *_pressure(),
    _gauge(
        _G.SPEC, "container_spec_cpu_period", "Cpu period in microseconds", _limit("cpu_period")
    ),
    _gauge(_G.SPEC, "container_spec_cpu_quota", "Cpu quota in microseconds", _limit("cpu_quota")),
    _gauge(_G.SPEC, "container_spec_cpu_shares", "Cpu shares", _limit("cpu_shares")),
    _gauge(
        _G.SPEC,
        "container_spec_memory_limit_bytes",
        "Memory limit",
        _limit("memory_limit_in_bytes"),
    ),
    _gauge(
        _G.SPEC,
        "container_spec_memory_swap_limit_bytes",
        "Limit of memory and swap",
        _limit("memory_swap_limit_in_bytes"),
    ),
    _gauge(_G.SPEC, "container_start_time_seconds", "Start time since the epoch", _started),
    _gauge(_G.SPEC, "container_last_seen", "When it was last seen by the server", _seen),
)
