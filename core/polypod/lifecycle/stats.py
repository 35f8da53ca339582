"""Counters of containers, and the one figure that needs two samples: cpu per second."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from polypod.lifecycle.heart import Heart
from polypod.lifecycle.objects import Container
from polypod.lifecycle.parts import Handler
from polypod.lifecycle.views import ContainerState, StatsView
from polypod.plugin.ids import ContainerId
from polypod.plugin.runtime import ContainerUsage, StatsSource

log = logging.getLogger(__name__)

_MIN_SPAN_NS = 100_000_000
"""Two samples that lie closer together give no rate worth telling."""


@dataclass(frozen=True, slots=True)
class Samples:
    """The sample that a rate is measured from, the newest one, and the last rate."""

    base: ContainerUsage
    newest: ContainerUsage
    nano_cores: int | None = None

    @classmethod
    def of(cls, usage: ContainerUsage) -> Samples:
        """Return a first sample."""
        return cls(usage, usage)

    def followed_by(self, usage: ContainerUsage) -> Samples:
        """Return the samples after another one; a counter that fell starts anew."""
        span = usage.timestamp_ns - self.base.timestamp_ns
        before, now = self.base.cpu_usage_core_ns, usage.cpu_usage_core_ns
        if span < 0 or before is None or now is None or now < before:
            return Samples(usage, usage)
        if span < _MIN_SPAN_NS:
            return Samples(self.base, usage, self.nano_cores)
        return Samples(usage, usage, (now - before) * 1_000_000_000 // span)


class Stats:
    """Samples in the background and on request."""

    def __init__(self, heart: Heart) -> None:
        self._heart = heart
        self._samples: dict[ContainerId, Samples] = {}

    async def of(self, container: Container) -> StatsView:
        """Return one container's counters, fresh where its backend can tell them."""
        await self._sample([container])
        return await self._view(container)

    async def of_all(self, containers: Sequence[Container]) -> Sequence[StatsView]:
        """Return the counters of running containers; one that fails is shown without, not raised."""
        await self._sample(containers)
        return [await self._view(each) for each in containers]

    def last(self, container_id: ContainerId) -> ContainerUsage | None:
        """Return the newest sample, without asking anybody."""
        samples = self._samples.get(container_id)
        return samples.newest if samples is not None else None

    async def watch(self) -> None:
        """Sample for ever, so that a first request already finds a rate."""
        while True:
            await self._heart.clock.sleep(self._heart.settings.stats_s)
            await self._sample(list(self._heart.containers))

    async def _sample(self, containers: Iterable[Container]) -> None:
        for handler, running in _by_handler(containers):
            try:
                usages = await _ask(handler, running)
            except Exception as error:  # noqa: BLE001 - one backend's failure must not empty the list
                log.warning("no counters handler=%s error=%r", handler.name, error)
                continue
            for container_id, usage in usages.items():
                known = self._samples.get(container_id)
                self._samples[container_id] = (
                    known.followed_by(usage) if known else Samples.of(usage)
                )
        for gone in [each for each in self._samples if not self._heart.containers.exact(each)]:
            del self._samples[gone]

    async def _view(self, container: Container) -> StatsView:
        samples = self._samples.get(container.record.id)
        store = self._heart.handler_of(container.sandbox).image_store
        return StatsView(
            container=container.view,
            usage=samples.newest if samples else None,
            usage_nano_cores=samples.nano_cores if samples else None,
            writable_layer=await store.writable_usage(container.record.id),
        )


def _by_handler(containers: Iterable[Container]) -> list[tuple[Handler, list[ContainerId]]]:
    """Group the running ones by handler."""
    groups: dict[str, tuple[Handler, list[ContainerId]]] = {}
    for container in containers:
        handler = container.sandbox.handler
        if handler is not None and container.record.state is ContainerState.RUNNING:
            groups.setdefault(handler.name, (handler, []))[1].append(container.record.id)
    return list(groups.values())


async def _ask(
    handler: Handler, container_ids: Sequence[ContainerId]
) -> Mapping[ContainerId, ContainerUsage]:
    if not isinstance(handler.backend, StatsSource):
        return {}
    return await handler.backend.stats(container_ids)
