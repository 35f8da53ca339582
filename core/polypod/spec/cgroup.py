"""Limits as the texts that are written into cgroup files: pure, in the order in which to write them.

Who writes them, and where the controllers are mounted, is the backend's matter. A limit that a
hierarchy cannot express is refused here, before anything is made (E23).

Spec:
    runtime-spec config-linux.md, resources; Documentation/admin-guide/cgroup-v1/ and cgroup-v2.rst.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from polypod.plugin.errors import InvalidArgument, Unsupported
from polypod.plugin.oci import CpuLimits, MemoryLimits, OciResources
from polypod.spec.cgroup_devices import v1_device_files

Files = list[tuple[str, str]]
"""(file, text), in the order in which they are written."""

_MAX: Final = "max"
_SHARES: Final = (2, 262_144)
_WEIGHTS: Final = (1, 10_000)
_DEFAULT_PERIOD_US: Final = 100_000


def v1_files(
    resources: OciResources, *, current_memory: int | None = None, swap_accounting: bool = True
) -> dict[str, Files]:
    """Return what to write on cgroup v1, by controller.

    Args:
        resources: what is limited; what is not set is not written.
        current_memory: the memory limit in bytes that holds now (-1 = none), None for a new cgroup. It
            decides the order: the kernel refuses memory above memory + swap at any moment.
        swap_accounting: whether this host has the ``memory.memsw`` files.

    Raises:
        InvalidArgument: limits that contradict each other, or a malformed device rule.
        Unsupported: files of v2, or device rules that v1 cannot express.
    """
    if resources.unified:
        raise Unsupported(
            f"resources.unified {sorted(resources.unified)}: these are files of cgroup v2, "
            "this host has cgroup v1"
        )
    resources = _without_zeros(resources)
    found = {
        "devices": v1_device_files(resources.devices),
        "pids": _pids(resources),
        "memory": _v1_memory(resources.memory, current_memory, swap_accounting),
        "cpu": _v1_cpu(resources.cpu),
        "cpuset": _cpuset(resources.cpu),
        "hugetlb": [
            (f"hugetlb.{item.page_size}.limit_in_bytes", str(item.limit))
            for item in resources.hugepage_limits
        ],
    }
    return {controller: files for controller, files in found.items() if files}


def v2_files(resources: OciResources, *, current_memory: int | None = None) -> Files:
    """Return what to write on cgroup v2; raw ``unified`` keys come last and replace ours.

    Device rules are a program there: `polypod.spec.cgroup_devices.device_program`.

    Args:
        resources: what is limited; what is not set is not written.
        current_memory: the memory limit in bytes that holds now (-1 = none), None for a new cgroup.

    Raises:
        InvalidArgument: limits that contradict each other.
        Unsupported: what only v1 has (swappiness, no OOM killer).
    """
    resources = _without_zeros(resources)
    found = [
        *_pids(resources),
        *_v2_memory(resources.memory, current_memory),
        *_v2_cpu(resources.cpu),
        *_cpuset(resources.cpu),
        *((f"hugetlb.{item.page_size}.max", str(item.limit)) for item in resources.hugepage_limits),
    ]
    kept = [(name, text) for name, text in found if name not in resources.unified]
    # Files such as io.max take one line at a time.
    kept += [
        (name, line)
        for name, text in resources.unified.items()
        for line in text.split("\n")
        if line.strip()
    ]
    return kept


def cpu_weight(shares: int) -> int:
    """Return v2's weight for v1's shares: 2 → 1, 1024 → 100 (both defaults), 262144 → 10000.

    A curve through these three points; a line through the outer two would give the default a weight
    of 39, and a container without a request would win over it.
    """
    low, high = _SHARES
    if shares <= low:
        return _WEIGHTS[0]
    if shares >= high:
        return _WEIGHTS[1]
    power = math.log2(shares)
    exponent = (power * power + 125 * power) / 612 - 7 / 34
    # Less a little, because 1024 must not become 101 by rounding.
    return math.ceil(10**exponent - 1e-6)


def _without_zeros(resources: OciResources) -> OciResources:
    """Drop limits of 0: bundles in the field carry them where nothing is meant, and runc skips them."""
    memory, cpu = resources.memory, resources.cpu
    return replace(
        resources,
        memory=replace(
            memory,
            limit=memory.limit or None,
            swap=memory.swap or None,
            reservation=memory.reservation or None,
        ),
        cpu=replace(
            cpu,
            shares=cpu.shares or None,
            quota=cpu.quota or None,
            period=cpu.period or None,
        ),
    )


def _pids(resources: OciResources) -> Files:
    if resources.pids_limit is None:
        return []
    # The specification's "no limit" was 0 before it was -1.
    return [("pids.max", str(resources.pids_limit) if resources.pids_limit > 0 else _MAX)]


def _v1_memory(memory: MemoryLimits, current: int | None, swap_accounting: bool) -> Files:
    limit, swap = memory.limit, _checked_swap(memory, current)
    if swap is not None and not swap_accounting:
        if limit is not None and swap > limit > 0:
            raise Unsupported(f"memory.swap {swap}: this host does not account swap")
        swap = None
    pair: Files = []
    if limit is not None:
        pair.append(("memory.limit_in_bytes", str(limit)))
    if swap is not None:
        pair.append(("memory.memsw.limit_in_bytes", str(swap)))
    if limit is not None and current is not None and _size(limit) > _size(current):
        pair.reverse()
    if memory.reservation is not None:
        pair.append(("memory.soft_limit_in_bytes", str(memory.reservation)))
    if memory.swappiness is not None:
        pair.append(("memory.swappiness", str(memory.swappiness)))
    if memory.disable_oom_killer:
        pair.append(("memory.oom_control", "1"))
    return pair


def _v2_memory(memory: MemoryLimits, current: int | None) -> Files:
    if memory.swappiness is not None or memory.disable_oom_killer:
        raise Unsupported("memory.swappiness and disableOOMKiller: cgroup v2 has neither")
    found: Files = []
    swap = _checked_swap(memory, current)
    if swap is not None:
        found.append(("memory.swap.max", _v2_swap(memory.limit, swap)))
    if memory.limit is not None:
        found.append(("memory.max", _bytes(memory.limit)))
    if memory.reservation is not None:
        found.append(("memory.low", _bytes(memory.reservation)))
    return found


def _checked_swap(memory: MemoryLimits, current: int | None) -> int | None:
    """Return memory + swap; a limit that an update takes away takes that of swap with it."""
    limit, swap = memory.limit, memory.swap
    if swap is None:
        return -1 if limit == -1 and current is not None else None
    if swap >= 0 and limit is not None and (limit < 0 or swap < limit):
        raise InvalidArgument(
            f"memory.swap {swap}: is memory and swap together, so it must not be lower than "
            f"memory.limit {limit}"
        )
    return swap


def _v2_swap(limit: int | None, swap: int) -> str:
    if swap < 0:
        return _MAX
    if limit is None:
        raise InvalidArgument(f"memory.swap {swap}: needs memory.limit, which it includes")
    return str(swap - limit)


def _v1_cpu(cpu: CpuLimits) -> Files:
    found: Files = []
    if cpu.shares is not None:
        found.append(("cpu.shares", str(max(cpu.shares, _SHARES[0]))))
    # A quota is judged together with the period that holds when it is written.
    if cpu.period is not None:
        found.append(("cpu.cfs_period_us", str(cpu.period)))
    if cpu.quota is not None:
        found.append(("cpu.cfs_quota_us", str(cpu.quota)))
    return found


def _v2_cpu(cpu: CpuLimits) -> Files:
    found: Files = []
    if cpu.shares is not None:
        found.append(("cpu.weight", str(cpu_weight(cpu.shares))))
    if cpu.quota is not None or cpu.period is not None:
        quota = _MAX if cpu.quota is None or cpu.quota <= 0 else str(cpu.quota)
        found.append(("cpu.max", f"{quota} {cpu.period or _DEFAULT_PERIOD_US}"))
    return found


def _cpuset(cpu: CpuLimits) -> Files:
    pairs = (("cpuset.cpus", cpu.cpus), ("cpuset.mems", cpu.mems))
    return [(name, text) for name, text in pairs if text]


def _size(limit: int) -> float:
    return math.inf if limit < 0 else limit


def _bytes(limit: int) -> str:
    return _MAX if limit < 0 else str(limit)
