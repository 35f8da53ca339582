"""CRI resources to OCI resources, and the merge of an update into what was asked before."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from polypod.plugin.errors import InvalidArgument, Unsupported
from polypod.plugin.oci import (
    CpuLimits,
    DeviceRule,
    MemoryLimits,
    OciHugepageLimit,
    OciResources,
)
from polypod.plugin.requests import HugepageLimit, Resources

UNLIMITED: Final = -1
# kernel/sched/core.c: periods from 1 ms to 1 s, quotas of at least 1 ms.
_MIN_QUOTA_US: Final = 1_000
_PERIOD_US: Final = range(1_000, 1_000_001)
_MAX_OOM_SCORE: Final = 1000
_CPU_LIST: Final = re.compile(r"[0-9]{1,5}(-[0-9]{1,5}(:[0-9]{1,5}/[0-9]{1,5})?)?")
_UNIFIED_KEY: Final = re.compile(r"[a-z][a-z0-9_]*(\.[A-Za-z0-9_]+)+")
_PAGE_SIZE: Final = re.compile(r"[1-9][0-9]*[KMG]B")


@dataclass(frozen=True, slots=True)
class CgroupFacts:
    """What the host's cgroups can do; `ordinary` hosts can do all of it."""

    version: int = 2
    hugepage_sizes: frozenset[str] = frozenset()
    """Page sizes for which a hugetlb controller exists, such as ``2MB``."""
    swap_accounting: bool = True
    oom_score_adj_min: int = -_MAX_OOM_SCORE
    """The lowest value that may be set here: our own where CAP_SYS_RESOURCE is missing."""


def oci_resources(
    resources: Resources, facts: CgroupFacts, devices: tuple[DeviceRule, ...] = ()
) -> OciResources:
    """Return a container's limits.

    Raises:
        InvalidArgument: a value is out of range, or swap is lower than memory.
        Unsupported: this host has no controller for what is asked (E23).

    Spec:
        kubernetes/cri-api api.proto, LinuxContainerResources; runtime-spec config-linux.md.
    """
    if resources.unified and facts.version != 2:
        raise Unsupported(
            f"resources.unified {sorted(resources.unified)}: these are files of cgroup v2, "
            "this host has cgroup v1"
        )
    _check_unified(resources.unified)
    return OciResources(
        devices=devices,
        memory=_memory(resources, facts),
        cpu=_cpu(resources),
        hugepage_limits=_hugepages(resources.hugepage_limits, facts),
        unified=dict(resources.unified),
    )


def oom_score(resources: Resources, facts: CgroupFacts) -> int:
    """Return ``oom_score_adj``, raised to the lowest value that this host lets us set."""
    wanted = resources.oom_score_adj
    if not -_MAX_OOM_SCORE <= wanted <= _MAX_OOM_SCORE:
        raise InvalidArgument(f"resources.oom_score_adj {wanted}: must be from -1000 to 1000")
    return max(wanted, facts.oom_score_adj_min)


def merge_resources(old: Resources, update: Resources) -> Resources:
    """Return what holds after UpdateContainerResources: 0 and ``""`` keep the old value.

    A container whose swap limit equalled its memory limit (it may not swap) keeps that when only the
    memory limit moves.

    Raises:
        InvalidArgument: the result contradicts itself.
    """
    merged = replace(
        old,
        cpu_period=update.cpu_period or old.cpu_period,
        cpu_quota=update.cpu_quota or old.cpu_quota,
        cpu_shares=update.cpu_shares or old.cpu_shares,
        memory_limit_in_bytes=update.memory_limit_in_bytes or old.memory_limit_in_bytes,
        oom_score_adj=update.oom_score_adj or old.oom_score_adj,
        cpuset_cpus=update.cpuset_cpus or old.cpuset_cpus,
        cpuset_mems=update.cpuset_mems or old.cpuset_mems,
        hugepage_limits=_merge_hugepages(old.hugepage_limits, update.hugepage_limits),
        unified={**old.unified, **update.unified},
        memory_swap_limit_in_bytes=_merged_swap(old, update),
    )
    _check_memory(merged)
    return merged


