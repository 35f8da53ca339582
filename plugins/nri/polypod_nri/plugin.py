"""The entry point: one observer, ``nri``, and hooks that hand everything to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from polypod.plugin import (
    ContainerConfig,
    ContainerId,
    ExitStatus,
    FailedPrecondition,
    Hooks,
    Observer,
    ObserverServices,
    ObserverType,
    OciConfig,
    PodResources,
    Resources,
    SandboxConfig,
    SandboxId,
    hookimpl,
    override,
)
from polypod.plugin.observer import ContainerFacts, SandboxFacts
from polypod_nri.observer import NriObserver
from polypod_nri.relay import Relay
from polypod_nri.settings import parse


class NriPlugin(Hooks):
    """Asleep until it is opened with ``plugins.nri.enabled``, and after it was closed."""

    def __init__(self) -> None:
        self.asleep = True
        self._open: NriObserver | None = None
        self._services: ObserverServices | None = None

    @override
    @hookimpl
    def polypod_observers(self) -> Sequence[ObserverType]:
        """Offer the observer."""
        return (ObserverType("nri", "plugins by the Node Resource Interface", self.open),)

    async def open(self, services: ObserverServices, options: Mapping[str, object]) -> Observer:
        """Start plugins and let others connect.

        Raises:
            InvalidArgument: a setting is wrong.
            FailedPrecondition: the socket cannot be made.
        """
        settings = parse(options)
        if not settings.enabled:
            return _SwitchedOff()
        opened = NriObserver(services, settings)
        self._open, self._services, self.asleep = opened, services, False
        try:
            await opened.open()
        except BaseException:
            await self._closed(opened)
            raise
        return _Closing(self, opened)

    async def _closed(self, opened: NriObserver) -> None:
        self.asleep = True
        self._open = None
        await opened.close()

    @property
    def _relay(self) -> Relay:
        if self._open is None:
            raise FailedPrecondition("NRI is being closed")
        return self._open.relay

    # Before the fact

    @override
    @hookimpl
    async def polypod_before_sandbox_ready(self, sandbox: SandboxFacts) -> None:
        """RunPodSandbox."""
        await self._relay.run_sandbox(sandbox)

    @override
    @hookimpl
    async def polypod_adjust_container(
        self,
        container_id: ContainerId,
        sandbox_id: SandboxId,
        sandbox: SandboxConfig,
        request: ContainerConfig,
        config: OciConfig,
    ) -> OciConfig | None:
        """CreateContainer."""
        facts = self._services.container(container_id) if self._services else None
        if facts is None:  # the container was given up meanwhile
            return None
        return await self._relay.create_container(facts, config)

    @override
    @hookimpl
    async def polypod_before_container_start(self, container: ContainerFacts) -> None:
        """StartContainer."""
        await self._relay.start_container(container)

    @override
    @hookimpl
    async def polypod_adjust_update(
        self, container: ContainerFacts, resources: Resources
    ) -> Resources | None:
        """UpdateContainer."""
        return await self._relay.update_container(container, resources)

    @override
    @hookimpl
    async def polypod_before_sandbox_resize(
        self, sandbox: SandboxFacts, limits: PodResources
    ) -> None:
        """UpdatePodSandbox."""
        await self._relay.resize_sandbox(sandbox, limits)

    @override
    @hookimpl
    async def polypod_before_sandbox_stop(self, sandbox: SandboxFacts) -> None:
        """StopPodSandbox."""
        await self._relay.stop_sandbox(sandbox)

    # After the fact

    @override
    @hookimpl
    def polypod_sandbox_ready(
        self, sandbox_id: SandboxId, sandbox: SandboxConfig, handler: str
    ) -> None:
        """It is listed from now on."""
        self._relay.sandbox_ready(sandbox_id)

    @override
    @hookimpl
    def polypod_sandbox_resized(self, sandbox: SandboxFacts) -> None:
        """PostUpdatePodSandbox."""
        self._relay.sandbox_resized(sandbox)

    @override
    @hookimpl
    def polypod_sandbox_removed(self, sandbox_id: SandboxId) -> None:
        """RemovePodSandbox."""
        self._relay.sandbox_removed(sandbox_id)

    @override
    @hookimpl
    def polypod_container_created(self, container: ContainerFacts) -> None:
        """PostCreateContainer."""
        self._relay.container_created(container)

    @override
    @hookimpl
    def polypod_container_started(self, container_id: ContainerId, pid: int | None) -> None:
        """PostStartContainer."""
        self._relay.container_started(container_id)

    @override
    @hookimpl
    def polypod_container_updated(self, container: ContainerFacts) -> None:
        """PostUpdateContainer."""
        self._relay.container_updated(container)

    @override
    @hookimpl
    def polypod_container_exited(self, container_id: ContainerId, status: ExitStatus) -> None:
        """StopContainer."""
        self._relay.container_exited(container_id)

    @override
    @hookimpl
    def polypod_container_removed(self, container_id: ContainerId) -> None:
        """RemoveContainer."""
        self._relay.container_removed(container_id)


class _SwitchedOff:
    async def close(self) -> None:
        """Have nothing to close."""


class _Closing:
    def __init__(self, plugin: NriPlugin, opened: NriObserver) -> None:
        self._plugin = plugin
        self._opened = opened

    async def close(self) -> None:
        """Close the observer; the plugin sleeps again."""
        await self._plugin._closed(self._opened)  # noqa: SLF001 - two classes of one file


plugin = NriPlugin()
