"""Counters of a container, from the cgroup that the runtime made.

Spec:
    working set = usage - inactive file pages, as the kubelet's own reader has it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from polypod.plugin import ContainerUsage
from polypod_oci.cgroups import Cgroups, number, table

_NO_LIMIT = 1 << 62
"""cgroup v1 says "no limit" with a number near 2^63."""


def read_usage(cgroups: Cgroups, path: str) -> ContainerUsage:
    """Return the counters; what the host does not count is None."""
    now = time.time_ns()
    old = cgroups.version == 1
    stat = _table(cgroups, "memory", path, "memory.stat")
    inside = "total_" if old else ""
    used = number(
        cgroups.file("memory", path, "memory.usage_in_bytes" if old else "memory.current")
    )
    limit = number(cgroups.file("memory", path, "memory.limit_in_bytes" if old else "memory.max"))
    working = None if used is None else max(used - stat.get(f"{inside}inactive_file", 0), 0)
    swap = (
        stat.get("total_swap")
        if old
        else number(cgroups.file("memory", path, "memory.swap.current"))
    )
    return ContainerUsage(
        timestamp_ns=now,
        cpu_usage_core_ns=_cpu(cgroups, path),
        memory_usage_bytes=used,
        memory_working_set_bytes=working,
        memory_rss_bytes=stat.get("total_rss" if old else "anon"),
        memory_page_faults=stat.get(f"{inside}pgfault"),
        memory_major_page_faults=stat.get(f"{inside}pgmajfault"),
        memory_available_bytes=_available(limit, working),
        swap_usage_bytes=swap,
        processes=number(cgroups.file("pids", path, "pids.current")),
    )


def _cpu(cgroups: Cgroups, path: str) -> int | None:
    if cgroups.version == 1:
        return number(cgroups.file("cpuacct", path, "cpuacct.usage"))
    microseconds = _table(cgroups, "cpu", path, "cpu.stat").get("usage_usec")
    return None if microseconds is None else microseconds * 1000


def _available(limit: int | None, working: int | None) -> int | None:
    if limit is None or working is None or limit >= _NO_LIMIT:
        return None
    return max(limit - working, 0)


def _table(cgroups: Cgroups, controller: str, path: str, name: str) -> Mapping[str, int]:
    file = cgroups.file(controller, path, name)
    return {} if file is None else table(file)
