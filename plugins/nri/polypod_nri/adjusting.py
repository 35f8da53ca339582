"""What plugins make of a new container: one adjustment after the other, no field by two of them.

A name with ``-`` before it asks for removal. Removal and a new value in one adjustment replace what
another plugin set; without the removal that is a conflict, which fails the container and names both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from polypod.plugin import FailedPrecondition
from polypod.plugin.oci import (
    DeviceRule,
    Hook,
    Namespace,
    OciConfig,
    OciDevice,
    OciHugepageLimit,
    OciMount,
    OciResources,
    Rlimit,
    Seccomp,
    SeccompArg,
    SeccompRule,
)
from polypod_nri import limits
from polypod_nri.owners import Owners
from polypod_nri.wire import api

_HOOKS = (
    "prestart",
    "create_runtime",
    "create_container",
    "start_container",
    "poststart",
    "poststop",
)
_UNSUPPORTED = {
    "io_priority": "an io priority",
    "scheduler": "a scheduler",
    "rdt": "cache allocation (rdt)",
    "memory_policy": "a memory policy",
}


class Adjusted:
    """A container's config and who changed what of it."""

    def __init__(self, config: OciConfig) -> None:
        self.config = config
        self.owners = Owners()
        self.total = api.ContainerAdjustment()
        """All that was asked for."""
        self._plugin = ""
        self._devices_wanted: list[str] = []

    def take_cdi_devices(self) -> list[str]:
        """Return the CDI devices that were asked for since the last time: core adds them to `config`."""
        wanted, self._devices_wanted = self._devices_wanted, []
        return wanted

    def apply(self, wanted: api.ContainerAdjustment, plugin: str) -> None:
        """Change the config as a plugin wants.

        Raises:
            FailedPrecondition: another plugin set the same field, or nobody here can set it.
        """
        self._plugin = plugin
        self.total.MergeFrom(wanted)
        self._annotations(dict(wanted.annotations))
        self._mounts(wanted.mounts)
        self._environment(wanted.env)
        self._arguments(tuple(wanted.args))
        self._hooks(wanted.hooks)
        self._rlimits(wanted.rlimits)
        for each in wanted.CDI_devices:
            self._claim("CdiDevices", each.name)
            self._devices_wanted.append(each.name)
        if wanted.HasField("linux"):
            self._linux(wanted.linux)

    # What belongs to every platform

    def _annotations(self, wanted: dict[str, str]) -> None:
        found = dict(self.config.annotations)
        for key in self._removals("Annotations", wanted):
            found.pop(key, None)
        for key, value in wanted.items():
            if not key.startswith("-"):
                self._claim("Annotations", key)
                found[key] = value
        self.config = replace(self.config, annotations=found)

    def _mounts(self, wanted: Iterable[api.Mount]) -> None:
        removed = self._removals("Mounts", [each.destination for each in wanted])
        kept = [each for each in self.config.mounts if each.destination not in removed]
        for each in wanted:
            if each.destination.startswith("-"):
                continue
            if not each.destination.startswith("/"):
                self._fail(f"mount {each.destination!r} is not an absolute path")
            self._claim("Mounts", each.destination)
            kept = [old for old in kept if old.destination != each.destination]
            kept.append(
                OciMount(each.destination, each.type or "bind", each.source, tuple(each.options))
            )
        self.config = replace(self.config, mounts=tuple(kept))

    def _environment(self, wanted: Iterable[api.KeyValue]) -> None:
        removed = self._removals("Env", [each.key for each in wanted])
        found = [item for item in self.config.process.env if item.partition("=")[0] not in removed]
        for each in wanted:
            if each.key.startswith("-"):
                continue
            if not each.key or "=" in each.key or "\0" in each.key + each.value:
                self._fail(f"environment variable {each.key!r} is no name")
            self._claim("Env", each.key)
            found = [item for item in found if item.partition("=")[0] != each.key]
            found.append(f"{each.key}={each.value}")
        self._process(env=tuple(found))

    def _arguments(self, wanted: tuple[str, ...]) -> None:
        if not wanted:
            return
        if wanted[0] == "":
            self.owners.clear("Args")
            wanted = wanted[1:]
        self._claim("Args")
        if not wanted:
            self._fail("there would be no program to execute")
        self._process(args=wanted)

    def _hooks(self, wanted: api.Hooks) -> None:
        found = self.config.hooks
        for name in _HOOKS:
            added = tuple(_hook(each) for each in getattr(wanted, name))
            if added:
                self.owners.add("OciHooks", self._plugin)
                found = replace(found, **{name: getattr(found, name) + added})
        self.config = replace(self.config, hooks=found)

    def _rlimits(self, wanted: Iterable[api.POSIXRlimit]) -> None:
        found = {each.type: each for each in self.config.process.rlimits}
        for each in wanted:
            self._claim("Rlimits", each.type)
            found[each.type] = Rlimit(each.type, each.soft, each.hard)
        self._process(rlimits=tuple(found.values()))

    # What is Linux's own

    def _linux(self, wanted: api.LinuxContainerAdjustment) -> None:
        for name, word in _UNSUPPORTED.items():
            if wanted.HasField(name):
                self._cannot(word)
        if wanted.net_devices:
            self._cannot("network devices")
        if wanted.cgroups_path:
            self._cannot("another cgroup path")
        self._devices(wanted.devices)
        self._namespaces(wanted.namespaces)
        self._sysctls(dict(wanted.sysctl))
        self._resources(wanted.resources)
        if wanted.HasField("oom_score_adj"):
            self._claim("OomScoreAdj")
            self._process(oom_score_adj=wanted.oom_score_adj.value)
        if wanted.HasField("seccomp_policy"):
            self._seccomp(wanted.seccomp_policy)

    def _devices(self, wanted: Iterable[api.LinuxDevice]) -> None:
        removed = self._removals("Devices", [each.path for each in wanted])
        found = {each.path: each for each in self.config.linux.devices}
        gone = [_numbers(found.pop(path)) for path in removed & found.keys()]
        rules = [
            rule
            for rule in self.config.linux.resources.devices
            if not rule.allow or (rule.type, rule.major, rule.minor) not in gone
        ]
        for each in wanted:
            if each.path.startswith("-"):
                continue
            self._claim("Devices", each.path)
            found[each.path] = device = _device(each)
            if device.type != "p":  # a named pipe is no device to the kernel
                rules.append(DeviceRule(True, device.type, device.major, device.minor, "rwm"))
        resources = replace(self.config.linux.resources, devices=tuple(rules))
        self._linux_part(devices=tuple(found.values()), resources=resources)

    def _namespaces(self, wanted: Iterable[api.LinuxNamespace]) -> None:
        removed = self._removals("Namespace", [each.type for each in wanted])
        found = {e.type: e for e in self.config.linux.namespaces if e.type not in removed}
        for each in wanted:
            if not each.type.startswith("-"):
                self._claim("Namespace", each.type)
                found[each.type] = Namespace(each.type, each.path)
        self._linux_part(namespaces=tuple(found.values()))

    def _sysctls(self, wanted: dict[str, str]) -> None:
        found = dict(self.config.linux.sysctl)
        for key in self._removals("Sysctl", wanted):
            found.pop(key, None)
        for key, value in wanted.items():
            if not key.startswith("-"):
                self._claim("Sysctl", key)
                found[key] = value
        self._linux_part(sysctl=found)

    def _resources(self, wanted: api.LinuxResources) -> None:
        found = self.config.linux.resources
        for field, key, value in limits.fields(wanted):
            if field not in _SETTERS:
                self._cannot(field)
            self._claim(field, key)
            found = _SETTERS[field](found, key, value)
        if wanted.devices:
            self._cannot("rules of the device controller")
        self._linux_part(resources=found)

    def _seccomp(self, wanted: api.LinuxSeccomp) -> None:
        if wanted.listener_path:
            self._cannot("a seccomp listener")
        self._claim("SeccompPolicy")
        self._linux_part(seccomp=_seccomp(wanted))

    # Parts

    def _process(self, **changes: Any) -> None:  # noqa: ANN401 - fields of a dataclass
        self.config = replace(self.config, process=replace(self.config.process, **changes))

    def _linux_part(self, **changes: Any) -> None:  # noqa: ANN401 - fields of a dataclass
        self.config = replace(self.config, linux=replace(self.config.linux, **changes))

    def _removals(self, field: str, names: Iterable[str]) -> set[str]:
        """Return what is to be removed; it is nobody's any more."""
        removed = {name[1:] for name in names if name.startswith("-")}
        for name in removed:
            self.owners.clear(field, name)
        return removed

    def _claim(self, field: str, key: str = "") -> None:
        other = self.owners.claim(field, key, self._plugin)
        if other:
            what = f"{field} {key!r}" if key else field
            raise FailedPrecondition(f"NRI plugins {other} and {self._plugin} both set {what}")

    def _cannot(self, what: str) -> None:
        self._fail(f"it asks for {what}, which this server does not set")

    def _fail(self, why: str) -> None:
        raise FailedPrecondition(f"NRI plugin {self._plugin}: {why}")


