"""A container's bundle: what a runtime reads, and a note of ours that a restart reads back.

A container is its bundle: ``config.json``, ``rootfs``, a note of ours, and a mark once it was started. Its
process is found by the id, which keeper and supervisor know, too.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from polypod.backend.containers import Container
from polypod.backend.sandboxes import read_note
from polypod.plugin import ContainerId, SandboxId


class Bundle:
    """One container's directory below the handler's ``state``."""

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self.rootfs = directory / "rootfs"
        self.config = directory / "config.json"
        self.pid_file = directory / "pid"

    def make(self, container: Container) -> None:
        """Make it and note whose it is, before anything of the container is made."""
        self.rootfs.mkdir(mode=0o700, parents=True)
        facts = {
            "sandbox": container.sandbox_id,
            "cgroup": container.cgroup,
            "own_pids": container.own_pids,
        }
        (self.path / "note").write_text(json.dumps(facts))

    def mark_started(self) -> None:
        """Note that its program executes."""
        (self.path / "started").touch()

    def is_marked_started(self) -> bool:
        """Tell whether `mark_started` was reached."""
        return (self.path / "started").exists()

    def mark_frozen(self, *, frozen: bool) -> None:
        """Note that it stands still, or not any more: nothing frozen can be killed."""
        if frozen:
            (self.path / "frozen").touch()
        else:
            (self.path / "frozen").unlink(missing_ok=True)

    def is_marked_frozen(self) -> bool:
        """Tell whether it may stand still."""
        return (self.path / "frozen").exists()

    def read(self) -> Container:
        """Return what was noted; of half a note what it says."""
        facts = read_note(self.path / "note")
        return Container(
            ContainerId(self.path.name),
            SandboxId(str(facts.get("sandbox", ""))),
            str(facts.get("cgroup", "")),
            bool(facts.get("own_pids", True)),
        )

    def write(self, name: str, text: bytes) -> Path:
        """Write one of its files."""
        path = self.path / name
        path.touch(mode=0o600)
        path.write_bytes(text)
        return path

    def remove(self) -> None:
        """Remove it; nothing may be mounted in it any more."""
        if self.rootfs.is_mount():
            raise OSError(f"{self.rootfs} is still mounted")
        shutil.rmtree(self.path, ignore_errors=True)
