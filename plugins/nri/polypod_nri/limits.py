"""Limits: NRI's, the runtime-spec's and CRI's, from one to another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from polypod.plugin import HugepageLimit, Resources
from polypod.plugin.oci import DeviceRule, OciResources
from polypod_nri.wire import api

MEMORY = {
    "limit": "MemLimit",
    "reservation": "MemReservation",
    "swap": "MemSwapLimit",
    "kernel": "MemKernelLimit",
    "kernel_tcp": "MemTCPLimit",
    "swappiness": "MemSwappiness",
    "disable_oom_killer": "MemDisableOomKiller",
    "use_hierarchy": "MemUseHierarchy",
}
"""Field of the message → its name in ``Field``. So with the other table."""
CPU = {
    "shares": "CPUShares",
    "quota": "CPUQuota",
    "period": "CPUPeriod",
    "realtime_runtime": "CPURealtimeRuntime",
    "realtime_period": "CPURealtimePeriod",
    "cpus": "CPUSetCPUs",
    "mems": "CPUSetMems",
}


def fields(found: api.LinuxResources) -> Iterator[tuple[str, str, Any]]:
    """Yield (field, key, value) of every limit that a message sets.

    The field is a name of ``Field``; the key is ``""`` where the field has none.
    """
    for name, field in MEMORY.items():
        if found.memory.HasField(name):
            yield field, "", getattr(found.memory, name).value
    for name, field in CPU.items():
        value = getattr(found.cpu, name)
        if isinstance(value, str):
            if value:
                yield field, "", value
        elif found.cpu.HasField(name):
            yield field, "", value.value
    for item in found.hugepage_limits:
        yield "HugepageLimits", item.page_size, item.limit
    for name, field in (("blockio_class", "BlockioClass"), ("rdt_class", "RdtClass")):
        if found.HasField(name):
            yield field, "", getattr(found, name).value
    for key, text in found.unified.items():
        yield "CgroupsUnified", key, text
    if found.HasField("pids"):
        yield "PidsLimit", "", found.pids.limit


_CRI = {
    "MemLimit": "memory_limit_in_bytes",
    "MemSwapLimit": "memory_swap_limit_in_bytes",
    "CPUShares": "cpu_shares",
    "CPUQuota": "cpu_quota",
    "CPUPeriod": "cpu_period",
    "CPUSetCPUs": "cpuset_cpus",
    "CPUSetMems": "cpuset_mems",
}


class CannotUpdate(Exception):
    """An update asks for what UpdateContainerResources cannot change; the text names the field."""


def to_cri(wanted: Iterator[tuple[str, str, Any]]) -> Resources:
    """Return limits in CRI's words.

    Raises:
        CannotUpdate: CRI has no word for one.
    """
    values: dict[str, Any] = {}
    pages: list[HugepageLimit] = []
    unified: dict[str, str] = {}
    for field, key, value in wanted:
        if field in _CRI:
            values[_CRI[field]] = value
        elif field == "HugepageLimits":
            pages.append(HugepageLimit(key, value))
        elif field == "CgroupsUnified":
            unified[key] = value
        elif field == "PidsLimit":
            unified["pids.max"] = str(value) if value > 0 else "max"
        else:
            raise CannotUpdate(f"{field} of a container that exists cannot be changed")
    return Resources(**values, hugepage_limits=tuple(pages), unified=unified)


def from_cri(found: Resources | None) -> api.LinuxResources:
    """Return CRI's limits as a message; 0 and ``""`` are not set."""
    message = api.LinuxResources()
    if found is None:
        return message
    for field, name in _CRI.items():
        value = getattr(found, name)
        if not value:
            continue
        target = message.memory if field.startswith("Mem") else message.cpu
        table = MEMORY if field.startswith("Mem") else CPU
        ours = next(key for key, each in table.items() if each == field)
        _set(target, ours, value)
    for item in found.hugepage_limits:
        message.hugepage_limits.add(page_size=item.page_size, limit=item.limit)
    message.unified.update(found.unified)
    return message


def from_oci(found: OciResources) -> api.LinuxResources:
    """Return the runtime-spec's limits as a message."""
    message = api.LinuxResources()
    for name in ("limit", "reservation", "swap", "swappiness"):
        value = getattr(found.memory, name)
        if value is not None:
            _set(message.memory, name, value)
    if found.memory.disable_oom_killer:
        message.memory.disable_oom_killer.value = True
    for name in ("shares", "quota", "period"):
        value = getattr(found.cpu, name)
        if value is not None:
            _set(message.cpu, name, value)
    message.cpu.cpus, message.cpu.mems = found.cpu.cpus, found.cpu.mems
    if found.pids_limit is not None:
        message.pids.limit = found.pids_limit
    for item in found.hugepage_limits:
        message.hugepage_limits.add(page_size=item.page_size, limit=item.limit)
    message.unified.update(found.unified)
    for rule in found.devices:
        _device_rule(message, rule)
    return message


def _device_rule(message: api.LinuxResources, rule: DeviceRule) -> None:
    added = message.devices.add(allow=rule.allow, type=rule.type, access=rule.access)
    if rule.major is not None:
        added.major.value = rule.major
    if rule.minor is not None:
        added.minor.value = rule.minor


def _set(message: Any, name: str, value: Any) -> None:  # noqa: ANN401 - messages of several kinds
    if isinstance(value, str):
        setattr(message, name, value)
    else:
        getattr(message, name).value = value
