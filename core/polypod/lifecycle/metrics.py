"""ListPodSandboxMetrics: the rows of `polypod.lifecycle.metric_table`, filled for every READY pod."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from polypod.lifecycle.heart import Heart
from polypod.lifecycle.listing import select_sandboxes
from polypod.lifecycle.metric_table import BASE_LABELS, ROWS, Facts, Row
from polypod.lifecycle.parts import Handler
from polypod.lifecycle.pod_stats import PodStats
from polypod.lifecycle.views import (
    Filter,
    MetricDescriptor,
    MetricView,
    PodMetricsView,
    PodStatsView,
    SandboxState,
    StatsView,
)
from polypod.plugin.ids import ContainerId
from polypod.plugin.runtime import ContainerDetail, MetricGroup, MetricsSource

log = logging.getLogger(__name__)

_NOTHING = ContainerDetail(timestamp_ns=0)
_OF_PODS = frozenset(
    {MetricGroup.CPU, MetricGroup.MEMORY, MetricGroup.NETWORK, MetricGroup.PRESSURE}
)
"""Groups that a pod has figures of its own in; the others are its containers'."""


class Metrics:
    """Makes descriptors and metrics."""

    def __init__(self, heart: Heart, stats: PodStats) -> None:
        self._heart = heart
        self._stats = stats
        self._groups = heart.settings.metric_groups
        self._rows = tuple(row for row in ROWS if row.group in self._groups)
        self._pod_rows = tuple(row for row in self._rows if row.group in _OF_PODS)

    def descriptors(self) -> Sequence[MetricDescriptor]:
        """Return what metrics there may be: the same as long as the server runs."""
        return [MetricDescriptor(row.name, row.help, row.label_keys) for row in self._rows]

    async def all(self) -> Sequence[PodMetricsView]:
        """Return the metrics of all READY pods and of their running containers, in one pass."""
        if not self._rows:
            return []
        ready = select_sandboxes(self._heart, Filter(state=SandboxState.READY))
        views = await self._stats.of_all(ready)
        details = await self._details(each for view in views for each in view.containers)
        return [self._pod(view, details) for view in views]

    async def _details(
        self, containers: Iterable[StatsView]
    ) -> Mapping[ContainerId, ContainerDetail]:
        found: dict[ContainerId, ContainerDetail] = {}
        for handler, container_ids in self._by_handler(containers):
            if not isinstance(handler.backend, MetricsSource):
                continue
            try:
                found.update(await handler.backend.details(container_ids, self._groups))
            except Exception as error:  # noqa: BLE001 - one backend's failure must not empty the list
                log.warning("no metrics handler=%s error=%r", handler.name, error)
        return found

    def _by_handler(
        self, containers: Iterable[StatsView]
    ) -> list[tuple[Handler, list[ContainerId]]]:
        groups: dict[str, tuple[Handler, list[ContainerId]]] = {}
        for each in containers:
            container = self._heart.containers.exact(each.container.id)
            if container is not None and container.sandbox.handler is not None:
                handler = container.sandbox.handler
                groups.setdefault(handler.name, (handler, []))[1].append(each.container.id)
        return list(groups.values())

    def _pod(
        self, view: PodStatsView, details: Mapping[ContainerId, ContainerDetail]
    ) -> PodMetricsView:
        sandbox = self._heart.sandboxes.exact(view.sandbox.id)
        cgroup = sandbox.record.cgroup if sandbox is not None else ""
        meta = view.sandbox.config.metadata
        facts = Facts(view.usage, _NOTHING, interfaces=view.interfaces or (), at_ns=view.read_at_ns)
        base = _labels(id=cgroup, name=view.sandbox.id, namespace=meta.namespace, pod=meta.name)
        containers = {}
        for each in view.containers:
            box = each.container
            detail = details.get(box.id, _NOTHING)
            inner = Facts(
                each.usage,
                detail,
                container=box,
                layer=each.writable_layer,
                at_ns=view.read_at_ns,
            )
            labels = _labels(
                container=box.config.metadata.name,
                id=f"{cgroup}/{box.id}",
                image=box.config.image.user_specified_image or box.config.image.image,
                name=box.id,
                namespace=meta.namespace,
                pod=meta.name,
            )
            containers[box.id] = _filled(self._rows, inner, labels)
        return PodMetricsView(view.sandbox.id, _filled(self._pod_rows, facts, base), containers)


def _labels(**values: str) -> tuple[str, ...]:
    return tuple(values.get(key, "") for key in BASE_LABELS)


def _filled(rows: Iterable[Row], facts: Facts, labels: tuple[str, ...]) -> tuple[MetricView, ...]:
    return tuple(
        MetricView(row.name, row.counter, labels + more, value, facts.at_ns)
        for row in rows
        for more, value in row.figures(facts)
        if value is not None
    )
