"""Observers and commands: the two offers that are neither runtime, image store nor network."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from polypod.plugin.ids import ContainerId, ImageId, SandboxId
from polypod.plugin.oci import OciConfig
from polypod.plugin.requests import ContainerConfig, Resources, SandboxConfig


@dataclass(frozen=True, slots=True)
class SandboxFacts:
    """One sandbox at one moment, as plugins see it."""

    id: SandboxId
    config: SandboxConfig
    handler: str
    """As requested."""
    state: str
    """``creating``, ``ready``, ``not-ready`` or ``unknown``."""
    created_at_ns: int
    cgroup: str
    """Path below every hierarchy."""
    ips: tuple[str, ...] = ()
    namespaces: Mapping[str, str] = field(default_factory=dict)
    """Kind → a path that leads there while this server runs and the sandbox is not stopped."""
    resources: Resources | None = None
    """Of the whole pod, after updates. So with ``overhead``."""
    overhead: Resources | None = None


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    """One container at one moment, as plugins see it."""

    id: ContainerId
    sandbox_id: SandboxId
    request: ContainerConfig
    state: str
    """``creating``, ``created``, ``running``, ``exited`` or ``unknown``."""
    created_at_ns: int
    cgroup: str
    """Path below every hierarchy."""
    config: OciConfig | None = None
    """What it runs with; None if that is not known (any more)."""
    image_id: ImageId | None = None
    image_ref: str = ""
    pid: int | None = None
    started_at_ns: int = 0
    finished_at_ns: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that is listed, at one moment: nothing can happen between its two halves."""

    sandboxes: tuple[SandboxFacts, ...]
    containers: tuple[ContainerFacts, ...]


class ObserverServices(Protocol):
    """What an observer may ask of core."""

    async def sandboxes(self) -> Sequence[Mapping[str, object]]:
        """Return every listed sandbox: id, state, metadata, labels, annotations, handler."""
        ...

    async def containers(self) -> Sequence[Mapping[str, object]]:
        """Return every listed container: id, sandbox, state, pid, metadata, labels, annotations."""
        ...

    def snapshot(self) -> Snapshot:
        """Return all that is listed; taken in one step of the server's loop."""
        ...

    def sandbox(self, sandbox_id: SandboxId, /) -> SandboxFacts | None:
        """Return one sandbox, a half-made one too; None if there is none."""
        ...

    def container(self, container_id: ContainerId, /) -> ContainerFacts | None:
        """Return one container, a half-made one too; None if there is none."""
        ...

    @property
    def hook_timeout_s(self) -> float:
        """How long one hook of one plugin may take (``plugins.hook_timeout_s``)."""
        ...

    def report(self, facts: Mapping[str, object], /) -> None:
        """Replace what the verbose Status and `polypod plugins` say of this observer: JSON values."""
        ...

    async def cdi_devices(self, config: OciConfig, names: Sequence[str], /) -> OciConfig:
        """Return a config with CDI devices that were not in its request.

        Raises:
            PolypodError: there is none of the name, its file is malformed, or it asks for what is not done.
        """
        ...

    async def update(self, container_id: ContainerId, resources: Resources, /) -> None:
        """Change a container's limits, as UpdateContainerResources does."""
        ...

    async def evict(self, sandbox_id: SandboxId, reason: str, /) -> None:
        """Stop a sandbox; the kubelet sees it NOTREADY."""
        ...


class Observer(Protocol):
    """An opened observer; the events reach it through the observe hooks of its plugin."""

    async def close(self) -> None:
        """Let go of what it opened."""
        ...


@dataclass(frozen=True, slots=True)
class ObserverType:
    """What a plugin offers."""

    name: str
    summary: str
    open: Callable[[ObserverServices, Mapping[str, object]], Awaitable[Observer]]
    """Gets the table ``[plugins.NAME]`` of the plugin that offers it, unparsed: it checks its own."""
    unusable: str = ""


@dataclass(frozen=True, slots=True)
class CommandType:
    """A sub-command: ``polypod NAME …``."""

    name: str
    summary: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
