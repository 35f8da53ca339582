"""The hook specifications. A plugin subclasses `Hooks`, marks what it overrides, and offers one instance.

::

    from polypod.plugin import Hooks, hookimpl, override

    class MyPlugin(Hooks):
        @override
        @hookimpl
        def polypod_runtime_types(self) -> Sequence[RuntimeType]:
            return [RuntimeType(name="mine", …)]

    plugin = MyPlugin()          # the entry point of group "polypod" names this object

Four kinds, nothing else: *offer* (once, at boot), *choose* (first answer wins, per sandbox, pure),
*adjust* (before the fact: may change or refuse it, may be async, under a deadline), *observe* (after the
fact: synchronous, may not fail a call).
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Sequence

import pluggy

from polypod.plugin.ids import ContainerId, SandboxId
from polypod.plugin.images import ImageStoreType
from polypod.plugin.network import NetworkType
from polypod.plugin.observer import CommandType, ContainerFacts, ObserverType, SandboxFacts
from polypod.plugin.oci import OciConfig
from polypod.plugin.requests import ContainerConfig, Resources, SandboxConfig, SandboxRequest
from polypod.plugin.runtime import PodResources, RuntimeType
from polypod.plugin.services import ExitStatus

if sys.version_info >= (3, 12):
    from typing import override
else:
    from typing_extensions import override

__all__ = ["PROJECT", "Hooks", "hookimpl", "hookspec", "override"]

PROJECT = "polypod"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Hooks:
    """Every hook of polypod, grouped by kind; the bodies answer "nothing"."""

    asleep: bool = False
    """While it is true only offers are asked for: a plugin that is switched off costs nothing."""

    # Offer: called once, when the server starts.

    @hookspec
    def polypod_runtime_types(self) -> Sequence[RuntimeType]:
        """Offer runtime types; one that cannot work here is offered with its reason in ``unusable``."""
        return ()

    @hookspec
    def polypod_image_stores(self) -> Sequence[ImageStoreType]:
        """Offer image stores."""
        return ()

    @hookspec
    def polypod_network_types(self) -> Sequence[NetworkType]:
        """Offer networks."""
        return ()

    @hookspec
    def polypod_observers(self) -> Sequence[ObserverType]:
        """Offer observers: opened with services, told of everything, able to update and evict."""
        return ()

    @hookspec
    def polypod_commands(self) -> Sequence[CommandType]:
        """Offer sub-commands of the ``polypod`` command."""
        return ()

    # Choose: called for each RunPodSandbox; synchronous and pure.

    @hookspec(firstresult=True)
    def polypod_choose_handler(self, request: SandboxRequest) -> str | None:
        """Name another configured handler for this sandbox, or None to have no opinion.

        Raises:
            FailedPrecondition: the sandbox may not run here; the text is the reason.
        """

    # Adjust: called before the fact, in the order of `plugins.order`. May be coroutine functions; each is
    # awaited under a deadline. FailedPrecondition refuses what is about to be done, with its text; any
    # other failure fails it too, and names the plugin.

    @hookspec
    def polypod_before_sandbox_ready(self, sandbox: SandboxFacts) -> Awaitable[None] | None:
        """Called when a sandbox is made and nobody was told: a refusal undoes it."""

    @hookspec
    def polypod_adjust_container(
        self,
        container_id: ContainerId,
        sandbox_id: SandboxId,
        sandbox: SandboxConfig,
        request: ContainerConfig,
        config: OciConfig,
    ) -> OciConfig | Awaitable[OciConfig | None] | None:
        """Return a changed OCI config, or None to leave it: before any backend sees it."""

    @hookspec
    def polypod_before_container_start(self, container: ContainerFacts) -> Awaitable[None] | None:
        """Called before a created container is started: a refusal makes it a failed start."""

    @hookspec
    def polypod_adjust_update(
        self, container: ContainerFacts, resources: Resources
    ) -> Resources | Awaitable[Resources | None] | None:
        """Return changed limits for UpdateContainerResources, or None to leave them."""

    @hookspec
    def polypod_before_sandbox_resize(
        self, sandbox: SandboxFacts, limits: PodResources
    ) -> Awaitable[None] | None:
        """Called before what a whole pod may take is changed to ``limits``."""

    @hookspec
    def polypod_before_sandbox_stop(self, sandbox: SandboxFacts) -> Awaitable[None] | None:
        """Called when a sandbox's containers have ended and all else of it is still there.

        All plugins are called, whatever one of them does, and the sandbox is stopped in any case: what is
        raised is what the call answers after that.
        """

    # Observe: called after the fact; what they raise is logged and goes nowhere else.

    @hookspec
    def polypod_sandbox_ready(
        self, sandbox_id: SandboxId, sandbox: SandboxConfig, handler: str
    ) -> None:
        """Called when a sandbox became READY."""

    @hookspec
    def polypod_sandbox_stopped(self, sandbox_id: SandboxId) -> None:
        """Called when a sandbox became NOTREADY, asked or not."""

    @hookspec
    def polypod_sandbox_resized(self, sandbox: SandboxFacts) -> None:
        """Called when what a whole pod may take has been changed."""

    @hookspec
    def polypod_sandbox_removed(self, sandbox_id: SandboxId) -> None:
        """Called when a sandbox and all that was its own is gone, one too that could not be made."""

    @hookspec
    def polypod_container_created(self, container: ContainerFacts) -> None:
        """Called when CreateContainer has made a container."""

    @hookspec
    def polypod_container_started(self, container_id: ContainerId, pid: int | None) -> None:
        """Called when a container's program executes."""

    @hookspec
    def polypod_container_updated(self, container: ContainerFacts) -> None:
        """Called when a container's limits have been changed."""

    @hookspec
    def polypod_container_exited(self, container_id: ContainerId, status: ExitStatus) -> None:
        """Called once for each container whose program is gone."""

    @hookspec
    def polypod_container_removed(self, container_id: ContainerId) -> None:
        """Called when a container is gone, one too that could not be made."""
