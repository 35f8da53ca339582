"""Counters → protobuf answers. Absent stays absent: no zero that nobody measured.

Spec:
    ``proto/runtime/v1/api.proto``, ContainerStats and PodSandboxStats; the kubelet takes a zero for a
    figure, so ``usage_nano_cores`` is unset until there are two samples.
"""

from __future__ import annotations

from polypod.api import encode
from polypod.api.v1 import api_pb2 as pb
from polypod.lifecycle.views import (
    Interface,
    MetricDescriptor,
    MetricView,
    PodMetricsView,
    PodStatsView,
    StatsView,
)
from polypod.plugin.runtime import ContainerUsage, Pressure, PressureLine


def container(view: StatsView) -> pb.ContainerStats:
    """Return a container's counters."""
    c, usage = view.container, view.usage
    answer = pb.ContainerStats(
        attributes=pb.ContainerAttributes(
            id=c.id,
            metadata=pb.ContainerMetadata(
                name=c.config.metadata.name, attempt=c.config.metadata.attempt
            ),
            labels=c.config.labels,
            annotations=c.config.annotations,
        )
    )
    if view.writable_layer is not None:
        answer.writable_layer.CopyFrom(encode.filesystem(view.writable_layer))
    if usage is None:
        return answer
    _cpu(answer, usage, view.usage_nano_cores)
    _memory(answer, usage)
    _io(answer, usage)
    if usage.swap_usage_bytes is not None:
        answer.swap.timestamp = usage.timestamp_ns
        _set(answer.swap.swap_usage_bytes, usage.swap_usage_bytes)
        _set(answer.swap.swap_available_bytes, usage.swap_available_bytes)
    return answer


def pod(view: PodStatsView) -> pb.PodSandboxStats:
    """Return a pod's counters with those of its containers."""
    sandbox, usage = view.sandbox, view.usage
    answer = pb.PodSandboxStats(
        attributes=pb.PodSandboxAttributes(
            id=sandbox.id,
            metadata=encode.pod_metadata(sandbox.config.metadata),
            labels=sandbox.config.labels,
            annotations=sandbox.config.annotations,
        )
    )
    linux = answer.linux
    linux.SetInParent()
    linux.containers.extend(container(each) for each in view.containers)
    if view.interfaces is not None:
        _network(linux.network, view)
    if usage is None:
        return answer
    _cpu(linux, usage, view.usage_nano_cores)
    _memory(linux, usage)
    _io(linux, usage)
    if usage.processes is not None:
        linux.process.timestamp = usage.timestamp_ns
        _set(linux.process.process_count, usage.processes)
    return answer


def descriptor(view: MetricDescriptor) -> pb.MetricDescriptor:
    """Return what a metric is."""
    return pb.MetricDescriptor(name=view.name, help=view.help, label_keys=view.label_keys)


def pod_metrics(view: PodMetricsView) -> pb.PodSandboxMetrics:
    """Return a pod's metrics."""
    return pb.PodSandboxMetrics(
        pod_sandbox_id=view.sandbox_id,
        metrics=[_metric(each) for each in view.metrics],
        container_metrics=[
            pb.ContainerMetrics(container_id=name, metrics=[_metric(each) for each in metrics])
            for name, metrics in view.containers.items()
        ],
    )


def _metric(view: MetricView) -> pb.Metric:
    return pb.Metric(
        name=view.name,
        timestamp=view.at_ns,
        metric_type=pb.COUNTER if view.counter else pb.GAUGE,
        label_values=view.label_values,
        value=pb.UInt64Value(value=max(view.value, 0)),
    )


def _network(answer: pb.NetworkUsage, view: PodStatsView) -> None:
    answer.timestamp = view.read_at_ns
    default = view.default_interface
    if default is not None:
        answer.default_interface.CopyFrom(_interface(default))
    others = (each for each in view.interfaces or () if each is not default)
    answer.interfaces.extend(_interface(each) for each in others)


def _interface(each: Interface) -> pb.NetworkInterfaceUsage:
    return pb.NetworkInterfaceUsage(
        name=each.name,
        rx_bytes=pb.UInt64Value(value=each.rx_bytes),
        rx_errors=pb.UInt64Value(value=each.rx_errors),
        tx_bytes=pb.UInt64Value(value=each.tx_bytes),
        tx_errors=pb.UInt64Value(value=each.tx_errors),
    )


def _cpu(
    answer: pb.ContainerStats | pb.LinuxPodSandboxStats,
    usage: ContainerUsage,
    rate: int | None,
) -> None:
    if usage.cpu_usage_core_ns is None:
        return
    answer.cpu.timestamp = usage.timestamp_ns
    _set(answer.cpu.usage_core_nano_seconds, usage.cpu_usage_core_ns)
    _set(answer.cpu.usage_nano_cores, rate)
    if usage.cpu_pressure is not None:
        answer.cpu.psi.CopyFrom(_pressure(usage.cpu_pressure))


def _memory(answer: pb.ContainerStats | pb.LinuxPodSandboxStats, usage: ContainerUsage) -> None:
    if usage.memory_usage_bytes is None and usage.memory_working_set_bytes is None:
        return
    memory = answer.memory
    memory.timestamp = usage.timestamp_ns
    _set(memory.working_set_bytes, usage.memory_working_set_bytes)
    _set(memory.available_bytes, usage.memory_available_bytes)
    _set(memory.usage_bytes, usage.memory_usage_bytes)
    _set(memory.rss_bytes, usage.memory_rss_bytes)
    _set(memory.page_faults, usage.memory_page_faults)
    _set(memory.major_page_faults, usage.memory_major_page_faults)
    if usage.memory_pressure is not None:
        memory.psi.CopyFrom(_pressure(usage.memory_pressure))


def _io(answer: pb.ContainerStats | pb.LinuxPodSandboxStats, usage: ContainerUsage) -> None:
    if usage.io_pressure is not None:
        answer.io.timestamp = usage.timestamp_ns
        answer.io.psi.CopyFrom(_pressure(usage.io_pressure))


def _pressure(pressure: Pressure) -> pb.PsiStats:
    return pb.PsiStats(Full=_line(pressure.full), Some=_line(pressure.some))


def _line(line: PressureLine) -> pb.PsiData:
    return pb.PsiData(Total=line.total_ns, Avg10=line.avg10, Avg60=line.avg60, Avg300=line.avg300)


def _set(field: pb.UInt64Value, value: int | None) -> None:
    """Set a counter; a zero is set as zero, None stays absent."""
    if value is not None:
        field.SetInParent()
        field.value = max(value, 0)