_Setter = Callable[[OciResources, str, Any], OciResources]


def _memory(name: str) -> _Setter:
    return lambda found, _key, value: replace(found, memory=replace(found.memory, **{name: value}))


def _cpu(name: str) -> _Setter:
    return lambda found, _key, value: replace(found, cpu=replace(found.cpu, **{name: value}))


def _pages(found: OciResources, key: str, value: int) -> OciResources:
    kept = [each for each in found.hugepage_limits if each.page_size != key]
    return replace(found, hugepage_limits=(*kept, OciHugepageLimit(key, value)))


_SETTERS: dict[str, _Setter] = {
    "MemLimit": _memory("limit"),
    "MemReservation": _memory("reservation"),
    "MemSwapLimit": _memory("swap"),
    "MemSwappiness": _memory("swappiness"),
    "MemDisableOomKiller": _memory("disable_oom_killer"),
    "CPUShares": _cpu("shares"),
    "CPUQuota": _cpu("quota"),
    "CPUPeriod": _cpu("period"),
    "CPUSetCPUs": _cpu("cpus"),
    "CPUSetMems": _cpu("mems"),
    "HugepageLimits": _pages,
    "CgroupsUnified": lambda found, key, value: replace(
        found, unified={**found.unified, key: value}
    ),
    "PidsLimit": lambda found, _key, value: replace(found, pids_limit=value),
}


def _hook(wanted: api.Hook) -> Hook:
    seconds = wanted.timeout.value if wanted.HasField("timeout") else None
    return Hook(wanted.path, tuple(wanted.args), tuple(wanted.env), seconds)


def _device(wanted: api.LinuxDevice) -> OciDevice:
    def optional(name: str) -> int | None:
        return getattr(wanted, name).value if wanted.HasField(name) else None

    return OciDevice(
        wanted.path,
        wanted.type,
        wanted.major,
        wanted.minor,
        optional("file_mode"),
        optional("uid"),
        optional("gid"),
    )


def _numbers(device: OciDevice) -> tuple[str, int, int]:
    return device.type, device.major, device.minor


def _seccomp(wanted: api.LinuxSeccomp) -> Seccomp:
    return Seccomp(
        wanted.default_action,
        wanted.default_errno.value if wanted.HasField("default_errno") else None,
        tuple(wanted.architectures),
        tuple(wanted.flags),
        tuple(
            SeccompRule(
                tuple(rule.names),
                rule.action,
                rule.errno_ret.value if rule.HasField("errno_ret") else None,
                tuple(SeccompArg(a.index, a.value, a.op, a.value_two) for a in rule.args),
            )
            for rule in wanted.syscalls
        ),
    )
