"""List calls: complete snapshots of committed views, newest first."""

from __future__ import annotations

from collections.abc import Mapping

from polypod.lifecycle.heart import Heart
from polypod.lifecycle.objects import Container, Sandbox
from polypod.lifecycle.views import (
    ContainerState,
    ContainerView,
    Filter,
    SandboxState,
    SandboxView,
)


def list_sandboxes(heart: Heart, filter_: Filter) -> list[SandboxView]:
    """Return the sandboxes that pass a filter; half-made ones are not shown."""
    return [sandbox.view for sandbox in select_sandboxes(heart, filter_)]


def select_sandboxes(heart: Heart, filter_: Filter) -> list[Sandbox]:
    """Return the sandboxes that pass a filter; half-made ones are not among them."""
    return [
        sandbox
        for sandbox in heart.sandboxes.newest_first()
        if sandbox.record.state is not SandboxState.CREATING
        and sandbox.record.id.startswith(filter_.id)
        and _sandbox_state(sandbox.record.state, filter_.state)
        and _labelled(sandbox.record.config.labels, filter_.labels)
    ]


def list_containers(heart: Heart, filter_: Filter) -> list[ContainerView]:
    """Return the containers that pass a filter, of listed sandboxes only."""
    return [container.view for container in select_containers(heart, filter_)]


def select_containers(heart: Heart, filter_: Filter) -> list[Container]:
    """Return the containers that pass a filter, of listed sandboxes only."""
    return [
        container
        for container in heart.containers.newest_first()
        if container.record.state is not ContainerState.CREATING
        and container.record.id.startswith(filter_.id)
        and container.record.sandbox_id.startswith(filter_.sandbox_id)
        and filter_.state in ("", container.record.state)
        and _labelled(container.record.config.labels, filter_.labels)
    ]


def _sandbox_state(state: SandboxState, wanted: str) -> bool:
    """CRI knows two states: UNKNOWN is reported, and filtered, as NOTREADY."""
    shown = SandboxState.NOT_READY if state is SandboxState.UNKNOWN else state
    return wanted in ("", state, shown)


def _labelled(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in wanted.items())