def _merged_swap(old: Resources, update: Resources) -> int:
    if update.memory_swap_limit_in_bytes:
        return update.memory_swap_limit_in_bytes
    swapless = old.memory_swap_limit_in_bytes == old.memory_limit_in_bytes
    if swapless and old.memory_limit_in_bytes and update.memory_limit_in_bytes:
        return update.memory_limit_in_bytes
    return old.memory_swap_limit_in_bytes


def _merge_hugepages(
    old: tuple[HugepageLimit, ...], update: tuple[HugepageLimit, ...]
) -> tuple[HugepageLimit, ...]:
    merged = {item.page_size: item for item in old}
    merged.update({item.page_size: item for item in update})
    return tuple(merged.values())


def _memory(resources: Resources, facts: CgroupFacts) -> MemoryLimits:
    _check_memory(resources)
    limit, swap = resources.memory_limit_in_bytes, resources.memory_swap_limit_in_bytes
    if limit > 0 and not swap:
        # Kubernetes means "no swap" unless it says otherwise; memory + swap is the unit of v1.
        swap = limit
    if swap and not facts.swap_accounting:
        if swap > limit > 0:
            raise Unsupported(
                f"resources.memory_swap_limit_in_bytes {swap}: this host does not account swap"
            )
        swap = 0
    return MemoryLimits(limit=limit or None, swap=swap or None)


def _check_memory(resources: Resources) -> None:
    limit, swap = resources.memory_limit_in_bytes, resources.memory_swap_limit_in_bytes
    for field, value in (("memory_limit_in_bytes", limit), ("memory_swap_limit_in_bytes", swap)):
        if value < UNLIMITED:
            raise InvalidArgument(f"resources.{field} {value}: must be -1 (no limit) or more")
    if swap > 0 and (limit == UNLIMITED or swap < limit):
        raise InvalidArgument(
            f"resources.memory_swap_limit_in_bytes {swap}: memory and swap together, so it must not be "
            f"lower than memory_limit_in_bytes {limit}"
        )


def _cpu(resources: Resources) -> CpuLimits:
    shares, quota, period = resources.cpu_shares, resources.cpu_quota, resources.cpu_period
    if shares < 0:
        raise InvalidArgument(f"resources.cpu_shares {shares}: must not be negative")
    if quota not in (0, UNLIMITED) and quota < _MIN_QUOTA_US:
        raise InvalidArgument(
            f"resources.cpu_quota {quota}: must be -1 or {_MIN_QUOTA_US} µs or more"
        )
    if period and period not in _PERIOD_US:
        raise InvalidArgument(f"resources.cpu_period {period}: must be from 1000 to 1000000 µs")
    return CpuLimits(
        shares=shares or None,
        quota=quota or None,
        period=period or None,
        cpus=_id_list(resources.cpuset_cpus, "cpuset_cpus"),
        mems=_id_list(resources.cpuset_mems, "cpuset_mems"),
    )


def _id_list(text: str, field: str) -> str:
    for item in text.split(",") if text else ():
        if not _CPU_LIST.fullmatch(item):
            raise InvalidArgument(f"resources.{field} {text!r}: give a list such as 0-3,7")
    return text


def _hugepages(
    limits: tuple[HugepageLimit, ...], facts: CgroupFacts
) -> tuple[OciHugepageLimit, ...]:
    kept = []
    for item in limits:
        if item.limit < 0 or not _PAGE_SIZE.fullmatch(item.page_size):
            raise InvalidArgument(
                f"resources.hugepage_limits {item.page_size!r}={item.limit}: give a size such as 2MB "
                "and a limit in bytes"
            )
        if item.page_size in facts.hugepage_sizes:
            kept.append(OciHugepageLimit(item.page_size, item.limit))
        elif item.limit:
            raise Unsupported(
                f"resources.hugepage_limits {item.page_size}: this host has no hugetlb controller for it"
            )
        # A limit of 0 without a controller: the kubelet names every page size in every request, and
        # huge pages that nobody accounts cannot be had through a limit anyway.
    return tuple(kept)


def _check_unified(unified: Mapping[str, str]) -> None:
    for key, value in unified.items():
        if not _UNIFIED_KEY.fullmatch(key) or key.startswith("cgroup."):
            raise InvalidArgument(
                f"resources.unified {key!r}: must be a controller's file such as memory.high"
            )
        if not value or "\0" in value:
            raise InvalidArgument(f"resources.unified {key!r}: must have a value without NUL")
