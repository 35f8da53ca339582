"""Observers of plugins: opened with the services that core lends them, closed after the heart."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

from polypod.lifecycle.core import Core
from polypod.lifecycle.views import Filter
from polypod.plugin.ids import ContainerId, SandboxId
from polypod.plugin.requests import Resources
from polypod.registry import Registry

log = logging.getLogger(__name__)


class Services:
    """Implements `polypod.plugin.observer.ObserverServices`."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def sandboxes(self) -> Sequence[Mapping[str, object]]:
        """Return every listed sandbox."""
        return [
            {
                "id": each.id,
                "state": str(each.state),
                "metadata": each.config.metadata,
                "labels": each.config.labels,
                "annotations": each.config.annotations,
                "handler": each.handler,
            }
            for each in await self._core.list_sandboxes(Filter())
        ]

    async def containers(self) -> Sequence[Mapping[str, object]]:
        """Return every listed container."""
        return [
            {
                "id": each.id,
                "sandbox": each.sandbox_id,
                "state": str(each.state),
                "pid": each.pid,
                "metadata": each.config.metadata,
                "labels": each.config.labels,
                "annotations": each.config.annotations,
            }
            for each in await self._core.list_containers(Filter())
        ]

    async def update(self, container_id: ContainerId, resources: Resources, /) -> None:
        """Change a container's limits."""
        await self._core.update_container(container_id, resources)

    async def evict(self, sandbox_id: SandboxId, reason: str, /) -> None:
        """Stop a sandbox."""
        await self._core.evict(sandbox_id, reason)


async def open_observers(registry: Registry, core: Core, closers: AsyncExitStack) -> None:
    """Open what plugins offer; one that fails is logged, the others go on."""
    services = Services(core)
    for name, offered in registry.observers.items():
        if offered.unusable:
            log.warning("observer unusable name=%s reason=%s", name, offered.unusable)
            continue
        try:
            observer = await offered.open(services, {})
        except Exception:
            log.exception("observer failed name=%s", name)
        else:
            closers.push_async_callback(observer.close)
