"""The pod's cgroup on the host: what runs a machine is counted and limited there, beside nothing else.

Containers have cgroups of their own inside the guest; here are QEMU and the relay.
"""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path

from polypod.backend.cgroups import Cgroups, discover
from polypod.plugin import BackendError

_log = logging.getLogger(__name__)


class PodCgroups:
    """Cgroups of the pods of one handler. All methods block for a moment."""

    def __init__(self, parent: str) -> None:
        """``parent`` is ours, and stays."""
        self._parent = parent

    @cached_property
    def cgroups(self) -> Cgroups:
        """Those of this host.

        Raises:
            BackendError: it has none.
        """
        return Cgroups(discover())

    def create(self, path: str) -> None:
        """Make one.

        Raises:
            BackendError: the kernel refused; nothing is left.
        """
        self.cgroups.create(path)

    def join_descriptors(self, path: str) -> list[int]:
        """Open what a process writes to join it; the caller closes them."""
        return self.cgroups.join_descriptors(path)

    def add(self, path: str, pid_file: Path) -> None:
        """Put a process with all its threads into it.

        Args:
            path: the cgroup.
            pid_file: names the process.

        Raises:
            BackendError: there is no such process, or the kernel refused.
        """
        try:
            pid = int(pid_file.read_text())
            for mount in self.cgroups.hierarchies.mounts:
                (mount / path.lstrip("/") / "cgroup.procs").write_text(str(pid))
        except (OSError, ValueError) as error:
            raise BackendError(f"{pid_file}: not put into cgroup {path}: {error}") from error

    def end(self, path: str) -> None:
        """Remove it with what is in it; one that is gone is fine."""
        try:
            self.cgroups.end(path)
            self.cgroups.remove_empty_parents(path, self._parent)
        except BackendError as error:
            _log.warning("%s", error)
