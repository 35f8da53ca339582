"""Counters of a container, read from its cgroup.

Spec:
    working set = usage - inactive file pages, as the kubelet's own reader has it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from polypod.backend.cgroups import Cgroups
from polypod.plugin.runtime import ContainerUsage, Pressure, PressureLine

_Id = TypeVar("_Id")
SOURCE = "cgroup"
_FILE_BYTES = 64 * 1024
"""More than any counter file has."""


def read(cgroups: Cgroups, path: str) -> ContainerUsage:
    """Return the counters of one cgroup; what the host does not count is None."""
    now = time.time_ns()
    return _read_v1(cgroups, path, now) if cgroups.version == 1 else _read_v2(cgroups, path, now)


def read_all(cgroups: Cgroups, groups: Mapping[_Id, str]) -> dict[_Id, ContainerUsage]:
    """Return the counters of many cgroups; those that are gone by now are left out."""
    found = ((each, read(cgroups, path)) for each, path in groups.items())
    return {each: usage for each, usage in found if _counted(usage)}


def _counted(usage: ContainerUsage) -> bool:
    told = (usage.cpu_usage_core_ns, usage.memory_usage_bytes, usage.processes)
    return any(value is not None for value in told)


def _read_v1(cgroups: Cgroups, path: str, now: int) -> ContainerUsage:
    cpu = cgroups.directory("cpuacct", path)
    memory = cgroups.directory("memory", path)
    pids = cgroups.directory("pids", path)
    stat = table(memory, "memory.stat")
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
        swap_available_bytes=_swap_v1(memory, stat.get("total_swap"), limit),
        processes=number(pids, "pids.current"),
        source=SOURCE,
    )


def _read_v2(cgroups: Cgroups, path: str, now: int) -> ContainerUsage:
    directory = cgroups.directory("memory", path)
    stat = table(directory, "memory.stat")
    usage = number(directory, "memory.current")
    limit = number(directory, "memory.max")
    cpu = table(directory, "cpu.stat").get("usage_usec")
    return ContainerUsage(
        timestamp_ns=now,
        cpu_usage_core_ns=None if cpu is None else cpu * 1000,
        memory_usage_bytes=usage,
        memory_working_set_bytes=_working_set(usage, stat.get("inactive_file")),
        memory_rss_bytes=stat.get("anon"),
        memory_page_faults=stat.get("pgfault"),
        memory_major_page_faults=stat.get("pgmajfault"),
        memory_available_bytes=_available(limit, usage, stat.get("inactive_file")),
        swap_usage_bytes=(swap := number(directory, "memory.swap.current")),
        swap_available_bytes=_left(number(directory, "memory.swap.max"), swap),
        processes=number(directory, "pids.current"),
        cpu_pressure=_pressure(directory, "cpu.pressure"),
        memory_pressure=_pressure(directory, "memory.pressure"),
        io_pressure=_pressure(directory, "io.pressure"),
        source=SOURCE,
    )


def _pressure(directory: Path | None, name: str) -> Pressure | None:
    """Read a pressure file; None where the kernel has none (no PSI, or ``psi=0``)."""
    text = read_text(directory, name)
    if not text:
        return None
    lines: dict[str, PressureLine] = {}
    for line in text.splitlines():
        kind, *pairs = line.split()
        told = dict(pair.split("=", 1) for pair in pairs)
        lines[kind] = PressureLine(
            float(told["avg10"]),
            float(told["avg60"]),
            float(told["avg300"]),
            int(told["total"]) * 1000,  # µs in the file
        )
    return Pressure(lines.get("some", PressureLine()), lines.get("full", PressureLine()))


def _swap_v1(memory: Path | None, swap: int | None, limit: int | None) -> int | None:
    """Memory and swap have one limit together on v1: what it is above the memory limit is swap."""
    both = number(memory, "memory.memsw.limit_in_bytes")
    if both is None or limit is None or both >= _NO_LIMIT:
        return None
    return _left(both - limit, swap)


def _left(limit: int | None, used: int | None) -> int | None:
    return None if limit is None or used is None else max(limit - used, 0)


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
    text = read_text(directory, name).strip()
    return int(text) if text.isdigit() else None


def table(directory: Path | None, name: str) -> dict[str, int]:
    """Read a file of lines with a name and a number each; a missing one is empty."""
    words = read_text(directory, name).split()
    pairs = zip(words[::2], words[1::2], strict=False)
    return {key: int(value) for key, value in pairs if value.isdigit()}


def read_text(directory: Path | None, name: str) -> str:
    """Read a small file; a missing one is empty. Plain calls: hundreds of pods are read at once."""
    if directory is None:
        return ""
    try:
        descriptor = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(descriptor, _FILE_BYTES).decode()
    except OSError:
        return ""
    finally:
        os.close(descriptor)
