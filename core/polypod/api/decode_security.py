"""Security contexts of requests → dataclasses: namespaces, ids, capabilities, profiles."""

from __future__ import annotations

from polypod.api import decode_values as values
from polypod.api.v1 import api_pb2 as pb
from polypod.plugin import requests as r
from polypod.plugin.errors import InvalidArgument


def _namespaces(message: pb.NamespaceOption, field: str) -> r.NamespaceOptions:
    modes = {
        kind: values.enum_member(r.NamespaceMode, getattr(message, kind), f"{field}.{kind}")
        for kind in ("network", "pid", "ipc")
    }
    for kind in ("network", "ipc"):
        if modes[kind] not in {r.NamespaceMode.POD, r.NamespaceMode.NODE}:
            raise InvalidArgument(f"{field}.{kind} is {modes[kind].name}: only POD and NODE apply")
    if modes["pid"] is r.NamespaceMode.TARGET and not message.target_id:
        raise InvalidArgument(f"{field}.target_id is empty: pid mode TARGET needs a container")
    userns = None
    if message.HasField("userns_options"):
        userns = _userns(message.userns_options, f"{field}.userns_options")
    return r.NamespaceOptions(**modes, target_id=message.target_id, userns=userns)


def _userns(message: pb.UserNamespace, field: str) -> r.UserNamespace:
    mode = values.enum_member(r.NamespaceMode, message.mode, f"{field}.mode")
    if mode not in {r.NamespaceMode.POD, r.NamespaceMode.NODE}:
        raise InvalidArgument(f"{field}.mode is {mode.name}: only POD and NODE apply")
    uids, gids = (
        values.mappings(message.uids, f"{field}.uids"),
        values.mappings(message.gids, f"{field}.gids"),
    )
    if mode is r.NamespaceMode.POD and not (uids and gids):
        raise InvalidArgument(f"{field}: mode POD needs uids and gids")
    if mode is r.NamespaceMode.NODE and (uids or gids):
        raise InvalidArgument(f"{field}: mode NODE takes neither uids nor gids")
    return r.UserNamespace(mode, uids, gids)


def sandbox(message: pb.LinuxSandboxSecurityContext, field: str) -> r.SandboxSecurity:
    """Return the security of a sandbox."""
    user, group = _ids(message, field)
    if group is not None and user is None:
        raise InvalidArgument(f"{field}.run_as_group needs run_as_user")
    return r.SandboxSecurity(
        namespaces=_namespaces(message.namespace_options, f"{field}.namespace_options"),
        selinux=_selinux(message),
        run_as_user=user,
        run_as_group=group,
        readonly_rootfs=message.readonly_rootfs,
        supplemental_groups=_groups(message, field),
        supplemental_groups_policy=_policy(message, field),
        privileged=message.privileged,
        seccomp=_profile(message, "seccomp", message.seccomp_profile_path, field),
        apparmor=_profile(message, "apparmor", "", field),
    )


def container(message: pb.LinuxContainerSecurityContext, field: str) -> r.ContainerSecurity:
    """Return the security of a container; deprecated strings are folded in."""
    user, group = _ids(message, field)
    if user is not None and message.run_as_username:
        raise InvalidArgument(f"{field}: run_as_user and run_as_username exclude each other")
    if group is not None and user is None and not message.run_as_username:
        raise InvalidArgument(f"{field}.run_as_group needs run_as_user or run_as_username")
    caps = message.capabilities
    return r.ContainerSecurity(
        capabilities=r.Capabilities(
            values.texts(caps.add_capabilities, f"{field}.capabilities.add_capabilities"),
            values.texts(caps.drop_capabilities, f"{field}.capabilities.drop_capabilities"),
            values.texts(
                caps.add_ambient_capabilities, f"{field}.capabilities.add_ambient_capabilities"
            ),
        ),
        privileged=message.privileged,
        namespaces=_namespaces(message.namespace_options, f"{field}.namespace_options"),
        selinux=_selinux(message),
        run_as_user=user,
        run_as_group=group,
        run_as_username=values.text(message.run_as_username, f"{field}.run_as_username"),
        readonly_rootfs=message.readonly_rootfs,
        supplemental_groups=_groups(message, field),
        supplemental_groups_policy=_policy(message, field),
        no_new_privs=message.no_new_privs,
        masked_paths=values.texts(message.masked_paths, f"{field}.masked_paths"),
        readonly_paths=values.texts(message.readonly_paths, f"{field}.readonly_paths"),
        seccomp=_profile(message, "seccomp", message.seccomp_profile_path, field),
        apparmor=_profile(message, "apparmor", message.apparmor_profile, field),
    )


SecurityMessage = pb.LinuxSandboxSecurityContext | pb.LinuxContainerSecurityContext
MAX_USER_ID = (1 << 32) - 2
"""The last one, 2**32 - 1, means "no id" to the kernel."""


def _ids(message: SecurityMessage, field: str) -> tuple[int | None, int | None]:
    user = message.run_as_user.value if message.HasField("run_as_user") else None
    group = message.run_as_group.value if message.HasField("run_as_group") else None
    for name, value in (("run_as_user", user), ("run_as_group", group)):
        if value is not None and not 0 <= value <= MAX_USER_ID:
            raise InvalidArgument(f"{field}.{name} is {value}: ids are 0 to {MAX_USER_ID}")
    return user, group


def _groups(message: SecurityMessage, field: str) -> tuple[int, ...]:
    groups = tuple(message.supplemental_groups)
    for i, group in enumerate(groups):
        if not 0 <= group <= MAX_USER_ID:
            raise InvalidArgument(
                f"{field}.supplemental_groups[{i}] is {group}: ids are 0 to {MAX_USER_ID}"
            )
    return groups


def _policy(message: SecurityMessage, field: str) -> r.SupplementalGroupsPolicy:
    return values.enum_member(
        r.SupplementalGroupsPolicy,
        message.supplemental_groups_policy,
        f"{field}.supplemental_groups_policy",
    )


def _selinux(message: SecurityMessage) -> r.SelinuxOptions | None:
    if not message.HasField("selinux_options"):
        return None
    s = message.selinux_options
    return r.SelinuxOptions(s.user, s.role, s.type, s.level)


_OLD_PROFILES = {
    "runtime/default": r.ProfileType.RUNTIME_DEFAULT,
    "docker/default": r.ProfileType.RUNTIME_DEFAULT,
    "unconfined": r.ProfileType.UNCONFINED,
}


def _profile(message: SecurityMessage, name: str, old: str, field: str) -> r.SecurityProfile | None:
    """Read a profile; the message wins over the deprecated string, as in CRI."""
    if message.HasField(name):
        found: pb.SecurityProfile = getattr(message, name)
        kind = values.enum_member(r.ProfileType, found.profile_type, f"{field}.{name}.profile_type")
        if kind is r.ProfileType.LOCALHOST and not found.localhost_ref:
            raise InvalidArgument(f"{field}.{name}.localhost_ref is empty: Localhost needs it")
        return r.SecurityProfile(
            kind, values.text(found.localhost_ref, f"{field}.{name}.localhost_ref")
        )
    if not old:
        return None
    if old in _OLD_PROFILES:
        return r.SecurityProfile(_OLD_PROFILES[old])
    if old.startswith("localhost/") and len(old) > len("localhost/"):
        return r.SecurityProfile(r.ProfileType.LOCALHOST, old.removeprefix("localhost/"))
    raise InvalidArgument(
        f"{field}: {name} profile {old!r} is none of runtime/default, unconfined, localhost/NAME"
    )
