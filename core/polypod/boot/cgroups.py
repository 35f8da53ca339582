"""Removes the empty cgroups below ``server.cgroup_parent``; other servers' pods may live there."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from pathlib import Path

TRIES = 50
AGAIN_S = 0.05
"""A cgroup is busy for some milliseconds after its last process has gone."""


def hierarchies(mountinfo: Path = Path("/proc/self/mountinfo")) -> Iterator[Path]:
    """Yield where cgroup hierarchies of both versions are mounted."""
    for line in mountinfo.read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] in {"cgroup", "cgroup2"}:
            yield Path(before.split()[4])


async def remove(parent: str, mountinfo: Path = Path("/proc/self/mountinfo")) -> list[str]:
    """Remove a parent with all that is empty below it; return what is left of it, with the reason.

    A cgroup that still holds processes is another server's or somebody else's: it stays, and is no
    problem of ours. Relative components cannot lead out.
    """
    relative = os.path.normpath(parent).lstrip("/")
    if relative in {"", "."} or relative.startswith(".."):
        return []
    problems = []
    for hierarchy in hierarchies(mountinfo):
        problems += await _remove_tree(hierarchy / relative)
    return problems


async def _remove_tree(top: Path) -> list[str]:
    left = _sweep(top)
    for _ in range(TRIES):
        if not any(number == errno.EBUSY and not populated(path) for path, number in left):
            break
        await asyncio.sleep(AGAIN_S)
        left = _sweep(top)
    return [
        f"cgroup {path}: {os.strerror(number)}"
        for path, number in left
        if number != errno.EBUSY or not populated(path)
    ]


def _sweep(top: Path) -> list[tuple[Path, int]]:
    left = []
    for directory, _names, _files in os.walk(top, topdown=False):
        try:
            Path(directory).rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            left.append((Path(directory), error.errno or 0))
    return left


def populated(path: Path) -> bool:
    """Tell whether a process lives in a cgroup or below it."""
    for directory, _names, _files in os.walk(path):
        try:
            if (Path(directory) / "cgroup.procs").read_text().strip():
                return True
        except OSError:
            continue
    return False
