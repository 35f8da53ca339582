"""Observers and commands: the two offers that are neither runtime, image store nor network."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from polypod.plugin.ids import ContainerId, SandboxId
from polypod.plugin.requests import Resources


class ObserverServices(Protocol):
    """What an observer may ask of core."""

    async def sandboxes(self) -> Sequence[Mapping[str, object]]:
        """Return every listed sandbox: id, state, metadata, labels, annotations, handler."""
        ...

    async def containers(self) -> Sequence[Mapping[str, object]]:
        """Return every listed container: id, sandbox, state, pid, metadata, labels, annotations."""
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
    unusable: str = ""


@dataclass(frozen=True, slots=True)
class CommandType:
    """A sub-command: ``polypod NAME …``."""

    name: str
    summary: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
