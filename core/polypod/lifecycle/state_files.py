"""Publish each container as ``DIRECTORY/<id>/state.json``, as the first runtime-spec releases had it.

Spec:
    opencontainers/runtime-spec, runtime.md "State"; the directory and the names ``version``,
    ``bundlePath`` and ``root`` are those of v0.1.1 to v0.3.0.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from polypod.lifecycle.trees import remove_tree
from polypod.lifecycle.views import ContainerState, ContainerView
from polypod.plugin.ids import ContainerId
from polypod.plugin.oci import OCI_VERSION

log = logging.getLogger(__name__)

_FRESH = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC

_STATUS = {
    ContainerState.CREATED: "created",
    ContainerState.RUNNING: "running",
    ContainerState.EXITED: "stopped",
    ContainerState.UNKNOWN: "stopped",
}


class StateFiles:
    """The publisher. It observes: what goes wrong here is logged and fails no call."""

    def __init__(self, directory: Path | None) -> None:
        """Choose where to publish; None publishes nothing."""
        self._directory = directory

    def publish(self, view: ContainerView, bundle: Path) -> None:
        """Write or replace a container's file."""
        if self._directory is None or view.state not in _STATUS:
            return
        try:
            _write(f"{self._directory}/{view.id}", _text(view, bundle).encode())
        except OSError as error:
            log.warning("state file not written container=%s error=%s", view.id, error)

    def withdraw(self, container_id: ContainerId) -> None:
        """Remove a container's file and its directory."""
        if self._directory is None:
            return
        try:
            remove_tree(self._directory / container_id)
        except OSError as error:
            log.warning("state file not removed container=%s error=%s", container_id, error)

    def published(self) -> list[ContainerId]:
        """Return the ids for which there are files: recovery withdraws those without a record."""
        if self._directory is None or not self._directory.is_dir():
            return []
        return [
            ContainerId(each.name)
            for each in self._directory.iterdir()
            if len(each.name) == 64 and set(each.name) <= set("0123456789abcdef")
        ]


def _write(directory: str, text: bytes) -> None:
    fresh = f"{directory}/.state.json"
    try:
        descriptor = os.open(fresh, _FRESH, 0o644)
    except FileNotFoundError:
        Path(directory).mkdir(mode=0o711, parents=True, exist_ok=True)
        descriptor = os.open(fresh, _FRESH, 0o644)
    try:
        os.write(descriptor, text)
    finally:
        os.close(descriptor)
    os.rename(fresh, f"{directory}/state.json")  # noqa: PTH104 - three times for each container


def _text(view: ContainerView, bundle: Path) -> str:
    state: dict[str, object] = {
        "ociVersion": OCI_VERSION,
        "version": OCI_VERSION,
        "id": view.id,
        "status": _STATUS[view.state],
        "bundle": str(bundle),
        "bundlePath": str(bundle),
        "root": str(bundle / "rootfs"),
        "annotations": dict(view.config.annotations),
    }
    if view.pid is not None and view.state is not ContainerState.EXITED:
        state["pid"] = view.pid
    return json.dumps(state, indent=1)
