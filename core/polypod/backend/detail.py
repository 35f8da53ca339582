"""Counters that metrics have beyond `polypod.backend.usage`: read only when somebody asks for metrics.

Spec:
    Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst; the figures are those of cAdvisor.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final, TypeVar

from polypod.backend.cgroups import Cgroups
from polypod.backend.usage import number, read_text, table
from polypod.plugin.runtime import ContainerDetail, DeviceIo, MetricGroup

_Id = TypeVar("_Id")
_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_SOFT_FILES: Final = "Max open files"
_OPERATIONS: Final = ("Read", "Write")


def read_all(
    cgroups: Cgroups, paths: Mapping[_Id, str], groups: frozenset[MetricGroup]
) -> dict[_Id, ContainerDetail]:
    """Return the details of many cgroups, as far as these groups need them."""
    return {each: read(cgroups, path, groups) for each, path in paths.items()}


def read(cgroups: Cgroups, path: str, groups: frozenset[MetricGroup]) -> ContainerDetail:
    """Return the details of one cgroup; what the host does not count, or nobody asked for, is None."""
    found: dict[str, object] = {}
    old = cgroups.version == 1
    if MetricGroup.CPU in groups:
        found.update((_cpu_v1 if old else _cpu_v2)(cgroups, path))
    if MetricGroup.MEMORY in groups:
        found.update((_memory_v1 if old else _memory_v2)(cgroups, path))
    if MetricGroup.OOM in groups:
        found["oom_kills"] = cgroups.oom_kills(path)
    if MetricGroup.DISK_IO in groups:
        found["io"] = (_io_v1 if old else _io_v2)(cgroups, path)
    if MetricGroup.PROCESS in groups:
        found.update(_processes(cgroups, path))
    return ContainerDetail(timestamp_ns=time.time_ns(), **found)  # type: ignore[arg-type]


def _cpu_v1(cgroups: Cgroups, path: str) -> dict[str, object]:
    ticks = table(cgroups.directory("cpuacct", path), "cpuacct.stat")
    stat = table(cgroups.directory("cpu", path), "cpu.stat")
    return {
        "cpu_user_ns": _times(ticks.get("user"), _TICK_NS),
        "cpu_system_ns": _times(ticks.get("system"), _TICK_NS),
        "cpu_periods": stat.get("nr_periods"),
        "cpu_throttled_periods": stat.get("nr_throttled"),
        "cpu_throttled_ns": stat.get("throttled_time"),
    }


def _cpu_v2(cgroups: Cgroups, path: str) -> dict[str, object]:
    stat = table(cgroups.directory("cpu", path), "cpu.stat")
    return {
        "cpu_user_ns": _times(stat.get("user_usec"), 1000),
        "cpu_system_ns": _times(stat.get("system_usec"), 1000),
        "cpu_periods": stat.get("nr_periods"),
        "cpu_throttled_periods": stat.get("nr_throttled"),
        "cpu_throttled_ns": _times(stat.get("throttled_usec"), 1000),
    }


def _memory_v1(cgroups: Cgroups, path: str) -> dict[str, object]:
    directory = cgroups.directory("memory", path)
    stat = table(directory, "memory.stat")
    return {
        "memory_cache_bytes": stat.get("total_cache"),
        "memory_mapped_file_bytes": stat.get("total_mapped_file"),
        "memory_kernel_bytes": number(directory, "memory.kmem.usage_in_bytes"),
        "memory_max_usage_bytes": number(directory, "memory.max_usage_in_bytes"),
        "memory_limit_hits": number(directory, "memory.failcnt"),
    }


def _memory_v2(cgroups: Cgroups, path: str) -> dict[str, object]:
    directory = cgroups.directory("memory", path)
    stat = table(directory, "memory.stat")
    return {
        "memory_cache_bytes": stat.get("file"),
        "memory_mapped_file_bytes": stat.get("file_mapped"),
        "memory_kernel_bytes": stat.get("kernel"),
        "memory_max_usage_bytes": number(directory, "memory.peak"),
        "memory_limit_hits": table(directory, "memory.events").get("max"),
    }


def _io_v1(cgroups: Cgroups, path: str) -> tuple[DeviceIo, ...]:
    directory = cgroups.directory("blkio", path)
    sizes = _per_device(directory, "blkio.throttle.io_service_bytes_recursive")
    numbers = _per_device(directory, "blkio.throttle.io_serviced_recursive")
    return tuple(
        DeviceIo(
            device_name(device),
            device,
            read_bytes=sizes[device].get("Read", 0),
            write_bytes=sizes[device].get("Write", 0),
            reads=numbers.get(device, {}).get("Read", 0),
            writes=numbers.get(device, {}).get("Write", 0),
        )
        for device in sizes
    )


def _per_device(directory: Path | None, name: str) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for line in read_text(directory, name).splitlines():
        words = line.split()
        if len(words) == 3 and words[1] in _OPERATIONS:
            found.setdefault(words[0], {})[words[1]] = int(words[2])
    return found


def _io_v2(cgroups: Cgroups, path: str) -> tuple[DeviceIo, ...]:
    found = []
    for line in read_text(cgroups.directory("io", path), "io.stat").splitlines():
        device, *pairs = line.split()
        told = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        counts = {key: int(value) for key, value in told.items() if value.isdigit()}
        if "rbytes" in counts:
            found.append(
                DeviceIo(
                    device_name(device),
                    device,
                    read_bytes=counts["rbytes"],
                    write_bytes=counts.get("wbytes", 0),
                    reads=counts.get("rios", 0),
                    writes=counts.get("wios", 0),
                )
            )
    return tuple(found)


@cache
def device_name(device: str) -> str:
    """Return ``/dev/NAME`` of a block device's ``major:minor``, or that, where it has no name."""
    for line in read_text(Path("/sys/dev/block") / device, "uevent").splitlines():
        if line.startswith("DEVNAME="):
            return f"/dev/{line.partition('=')[2]}"
    return device


def _processes(cgroups: Cgroups, path: str) -> dict[str, object]:
    directory = cgroups.directory("pids", path)
    pids = cgroups.processes(path)
    files = sockets = 0
    for pid in pids:
        opened = _open_files(pid)
        files += len(opened)
        sockets += sum(each.startswith("socket:") for each in opened)
    return {
        "processes": len(pids),
        "threads_max": _threads_max(directory),
        "file_descriptors": files,
        "sockets": sockets,
        "soft_files": _soft_files(pids[0]) if pids else None,
    }


def _threads_max(directory: Path | None) -> int | None:
    """Return the limit of this cgroup, 0 for none; None where threads are not counted."""
    unlimited = read_text(directory, "pids.max").strip() == "max"
    return 0 if unlimited else number(directory, "pids.max")


def _open_files(pid: int) -> list[str]:
    """Return what a process has open; nothing for one that has just ended."""
    found: list[str] = []
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            found.extend(os.readlink(entry.path) for entry in entries)
    except OSError:
        return found
    return found


def _soft_files(pid: int) -> int | None:
    for line in read_text(Path(f"/proc/{pid}"), "limits").splitlines():
        if line.startswith(_SOFT_FILES):
            soft = line[len(_SOFT_FILES) :].split()[0]
            return int(soft) if soft.isdigit() else None
    return None


def _times(value: int | None, factor: int) -> int | None:
    return None if value is None else value * factor
