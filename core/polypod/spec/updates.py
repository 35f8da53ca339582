"""What UpdateContainerResources changes: fields that belong together, their way back, their place in a config.

A backend writes what a `Resources` sets and leaves the rest alone. So an update is brought into a form in
which what the kernel judges together is told together: memory with swap, a cpu quota with its period.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from polypod.plugin.oci import CpuLimits, MemoryLimits, OciConfig, OciResources
from polypod.plugin.requests import HugepageLimit, Resources

_DEFAULT_SHARES: Final = 1024
_DEFAULT_PERIOD_US: Final = 100_000
_UNLIMITED: Final = -1
_MEMORY: Final = ("memory_limit_in_bytes", "memory_swap_limit_in_bytes")
_QUOTA: Final = ("cpu_quota", "cpu_period")
_ALONE: Final = ("cpu_shares", "cpuset_cpus", "cpuset_mems", "oom_score_adj")


def effective_update(update: Resources, merged: Resources) -> Resources:
    """Return what a backend is to write.

    Args:
        update: as asked; 0 and ``""`` keep what is.
        merged: `polypod.spec.resources.merge_resources` of what was and the update.
    """
    wanted = {name: getattr(update, name) for name in _ALONE}
    for pair in (_MEMORY, _QUOTA):
        if any(getattr(update, name) for name in pair):
            wanted.update({name: getattr(merged, name) for name in pair})
    return Resources(**wanted, hugepage_limits=update.hugepage_limits, unified=dict(update.unified))


def way_back(old: Resources, change: Resources) -> Resources:
    """Return the update that undoes another one, as far as there is a word for what was.

    A cpuset, a huge page limit or a raw file that was not set before stays as the change left it.
    """
    wanted: dict[str, int | str] = {
        name: getattr(old, name) for name in _ALONE if getattr(change, name)
    }
    if change.cpu_shares and not old.cpu_shares:
        wanted["cpu_shares"] = _DEFAULT_SHARES
    if change.memory_limit_in_bytes or change.memory_swap_limit_in_bytes:
        limit = old.memory_limit_in_bytes or _UNLIMITED
        wanted["memory_limit_in_bytes"] = limit
        wanted["memory_swap_limit_in_bytes"] = old.memory_swap_limit_in_bytes or limit
    if change.cpu_quota or change.cpu_period:
        wanted["cpu_quota"] = old.cpu_quota or _UNLIMITED
        wanted["cpu_period"] = old.cpu_period or _DEFAULT_PERIOD_US
    sizes = {item.page_size for item in change.hugepage_limits}
    return Resources(
        **wanted,  # type: ignore[arg-type]  # each by the name of its field
        hugepage_limits=tuple(item for item in old.hugepage_limits if item.page_size in sizes),
        unified={key: text for key, text in old.unified.items() if key in change.unified},
    )


def pod_total(resources: Resources | None, overhead: Resources | None) -> Resources:
    """Return what a pod may take in all: the sum of its containers' limits and what runs it costs.

    Nothing that is unlimited, or not told, becomes a limit by adding to it.
    """
    wanted = resources or Resources()
    extra = overhead or Resources()
    period = wanted.cpu_period or extra.cpu_period
    quota = wanted.cpu_quota
    if quota > 0 and extra.cpu_quota > 0:
        own = extra.cpu_period or _DEFAULT_PERIOD_US
        quota += extra.cpu_quota * (period or _DEFAULT_PERIOD_US) // own
    return replace(
        wanted,
        cpu_period=period,
        cpu_quota=quota,
        cpu_shares=wanted.cpu_shares and wanted.cpu_shares + extra.cpu_shares,
        memory_limit_in_bytes=_sum(wanted.memory_limit_in_bytes, extra.memory_limit_in_bytes),
        memory_swap_limit_in_bytes=_sum(
            wanted.memory_swap_limit_in_bytes, extra.memory_limit_in_bytes
        ),
        oom_score_adj=0,
    )


def overlay(old: OciResources, change: OciResources) -> OciResources:
    """Return limits after a change; what the change does not set stays."""
    sizes = {item.page_size: item for item in (*old.hugepage_limits, *change.hugepage_limits)}
    return replace(
        old,
        memory=_over_memory(old.memory, change.memory),
        cpu=_over_cpu(old.cpu, change.cpu),
        hugepage_limits=tuple(sizes.values()),
        unified={**old.unified, **change.unified},
    )


def adjusted_limits(told: Resources, before: OciConfig, after: OciConfig) -> Resources:
    """Return what status reports of a container whose config plugins have changed.

    Args:
        told: the limits of the request.
        before: the config that was made of it.
        after: what plugins made of that.
    """
    old, new = before.linux.resources, after.linux.resources
    pairs: dict[str, tuple[int | str | None, int | str | None]] = {
        "memory_limit_in_bytes": (old.memory.limit, new.memory.limit),
        "memory_swap_limit_in_bytes": (old.memory.swap, new.memory.swap),
        "cpu_shares": (old.cpu.shares, new.cpu.shares),
        "cpu_quota": (old.cpu.quota, new.cpu.quota),
        "cpu_period": (old.cpu.period, new.cpu.period),
        "cpuset_cpus": (old.cpu.cpus, new.cpu.cpus),
        "cpuset_mems": (old.cpu.mems, new.cpu.mems),
        "oom_score_adj": (before.process.oom_score_adj, after.process.oom_score_adj),
    }
    changed = {name: value for name, (was, value) in pairs.items() if value and value != was}
    pages = {each.page_size: each for each in told.hugepage_limits}
    for limit in new.hugepage_limits:
        if limit not in old.hugepage_limits:
            pages[limit.page_size] = HugepageLimit(limit.page_size, limit.limit)
    files = {key: text for key, text in new.unified.items() if old.unified.get(key) != text}
    return replace(
        told,
        **changed,  # type: ignore[arg-type]  # each by the name of its field
        hugepage_limits=tuple(pages.values()),
        unified={**told.unified, **files},
    )


def _over_memory(old: MemoryLimits, change: MemoryLimits) -> MemoryLimits:
    if change.limit is None and change.swap is None:
        return old
    return replace(old, limit=change.limit, swap=change.swap)


def _over_cpu(old: CpuLimits, change: CpuLimits) -> CpuLimits:
    return CpuLimits(
        shares=change.shares if change.shares is not None else old.shares,
        quota=change.quota if change.quota is not None else old.quota,
        period=change.period if change.period is not None else old.period,
        cpus=change.cpus or old.cpus,
        mems=change.mems or old.mems,
    )


def _sum(limit: int, extra: int) -> int:
    return limit + max(extra, 0) if limit > 0 else limit
