"""ListMetricDescriptors and ListPodSandboxMetrics: cAdvisor's names, labels in the order of the descriptors."""

from __future__ import annotations

import os

from conformance.pods import LIMIT_S, Pods, eventually

from polypod.client import CriClient, pb

BASE = ["container", "id", "image", "name", "namespace", "pod"]
EVERYWHERE = {
    "container_cpu_usage_seconds_total",
    "container_memory_usage_bytes",
    "container_memory_working_set_bytes",
    "container_processes",
    "container_start_time_seconds",
    "container_threads",
}
"""What every handler with counters can tell."""
KUBELETS = {
    *EVERYWHERE,
    "container_cpu_cfs_throttled_periods_total",
    "container_fs_inodes_free",
    "container_fs_inodes_total",
    "container_fs_limit_bytes",
    "container_fs_reads_bytes_total",
    "container_fs_usage_bytes",
    "container_fs_writes_bytes_total",
    "container_memory_cache",
    "container_memory_failures_total",
    "container_memory_rss",
    "container_memory_swap",
    "container_network_receive_bytes_total",
    "container_network_receive_errors_total",
    "container_network_receive_packets_dropped_total",
    "container_network_receive_packets_total",
    "container_network_transmit_bytes_total",
    "container_oom_events_total",
    "container_pressure_cpu_stalled_seconds_total",
    "container_pressure_io_waiting_seconds_total",
    "container_pressure_memory_waiting_seconds_total",
    "container_spec_memory_limit_bytes",
}


async def descriptors(cri: CriClient) -> dict[str, pb.MetricDescriptor]:
    request = pb.ListMetricDescriptorsRequest()
    answer = await cri.call(cri.runtime, "ListMetricDescriptors", request)
    assert len({each.name for each in answer.descriptors}) == len(answer.descriptors)
    return {each.name: each for each in answer.descriptors}


async def metrics(cri: CriClient) -> dict[str, pb.PodSandboxMetrics]:
    request = pb.ListPodSandboxMetricsRequest()
    answer = await cri.call(cri.runtime, "ListPodSandboxMetrics", request)
    return {each.pod_sandbox_id: each for each in answer.pod_metrics}


def of(found: pb.PodSandboxMetrics, box: str) -> list[pb.Metric]:
    """Return the metrics of one container."""
    return next(list(each.metrics) for each in found.container_metrics if each.container_id == box)


def is_counter(name: str) -> bool:
    """Two of cAdvisor's names do not say what they are."""
    if name == "container_fs_inodes_total":
        return False
    return name.endswith("_total") or name == "container_memory_failcnt"


def value(series: list[pb.Metric], name: str, *labels: str) -> int:
    """Return the figure of the one series of a name whose last labels are these."""
    [found] = [
        each
        for each in series
        if each.name == name and tuple(each.label_values)[len(BASE) :] == labels
    ]
    return found.value.value


async def test_descriptors_have_what_a_kubelet_publishes(cri: CriClient):
    found = await descriptors(cri)
    assert set(found) >= KUBELETS
    assert all(list(each.label_keys)[: len(BASE)] == BASE for each in found.values())
    assert all(each.help for each in found.values())
    assert await descriptors(cri) == found, "descriptors must not change while a kubelet runs"


async def test_every_metric_fits_its_descriptor(pods: Pods, cri: CriClient, handler):
    known = await descriptors(cri)
    pod = await pods.run()
    boxes = [await pod.start("sleep 1000", name=name) for name in ("one", "two")]
    found = (await metrics(cri))[pod.id]
    assert {each.container_id for each in found.container_metrics} == set(boxes)
    series = list(found.metrics) + [m for each in found.container_metrics for m in each.metrics]
    for each in series:
        assert len(each.label_values) == len(known[each.name].label_keys), each.name
        assert each.timestamp > 0
        assert each.HasField("value")
        assert (each.metric_type == pb.COUNTER) == is_counter(each.name), each.name
    names = [(each.name, tuple(each.label_values)) for each in series]
    assert len(set(names)) == len(names), "two figures of one series: Prometheus refuses both"
    assert {each.name for each in of(found, boxes[0])} >= EVERYWHERE


