"""What plugins are told of sandboxes and containers: facts of core as NRI's messages."""

from __future__ import annotations

from collections.abc import Mapping

from polypod.plugin.observer import ContainerFacts, SandboxFacts
from polypod.plugin.oci import Hook, Hooks, OciConfig, Seccomp
from polypod.plugin.requests import ProfileType
from polypod_nri import limits
from polypod_nri.wire import api

_STATES = {
    "creating": api.CONTAINER_CREATED,
    "created": api.CONTAINER_CREATED,
    "running": api.CONTAINER_RUNNING,
    "exited": api.CONTAINER_STOPPED,
}


def sandbox(facts: SandboxFacts) -> api.PodSandbox:
    """Return a sandbox as plugins see it."""
    name = facts.config.metadata
    message = api.PodSandbox(
        id=facts.id,
        name=text(name.name),
        uid=text(name.uid),
        namespace=text(name.namespace),
        labels=texts(facts.config.labels),
        annotations=texts(facts.config.annotations),
        runtime_handler=facts.handler,
        ips=facts.ips,
    )
    linux = message.linux
    linux.cgroup_parent = facts.config.cgroup_parent
    linux.cgroups_path = facts.cgroup
    if facts.overhead is not None:
        linux.pod_overhead.CopyFrom(limits.from_cri(facts.overhead))
    if facts.resources is not None:
        linux.pod_resources.CopyFrom(limits.from_cri(facts.resources))
        linux.resources.CopyFrom(limits.from_cri(facts.resources))
    for kind, path in sorted(facts.namespaces.items()):
        linux.namespaces.add(type=kind, path=path)
    return message


def container(facts: ContainerFacts) -> api.Container:
    """Return a container as plugins see it."""
    message = api.Container(
        id=facts.id,
        pod_sandbox_id=facts.sandbox_id,
        name=text(facts.request.metadata.name),
        state=_STATES.get(facts.state, api.CONTAINER_UNKNOWN),
        labels=texts(facts.request.labels),
        annotations=texts(facts.request.annotations),
        pid=facts.pid or 0,
        created_at=facts.created_at_ns,
        started_at=facts.started_at_ns,
        finished_at=facts.finished_at_ns,
        exit_code=facts.exit_code,
        status_reason=facts.reason,
        status_message=text(facts.message),
        CDI_devices=[api.CDIDevice(name=each) for each in facts.request.cdi_devices],
    )
    message.image.name = text(facts.request.image.user_specified_image or facts.request.image.image)
    message.image.digest = facts.image_ref.partition("@")[2] or facts.image_ref
    message.image.config_digest = facts.image_id or ""
    if facts.config is not None:
        configured(message, facts.config)
    profile = facts.request.security.seccomp
    kind = ProfileType.RUNTIME_DEFAULT if profile is None else profile.profile_type
    message.linux.seccomp_profile.profile_type = api.SecurityProfile.ProfileType.Name(kind)  # type: ignore[assignment]
    if profile is not None:
        message.linux.seccomp_profile.localhost_ref = text(profile.localhost_ref)
    return message


def configured(message: api.Container, config: OciConfig) -> None:
    """Fill in what a container runs with."""
    process, linux = config.process, config.linux
    message.annotations.update(texts(config.annotations))
    message.args.extend(text(each) for each in process.args)
    message.env.extend(text(each) for each in process.env)
    message.user.uid, message.user.gid = process.user.uid, process.user.gid
    message.user.additional_gids.extend(process.user.additional_gids)
    for each in config.mounts:
        message.mounts.add(
            destination=text(each.destination),
            type=each.type,
            source=text(each.source),
            options=each.options,
        )
    for limit in process.rlimits:
        message.rlimits.add(type=limit.type, soft=limit.soft, hard=limit.hard)
    _hooks(message.hooks, config.hooks)
    for namespace in linux.namespaces:
        message.linux.namespaces.add(type=namespace.type, path=namespace.path)
    for device in linux.devices:
        added = message.linux.devices.add(
            path=text(device.path), type=device.type, major=device.major, minor=device.minor
        )
        for name in ("file_mode", "uid", "gid"):
            if getattr(device, name) is not None:
                getattr(added, name).value = getattr(device, name)
    message.linux.resources.CopyFrom(limits.from_oci(linux.resources))
    if process.oom_score_adj is not None:
        message.linux.oom_score_adj.value = process.oom_score_adj
    message.linux.cgroups_path = linux.cgroups_path
    message.linux.sysctl.update(linux.sysctl)
    if linux.seccomp is not None:
        _seccomp(message.linux.seccomp_policy, linux.seccomp)


def _hooks(message: api.Hooks, found: Hooks) -> None:
    for name in (
        "prestart",
        "create_runtime",
        "create_container",
        "start_container",
        "poststart",
        "poststop",
    ):
        for hook in getattr(found, name):
            getattr(message, name).append(_hook(hook))


def _hook(found: Hook) -> api.Hook:
    message = api.Hook(path=found.path, args=found.args, env=found.env)
    if found.timeout_s is not None:
        message.timeout.value = found.timeout_s
    return message


def _seccomp(message: api.LinuxSeccomp, found: Seccomp) -> None:
    message.default_action = found.default_action
    if found.default_errno_ret is not None:
        message.default_errno.value = found.default_errno_ret
    message.architectures.extend(found.architectures)
    message.flags.extend(found.flags)
    for rule in found.syscalls:
        added = message.syscalls.add(names=rule.names, action=rule.action)
        if rule.errno_ret is not None:
            added.errno_ret.value = rule.errno_ret
        for arg in rule.args:
            added.args.add(index=arg.index, value=arg.value, value_two=arg.value_two, op=arg.op)


def text(value: str) -> str:
    """Return a string that protobuf takes: bytes that are no UTF-8 are replaced."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def texts(values: Mapping[str, str]) -> dict[str, str]:
    """Return a map that protobuf takes."""
    return {text(key): text(value) for key, value in values.items()}
