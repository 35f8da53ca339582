"""Writing a ``config.json``: required members always, others where they say something."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from polypod.plugin.oci import (
    CapabilitySets,
    DeviceRule,
    Hook,
    Hooks,
    Linux,
    OciConfig,
    OciDevice,
    OciIdMapping,
    OciMount,
    OciResources,
    Process,
    Rlimit,
    Seccomp,
    SeccompRule,
    User,
)

_RLIM_INFINITY: Final = 2**64 - 1

Document = dict[str, object]


def write_config(config: OciConfig) -> Document:
    """Return the whole document as JSON values."""
    return {
        "ociVersion": config.oci_version,
        "process": _process(config.process),
        "root": {"path": config.root_path, **_said(readonly=config.root_readonly)},
        **_said(
            hostname=config.hostname,
            domainname=config.domainname,
            mounts=[_mount(item) for item in config.mounts],
            linux=_linux(config.linux),
            hooks=_hooks(config.hooks),
            annotations=dict(config.annotations),
        ),
    }


def _said(**members: object) -> Document:
    """Keep what differs from an absent member. Numbers are kept: 0 is a value where None is none."""
    return {
        key: value
        for key, value in members.items()
        if value is not None and value is not False and value not in ("", [], {})
    }


def _process(process: Process) -> Document:
    size, capabilities = process.console_size, process.capabilities
    return {
        "cwd": process.cwd,
        "user": _user(process.user),
        **_said(
            args=list(process.args),
            env=list(process.env),
            terminal=process.terminal,
            consoleSize=None if size is None else {"height": size[0], "width": size[1]},
            rlimits=[_rlimit(item) for item in process.rlimits],
            noNewPrivileges=process.no_new_privileges,
            oomScoreAdj=process.oom_score_adj,
            apparmorProfile=process.apparmor_profile,
            selinuxLabel=process.selinux_label,
        ),
        # Empty sets are a request: no capabilities.
        **({} if capabilities is None else {"capabilities": _capabilities(capabilities)}),
    }


def _user(user: User) -> Document:
    return {
        "uid": user.uid,
        "gid": user.gid,
        **_said(umask=user.umask, additionalGids=list(user.additional_gids)),
    }


def _capabilities(sets: CapabilitySets) -> Document:
    return {
        "bounding": list(sets.bounding),
        "effective": list(sets.effective),
        "inheritable": list(sets.inheritable),
        "permitted": list(sets.permitted),
        "ambient": list(sets.ambient),
    }


def _rlimit(limit: Rlimit) -> Document:
    soft, hard = (_RLIM_INFINITY if item < 0 else item for item in (limit.soft, limit.hard))
    return {"type": limit.type, "soft": soft, "hard": hard}


def _mount(mount: OciMount) -> Document:
    return {
        "destination": mount.destination,
        **_said(
            type=mount.type,
            source=mount.source,
            options=list(mount.options),
            uidMappings=_mappings(mount.uid_mappings),
            gidMappings=_mappings(mount.gid_mappings),
        ),
    }


def _mappings(mappings: Iterable[OciIdMapping]) -> list[Document]:
    return [
        {"containerID": item.container_id, "hostID": item.host_id, "size": item.size}
        for item in mappings
    ]


def _linux(linux: Linux) -> Document:
    return _said(
        namespaces=[{"type": item.type, **_said(path=item.path)} for item in linux.namespaces],
        uidMappings=_mappings(linux.uid_mappings),
        gidMappings=_mappings(linux.gid_mappings),
        devices=[_device(item) for item in linux.devices],
        cgroupsPath=linux.cgroups_path,
        resources=_resources(linux.resources),
        rootfsPropagation=linux.rootfs_propagation,
        seccomp=None if linux.seccomp is None else _seccomp(linux.seccomp),
        sysctl=dict(linux.sysctl),
        maskedPaths=list(linux.masked_paths),
        readonlyPaths=list(linux.readonly_paths),
        mountLabel=linux.mount_label,
    )


def _device(device: OciDevice) -> Document:
    return {
        "path": device.path,
        "type": device.type,
        "major": device.major,
        "minor": device.minor,
        **_said(fileMode=device.file_mode, uid=device.uid, gid=device.gid),
    }


def _resources(resources: OciResources) -> Document:
    memory, cpu, pids = resources.memory, resources.cpu, resources.pids_limit
    return _said(
        devices=[_device_rule(item) for item in resources.devices],
        memory=_said(
            limit=memory.limit,
            reservation=memory.reservation,
            swap=memory.swap,
            swappiness=memory.swappiness,
            disableOOMKiller=memory.disable_oom_killer,
        ),
        cpu=_said(
            shares=cpu.shares,
            quota=cpu.quota,
            period=cpu.period,
            cpus=cpu.cpus,
            mems=cpu.mems,
        ),
        pids=None if pids is None else {"limit": pids},
        hugepageLimits=[
            {"pageSize": item.page_size, "limit": item.limit} for item in resources.hugepage_limits
        ],
        unified=dict(resources.unified),
    )


def _device_rule(rule: DeviceRule) -> Document:
    return {
        "allow": rule.allow,
        **_said(type=rule.type, major=rule.major, minor=rule.minor, access=rule.access),
    }


def _seccomp(seccomp: Seccomp) -> Document:
    return {
        "defaultAction": seccomp.default_action,
        **_said(
            defaultErrnoRet=seccomp.default_errno_ret,
            architectures=list(seccomp.architectures),
            flags=list(seccomp.flags),
            syscalls=[_seccomp_rule(item) for item in seccomp.syscalls],
        ),
    }


def _seccomp_rule(rule: SeccompRule) -> Document:
    args = [
        {"index": item.index, "value": item.value, "valueTwo": item.value_two, "op": item.op}
        for item in rule.args
    ]
    return {
        "names": list(rule.names),
        "action": rule.action,
        **_said(errnoRet=rule.errno_ret, args=args),
    }


def _hooks(hooks: Hooks) -> Document:
    return _said(
        prestart=_hook_list(hooks.prestart),
        createRuntime=_hook_list(hooks.create_runtime),
        createContainer=_hook_list(hooks.create_container),
        startContainer=_hook_list(hooks.start_container),
        poststart=_hook_list(hooks.poststart),
        poststop=_hook_list(hooks.poststop),
    )


def _hook_list(hooks: Iterable[Hook]) -> list[Document]:
    return [
        {
            "path": hook.path,
            **_said(args=list(hook.args), env=list(hook.env), timeout=hook.timeout_s),
        }
        for hook in hooks
    ]
