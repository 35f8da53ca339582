"""Processor time and memory of daemon, keeper, supervisor and logger."""

from __future__ import annotations

import os
from pathlib import Path


class ServerCgroup:
    """A cgroup that the server starts in: containers leave it, so what it counts is ours alone.

    cgroup v1 ``cpuacct`` or v2; where neither can be made, `/proc` counts instead.

    Args:
        name: tells the cgroups of one bench apart.
    """

    def __init__(self, name: str) -> None:
        base = base_of_cgroups()
        self.path = self._make(base / f"polypod-bench-{name}-{os.getpid()}") if base else None

    @staticmethod
    def _make(path: Path) -> Path | None:
        try:
            path.mkdir()
        except OSError:
            return None
        return path

    def take(self, pid: int) -> None:
        """Put a process in, before it starts others."""
        if self.path is not None:
            (self.path / "cgroup.procs").write_text(str(pid))

    def pids(self) -> list[int]:
        """Return who is in it; nobody where there is none."""
        if self.path is None:
            return []
        return [int(text) for text in (self.path / "cgroup.procs").read_text().split()]

    def cpu_s(self, pids: list[int]) -> float:
        """Return the processor time so far, in seconds."""
        if self.path is None:
            return sum(_stat_cpu_s(pid) for pid in pids)
        return usage_s(self.path)

    def remove(self) -> None:
        """Remove the cgroup; the server has ended before."""
        if self.path is not None:
            self.path.rmdir()


def usage_s(cgroup: Path) -> float:
    """Return the processor time of a cgroup and all below it, in seconds; 0 for one that is not there."""
    try:
        if (cgroup / "cpuacct.usage").exists():
            return int((cgroup / "cpuacct.usage").read_text()) / 1e9
        stat = dict(line.split() for line in (cgroup / "cpu.stat").read_text().splitlines())
    except FileNotFoundError:
        return 0.0
    return int(stat["usage_usec"]) / 1e6


def base_of_cgroups() -> Path | None:
    """Return the hierarchy that counts processor time, if cgroups can be made in it."""
    for base in (Path("/sys/fs/cgroup/cpuacct"), Path("/sys/fs/cgroup")):
        counts = (base / "cpuacct.usage").exists() or (base / "cgroup.controllers").exists()
        if counts and os.access(base, os.W_OK):
            return base
    return None


def ours(daemon: int, state: Path) -> dict[str, int]:
    """Return role → pid of the processes that serve a state directory."""
    found = {"daemon": daemon}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        for role in ("keeper", "supervisor", "logger"):
            if role.encode() in words and os.fsencode(state) in words:
                found[role] = int(entry.name)
    return found


def pss_kib(pid: int) -> int:
    """Return the proportional set size: shared pages count by the number of those who share them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def _stat_cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
