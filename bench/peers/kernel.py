"""What a peer leaves in the kernel, found by names that are ours, and removed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def _mounts() -> list[tuple[str, str]]:
    """Return (place, type) of every mount of our namespace, in the order in which they were made."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        place = before.split()[4].encode().decode("unicode_escape")
        found.append((place, after.split()[0]))
    return found


def cgroups(parent: str) -> list[Path]:
    """Return the cgroup of this name in every hierarchy that has it."""
    bases = [Path(place) for place, kind in _mounts() if kind in {"cgroup", "cgroup2"}]
    return [path for base in bases if (path := base / parent.lstrip("/")).is_dir()]


def members(groups: Sequence[Path]) -> list[int]:
    """Return the processes in some cgroups and those below them."""
    pids: set[int] = set()
    for group in groups:
        for place, _names, files in os.walk(group):
            if "cgroup.procs" in files:
                with suppress(OSError):
                    pids |= set(map(int, Path(place, "cgroup.procs").read_text().split()))
    return sorted(pids)


def remove_cgroups(groups: Sequence[Path]) -> None:
    """Remove cgroups and those below them; one that is still in use stays."""
    for group in groups:
        for place, _names, _files in os.walk(group, topdown=False):
            with suppress(OSError):
                Path(place).rmdir()


def unmount_below(place: Path) -> None:
    """Unmount what is mounted below a directory, the newest first."""
    for where, _kind in reversed(_mounts()):
        if where.startswith(f"{place}/"):
            subprocess.run(["umount", "--lazy", where], check=False)