async def test_labels_name_pod_and_container(pods: Pods, cri: CriClient, image: str):
    pod = await pods.run("shown")
    box = await pod.start("sleep 1000", name="inner")
    found = (await metrics(cri))[pod.id]
    labels = dict(zip(BASE, of(found, box)[0].label_values, strict=False))
    assert labels["container"] == "inner"
    assert labels["image"] == image
    assert labels["name"] == box
    assert (labels["namespace"], labels["pod"]) == ("conformance", "shown")
    assert labels["id"].endswith(f"{pod.id}/{box}")
    labels = dict(zip(BASE, found.metrics[0].label_values, strict=False))
    assert (labels["container"], labels["name"], labels["pod"]) == ("", pod.id, "shown")


async def test_figures_are_those_of_the_container(pods: Pods, cri: CriClient, handler):
    pod = await pods.run()
    limits = pb.LinuxContainerResources(memory_limit_in_bytes=64 << 20, cpu_shares=300)
    box = await pod.start(handler.programs["resident"], resources=limits)
    await pod.said(box, "resident")
    series = of((await metrics(cri))[pod.id], box)
    assert value(series, "container_memory_usage_bytes") >= 20_000_000
    assert value(series, "container_spec_memory_limit_bytes") == 64 << 20
    assert value(series, "container_spec_cpu_shares") == 300
    assert value(series, "container_processes") >= 1
    status = (await cri.container_status(box)).status
    assert value(series, "container_start_time_seconds") == status.started_at // 1_000_000_000
    handler.needs_kernel()
    assert value(series, "container_oom_events_total") == 0
    assert value(series, "container_file_descriptors") >= 3
    assert value(series, "container_threads_max") >= 0
    assert value(series, "container_memory_failures_total", "pgfault", "hierarchy") > 0
    network = (await metrics(cri))[pod.id].metrics
    if handler.networked:
        value(list(network), "container_network_receive_bytes_total", "eth0")


async def test_the_file_system_below_is_told_from_the_start(pods: Pods, cri: CriClient, handler):
    handler.needs_kernel()
    pod = await pods.run()
    box = await pod.start("sleep 1000")

    async def told() -> bool:
        series = of((await metrics(cri))[pod.id], box)
        return any(each.name == "container_fs_limit_bytes" for each in series)

    await eventually(told, "figures of the file system")
    series = of((await metrics(cri))[pod.id], box)
    device = (await cri.container_stats(box)).writable_layer.fs_id.mountpoint
    whole = os.statvfs(device)
    assert value(series, "container_fs_limit_bytes", device) == whole.f_blocks * whole.f_frsize
    assert value(series, "container_fs_usage_bytes", device) > 0
    if whole.f_files:
        assert value(series, "container_fs_inodes_total", device) == whole.f_files
        assert 0 < value(series, "container_fs_inodes_free", device) < whole.f_files


async def test_cpu_time_is_told_in_seconds(pods: Pods, cri: CriClient, handler):
    pod = await pods.run()
    box = await pod.start(handler.programs["busy"])

    async def a_second() -> bool:
        series = of((await metrics(cri))[pod.id], box)
        return value(series, "container_cpu_usage_seconds_total", "total") >= 1

    await eventually(a_second, "a second of cpu time")
    used = (await cri.container_stats(box)).cpu.usage_core_nano_seconds.value
    assert used >= 1_000_000_000


async def test_stopped_pods_have_no_metrics_and_the_stream_tells_the_same_pods(
    pods: Pods, cri: CriClient
):
    first, second = await pods.run("first"), await pods.run("second")
    await cri.stop_sandbox(first.id)
    assert set(await metrics(cri)) == {second.id}
    streamed = [
        each.pod_sandbox_id
        async for message in cri.stream(
            cri.runtime,
            "StreamPodSandboxMetrics",
            pb.StreamPodSandboxMetricsRequest(),
            timeout_s=LIMIT_S,
        )
        for each in message.pod_sandbox_metrics
    ]
    assert streamed == [second.id]
