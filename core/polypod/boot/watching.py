"""Observers of plugins: opened with the services that core lends them, closed after the heart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from polypod.config import Config, PluginsConfig
from polypod.lifecycle.cdi import add_devices
from polypod.lifecycle.core import Core
from polypod.lifecycle.views import Filter
from polypod.plugin.errors import FailedPrecondition
from polypod.plugin.ids import ContainerId, SandboxId
from polypod.plugin.observer import ContainerFacts, SandboxFacts, Snapshot
from polypod.plugin.oci import OciConfig
from polypod.plugin.requests import Resources
from polypod.registry import Registry

log = logging.getLogger(__name__)


class Services:
    """Implements `polypod.plugin.observer.ObserverServices`."""

    def __init__(self, core: Core, name: str, config: Config) -> None:
        """Lend a heart's services to one observer."""
        self._core = core
        self._name = name
        self._hook_timeout_s = config.plugins.hook_timeout_s
        self._cdi_directories = tuple(map(Path, config.server.cdi_dirs))

    @property
    def hook_timeout_s(self) -> float:
        """How long one hook may take."""
        return self._hook_timeout_s

    def snapshot(self) -> Snapshot:
        """Return all that is listed."""
        return self._core.snapshot()

    def sandbox(self, sandbox_id: SandboxId, /) -> SandboxFacts | None:
        """Return one sandbox."""
        return self._core.sandbox_facts(sandbox_id)

    def container(self, container_id: ContainerId, /) -> ContainerFacts | None:
        """Return one container."""
        return self._core.container_facts(container_id)

    def report(self, facts: Mapping[str, object], /) -> None:
        """Put facts into the verbose Status."""
        reports = self._core.info.get("observers")
        former = dict(reports) if isinstance(reports, Mapping) else {}
        self._core.info["observers"] = {**former, self._name: dict(facts)}

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

    async def cdi_devices(self, config: OciConfig, names: Sequence[str], /) -> OciConfig:
        """Add CDI devices to a config."""
        return await asyncio.to_thread(add_devices, config, names, self._cdi_directories)

    async def update(self, container_id: ContainerId, resources: Resources, /) -> None:
        """Change a container's limits."""
        await self._core.update_container(container_id, resources)

    async def evict(self, sandbox_id: SandboxId, reason: str, /) -> None:
        """Stop a sandbox."""
        await self._core.evict(sandbox_id, reason)


async def open_observers(
    registry: Registry, core: Core, config: Config, closers: AsyncExitStack
) -> None:
    """Open what plugins offer; one that fails is logged, the others go on.

    Raises:
        FailedPrecondition: one of a required plugin fails.
    """
    settings = config.plugins
    owners = {
        offer.name: plugin.name
        for plugin in registry.plugins()
        for offer in plugin.offers
        if offer.kind == "observer"
    }
    _warn_unknown(settings, registry)
    for name, offered in registry.observers.items():
        if offered.unusable:
            log.warning("observer unusable name=%s reason=%s", name, offered.unusable)
            continue
        try:
            services = Services(core, name, config)
            observer = await offered.open(services, settings.options.get(owners[name], {}))
        except Exception as error:
            log.exception("observer failed name=%s", name)
            if owners[name] in settings.required:
                raise FailedPrecondition(
                    f"required plugin {owners[name]!r}: observer {name!r} does not open: {error}"
                ) from error
        else:
            closers.push_async_callback(observer.close)


def _warn_unknown(settings: PluginsConfig, registry: Registry) -> None:
    known = {plugin.name for plugin in registry.plugins()}
    for name in sorted(settings.options.keys() - known):
        log.warning("[plugins.%s]: no plugin %r is installed; nobody reads this table", name, name)
