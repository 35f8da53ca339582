"""Counters of whole pods: the sandbox as the host sees it, its interfaces, and its containers.

Whose counters they are. The pod's cpu, memory and processes are those of the sandbox's own cgroup on the
host, so they hold what runs the pod too: a machine and its relay, not only the containers in it. A backend
that cannot tell them has the sum of its containers shown. Containers are counted where they run: in the
guest, if there is one. Interfaces are read inside the pod's network namespace: ``rx`` is what the pod
received. `ContainerUsage.source` says it for each figure; the verbose status shows it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from polypod.lifecycle.heart import Heart
from polypod.lifecycle.objects import Sandbox
from polypod.lifecycle.parts import Handler
from polypod.lifecycle.stats import Samples, Stats
from polypod.lifecycle.views import ContainerState, Interface, PodStatsView, SandboxState, StatsView
from polypod.plugin.ids import SandboxId
from polypod.plugin.runtime import ContainerUsage, SandboxStatsSource

log = logging.getLogger(__name__)

_SUMMED = (
    "cpu_usage_core_ns",
    "memory_usage_bytes",
    "memory_working_set_bytes",
    "memory_rss_bytes",
    "memory_page_faults",
    "memory_major_page_faults",
    "swap_usage_bytes",
    "processes",
)
_WATCH_S = 300.0
"""Pods are sampled in the background for so long after somebody asked for them."""


class PodStats:
    """Samples of sandboxes; those of containers are `Stats`'."""

    def __init__(self, heart: Heart, stats: Stats) -> None:
        self._heart = heart
        self._stats = stats
        self._samples: dict[SandboxId, Samples] = {}
        self._asked = float("-inf")

    async def of_all(self, sandboxes: Sequence[Sandbox]) -> Sequence[PodStatsView]:
        """Return the counters of pods: one question to each backend, one pass over the interfaces.

        A backend that fails has its pods shown without counters; nothing is raised.
        """
        self._asked = self._heart.clock.monotonic()
        ready = [each for each in sandboxes if each.record.state is SandboxState.READY]
        await self._sample(ready)
        traffic = await self._traffic(ready)
        running = [
            container
            for sandbox in ready
            for container in sandbox.containers.values()
            if container.record.state is ContainerState.RUNNING
        ]
        inside: dict[SandboxId, list[StatsView]] = {}
        for view in await self._stats.of_all(running):
            inside.setdefault(view.container.sandbox_id, []).append(view)
        return [
            self._view(each, traffic.get(each.record.id), inside.get(each.record.id, []))
            for each in sandboxes
        ]

    def sources(self, sandbox: Sandbox) -> Mapping[str, object]:
        """Return who counted what of a pod when it was last asked for, for the verbose status."""
        samples = self._samples.get(sandbox.record.id)
        inside = (self._stats.last(each) for each in sandbox.containers)
        return {
            "pod": samples.newest.source if samples is not None else "",
            "containers": sorted({each.source for each in inside if each is not None}),
            "interfaces": "inside the pod's network namespace" if sandbox.namespaces else "",
        }

    async def watch(self) -> None:
        """Sample for ever, as long as somebody asks, so that a request finds a rate."""
        clock, period = self._heart.clock, self._heart.settings.stats_s
        while True:
            await clock.sleep(period)
            if clock.monotonic() - self._asked < _WATCH_S:
                sandboxes = self._heart.sandboxes
                await self._sample(
                    [each for each in sandboxes if each.record.state is SandboxState.READY]
                )

    async def _sample(self, sandboxes: Iterable[Sandbox]) -> None:
        for handler, sandbox_ids in _by_handler(sandboxes):
            if not isinstance(handler.backend, SandboxStatsSource):
                continue
            try:
                usages = await handler.backend.sandbox_stats(sandbox_ids)
            except Exception as error:  # noqa: BLE001 - one backend's failure must not empty the list
                log.warning("no counters of pods handler=%s error=%r", handler.name, error)
                continue
            for sandbox_id, usage in usages.items():
                known = self._samples.get(sandbox_id)
                self._samples[sandbox_id] = known.followed_by(usage) if known else Samples.of(usage)
        for gone in [each for each in self._samples if not self._heart.sandboxes.exact(each)]:
            del self._samples[gone]

    async def _traffic(
        self, sandboxes: Iterable[Sandbox]
    ) -> Mapping[SandboxId, Sequence[Interface]]:
        sockets = {
            each.record.id: each.namespaces.netlink
            for each in sandboxes
            if each.namespaces is not None and each.namespaces.netlink is not None
        }
        reader = self._heart.parts.interfaces
        return await reader.read(sockets) if reader is not None and sockets else {}

    def _view(
        self,
        sandbox: Sandbox,
        interfaces: Sequence[Interface] | None,
        containers: Sequence[StatsView],
    ) -> PodStatsView:
        samples = self._samples.get(sandbox.record.id)
        ready = sandbox.record.state is SandboxState.READY
        usage = samples.newest if samples is not None and ready else _sum(containers)
        rates = [each.usage_nano_cores for each in containers if each.usage_nano_cores is not None]
        if samples is not None and ready:
            rate = samples.nano_cores
        else:
            rate = sum(rates) if rates and len(rates) == len(containers) else None
        return PodStatsView(
            sandbox=sandbox.view,
            usage=usage,
            usage_nano_cores=rate,
            interfaces=None if interfaces is None else tuple(interfaces),
            read_at_ns=self._heart.clock.now_ns(),
            containers=tuple(containers),
        )


def _sum(containers: Sequence[StatsView]) -> ContainerUsage | None:
    """Return what all containers take together; a counter that one of them lacks is not told."""
    usages = [each.usage for each in containers if each.usage is not None]
    if not usages or len(usages) != len(containers):
        return None
    totals: dict[str, Any] = {}
    for name in _SUMMED:
        values = [getattr(each, name) for each in usages]
        if None not in values:
            totals[name] = sum(values)
    stamp = max(each.timestamp_ns for each in usages)
    return ContainerUsage(stamp, source=f"sum of containers: {usages[0].source}", **totals)


def _by_handler(sandboxes: Iterable[Sandbox]) -> list[tuple[Handler, list[SandboxId]]]:
    groups: dict[str, tuple[Handler, list[SandboxId]]] = {}
    for sandbox in sandboxes:
        if sandbox.handler is not None:
            groups.setdefault(sandbox.handler.name, (sandbox.handler, []))[1].append(
                sandbox.record.id
            )
    return list(groups.values())
