"""Sandboxes and containers in memory: the committed record, and what dies with this process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

from polypod.lifecycle.explain import Explain
from polypod.lifecycle.parts import Handler
from polypod.lifecycle.records import ContainerRecord, SandboxRecord
from polypod.lifecycle.views import ContainerView, SandboxView
from polypod.plugin.ids import ContainerId
from polypod.plugin.oci import OciConfig
from polypod.plugin.rootfs import Rootfs
from polypod.plugin.runtime import ImageVolume, SandboxSpec
from polypod.plugin.services import SandboxNamespaces

_NEVER = float("inf")


class Sandbox:
    """One sandbox."""

    __slots__ = (
        "containers",
        "delivered",
        "directory",
        "explain",
        "handler",
        "lock",
        "namespaces",
        "record",
        "stopping",
        "view",
    )

    def __init__(
        self, record: SandboxRecord, handler: Handler | None, directory: Path, explain: Explain
    ) -> None:
        """Wrap a record.

        Args:
            record: as committed.
            handler: the chosen one; None if the configuration no longer has it.
            directory: the sandbox's own, below ``state``.
            explain: what happened to it.
        """
        self.record = record
        self.view = sandbox_view(record)
        self.handler = handler
        self.directory = directory
        self.explain = explain
        self.namespaces: SandboxNamespaces | None = None
        self.containers: dict[ContainerId, Container] = {}
        self.lock = asyncio.Lock()
        """Held while its limits are changed."""
        self.stopping = False
        """StopPodSandbox has begun: nothing is created or started in it any more."""
        self.delivered = False
        """A caller of RunPodSandbox was told the id."""

    def close_namespaces(self) -> None:
        """Close our copies of the descriptors."""
        held, self.namespaces = self.namespaces, None
        if held is not None:
            for fd in (*held.fds.values(), held.netlink):
                if fd is not None:
                    os.close(fd)


class Container:
    """One container."""

    __slots__ = (
        "changed",
        "deadline",
        "delivered",
        "directory",
        "exited",
        "explain",
        "lock",
        "oci",
        "record",
        "removing",
        "rootfs",
        "sandbox",
        "tidied",
        "view",
        "volumes",
    )

    def __init__(
        self, record: ContainerRecord, sandbox: Sandbox, directory: Path, explain: Explain
    ) -> None:
        """Wrap a record; the directory is the container's own, below ``state``."""
        self.record = record
        self.view = container_view(record)
        self.sandbox = sandbox
        self.directory = directory
        self.explain = explain
        self.lock = asyncio.Lock()
        """Held while it is created, started, or its exit is recorded."""
        self.exited = asyncio.Event()
        self.changed = asyncio.Event()
        """`deadline` has become shorter."""
        self.deadline = _NEVER
        """When (monotonic) the running stop sends SIGKILL; only ever shrinks."""
        self.removing = False
        self.delivered = False
        self.tidied = False
        """It has ended, and backend and logger have forgotten it."""
        self.oci: OciConfig | None = None
        self.rootfs: Rootfs | None = None
        self.volumes: Mapping[str, ImageVolume] = {}

    @property
    def log_base(self) -> Path:
        """The directory that the log must not leave."""
        return Path(self.record.log_base)


def sandbox_view(record: SandboxRecord) -> SandboxView:
    """Return what a client sees of a record."""
    return SandboxView(
        id=record.id,
        config=record.config,
        state=record.state,
        created_at_ns=record.created_at_ns,
        handler=record.handler,
        chosen_handler=record.chosen_handler,
        ips=record.attachment.ips if record.attachment else (),
    )


def container_view(record: ContainerRecord) -> ContainerView:
    """Return what a client sees of a record."""
    return ContainerView(
        id=record.id,
        sandbox_id=record.sandbox_id,
        config=record.config,
        state=record.state,
        image_id=record.image_id,
        image_ref=record.image_ref,
        created_at_ns=record.created_at_ns,
        log_path=Path(record.log_path),
        started_at_ns=record.started_at_ns,
        finished_at_ns=record.finished_at_ns,
        exit_code=record.exit_code,
        reason=record.reason,
        message=record.message,
        resources=record.resources,
        stop_signal=record.stop_signal,
        user=record.user,
        pid=record.pid,
        volume_images={each.path: each.image_id for each in record.image_volumes},
    )


def sandbox_spec(sandbox: Sandbox) -> SandboxSpec:
    """Return what a backend is told of a sandbox."""
    return SandboxSpec(
        id=sandbox.record.id,
        config=sandbox.record.config,
        namespaces=sandbox.namespaces,
        directory=sandbox.directory,
        cgroup=sandbox.record.cgroup,
    )
