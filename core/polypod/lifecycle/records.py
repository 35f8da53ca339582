"""What is on record of a sandbox and of a container: written before the resource it describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from polypod.lifecycle.views import ContainerState, SandboxState
from polypod.plugin.ids import ContainerId, ImageId, SandboxId
from polypod.plugin.network import Attachment
from polypod.plugin.requests import ContainerConfig, Resources, SandboxConfig

UNKNOWN_EXIT = 255
"""Reported where nobody can know the exit code any more; never 0."""


@dataclass(frozen=True, slots=True)
class SandboxRecord:
    """One sandbox."""

    id: SandboxId
    config: SandboxConfig
    created_at_ns: int
    handler: str
    """As requested."""
    chosen_handler: str
    cgroup: str
    state: SandboxState = SandboxState.CREATING
    namespaces: tuple[str, ...] = ()
    """The kinds that core makes for it."""
    networked: bool = False
    """It has, or may have, a lease: detach before it is gone. Set before attach is tried."""
    attachment: Attachment | None = None
    resources: Resources | None = None
    """Of the last UpdatePodSandboxResources; None = those of ``config``. So with ``overhead``."""
    overhead: Resources | None = None
    torn_down: bool = False
    """StopPodSandbox has given everything back."""
    message: str = ""


@dataclass(frozen=True, slots=True)
class ImageVolumeRecord:
    """An image that a container mounts."""

    path: str
    """In the container, as the request spells it."""
    image_id: ImageId
    sub_path: str = ""


@dataclass(frozen=True, slots=True)
class ContainerRecord:
    """One container."""

    id: ContainerId
    sandbox_id: SandboxId
    config: ContainerConfig
    created_at_ns: int
    image_id: ImageId
    image_ref: str
    log_path: str
    log_base: str
    """The directory that the log must not leave."""
    stop_signal: int
    state: ContainerState = ContainerState.CREATING
    started_at_ns: int = 0
    finished_at_ns: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    resources: Resources | None = None
    update_annotations: Mapping[str, str] = field(default_factory=dict)
    """Of all updates of its limits, later ones first."""
    user: tuple[int, int, tuple[int, ...]] | None = None
    pid: int | None = None
    image_volumes: tuple[ImageVolumeRecord, ...] = ()
    restores: bool = False
    """StartContainer goes on from what lies in ``checkpoint`` of the container's directory."""
    signalled: bool = False
    """The stop signal has been sent: it is sent once."""
