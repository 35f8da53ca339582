"""Counters of a container, read from its cgroup.

Spec:
    working set = usage - inactive file pages, as the kubelet's own reader has it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from polypod.backend.cgroups import Cgroups
from polypod.plugin.runtime import ContainerUsage


def read(cgroups: Cgroups, path: str) -> ContainerUsage:
    """Return the counters of one cgroup; what the host does not count is None."""
    now = time.time_ns()
    return _read_v1(cgroups, path, now) if cgroups.version == 1 else _read_v2(cgroups, path, now)


def _read_v1(cgroups: Cgroups, path: str, now: int) -> ContainerUsage:
    cpu = cgroups.directory("cpuacct", path)
    memory = cgroups.directory("memory", path)
    pids = cgroups.directory("pids", path)
    stat = _table(memory, "memory.stat")
    usage = number(memory, "memory.usage_in_bytes")
    limit = number(memory, "memory.limit_in_bytes")
    return ContainerUsage(
        timestamp_ns=now,
        cpu_usage_core_ns=number(cpu, "cpuacct.usage"),
        memory_usage_bytes=usage,
        memory_working_set_bytes=_working_set(usage, stat.get("total_inactive_file")),
        memory_rss_bytes=stat.get("total_rss"),
        memory_page_faults=stat.get("total_pgfault"),
        memory_major_page_faults=stat.get("total_pgmajfault"),
        memory_available_bytes=_available(limit, usage, stat.get("total_inactive_file")),
        swap_usage_bytes=stat.get("total_swap"),
        processes=number(pids, "pids.current"),
    )


def _read_v2(cgroups: Cgroups, path: str, now: int) -> ContainerUsage:
    directory = cgroups.directory("memory", path)
    stat = _table(directory, "memory.stat")
    usage = number(directory, "memory.current")
    limit = number(directory, "memory.max")
    cpu = _table(directory, "cpu.stat").get("usage_usec")
    return ContainerUsage(
        timestamp_ns=now,
        cpu_usage_core_ns=None if cpu is None else cpu * 1000,
        memory_usage_bytes=usage,
        memory_working_set_bytes=_working_set(usage, stat.get("inactive_file")),
        memory_rss_bytes=stat.get("anon"),
        memory_page_faults=stat.get("pgfault"),
        memory_major_page_faults=stat.get("pgmajfault"),
        memory_available_bytes=_available(limit, usage, stat.get("inactive_file")),
        swap_usage_bytes=number(directory, "memory.swap.current"),
        processes=number(directory, "pids.current"),
    )


def _working_set(usage: int | None, inactive: int | None) -> int | None:
    if usage is None:
        return None
    return max(usage - (inactive or 0), 0)


# cgroup v1 says "no limit" with a number near 2^63.
_NO_LIMIT = 1 << 62


def _available(limit: int | None, usage: int | None, inactive: int | None) -> int | None:
    working = _working_set(usage, inactive)
    if limit is None or limit >= _NO_LIMIT or working is None:
        return None
    return max(limit - working, 0)


def number(directory: Path | None, name: str) -> int | None:
    """Read a file with one number; None if there is none, or no directory."""
    if directory is None:
        return None
    try:
        text = (directory / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _table(directory: Path | None, name: str) -> Mapping[str, int]:
    if directory is None:
        return {}
    try:
        lines = (directory / name).read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
