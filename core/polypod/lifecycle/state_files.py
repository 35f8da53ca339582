"""Publish each container as ``DIRECTORY/<id>/state.json``, as the first runtime-spec releases had it.

Spec:
    opencontainers/runtime-spec, runtime.md "State"; the directory and the names ``version``,
    ``bundlePath`` and ``root`` are those of v0.1.1 to v0.3.0.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from polypod.lifecycle.trees import remove_tree
from polypod.lifecycle.views import ContainerState, ContainerView
from polypod.plugin.ids import ContainerId
from polypod.plugin.oci import OCI_VERSION

log = logging.getLogger(__name__)

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
            self._write(self._directory / view.id, _text(view, bundle))
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

    @staticmethod
    def _write(directory: Path, text: str) -> None:
        directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        fresh = directory / ".state.json"
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(directory / "state.json")


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
