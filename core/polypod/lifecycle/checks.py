"""Refuse what a handler's type does not declare, before anything is made (E23: nothing is dropped silently)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from polypod.lifecycle import user_namespaces
from polypod.lifecycle.parts import Handler
from polypod.plugin.errors import InvalidArgument, Unsupported
from polypod.plugin.requests import (
    ContainerConfig,
    MountPropagation,
    NamespaceMode,
    ProfileType,
    SandboxConfig,
    SecurityProfile,
)
from polypod.plugin.runtime import Feature
from polypod.spec.namespaces import has_user_namespace

_SandboxRule = tuple[Feature, str, Callable[[SandboxConfig], bool]]
_ContainerRule = tuple[Feature, str, Callable[[ContainerConfig], bool]]


def _localhost(profile: SecurityProfile | None) -> bool:
    return profile is not None and profile.profile_type is ProfileType.LOCALHOST


def _confined(profile: SecurityProfile | None) -> bool:
    """A default profile that nobody applies is no profile, whatever the host could do."""
    return profile is not None and profile.profile_type is not ProfileType.UNCONFINED


SANDBOX_RULES: Final[tuple[_SandboxRule, ...]] = (
    (
        Feature.HOST_NETWORK,
        "the host's network (namespace_options.network = NODE)",
        lambda c: c.security.namespaces.network is NamespaceMode.NODE,
    ),
    (
        Feature.HOST_PID,
        "the host's processes (namespace_options.pid = NODE)",
        lambda c: c.security.namespaces.pid is NamespaceMode.NODE,
    ),
    (
        Feature.HOST_IPC,
        "the host's IPC (namespace_options.ipc = NODE)",
        lambda c: c.security.namespaces.ipc is NamespaceMode.NODE,
    ),
    (
        Feature.USER_NAMESPACES,
        "a user namespace (hostUsers: false)",
        lambda c: has_user_namespace(c.security.namespaces),
    ),
    (Feature.PRIVILEGED, "privileged containers", lambda c: c.security.privileged),
    (Feature.SYSCTLS, "sysctls", lambda c: bool(c.sysctls)),
    (Feature.SELINUX, "SELinux options", lambda c: c.security.selinux is not None),
    (Feature.APPARMOR, "an AppArmor profile", lambda c: _localhost(c.security.apparmor)),
)

CONTAINER_RULES: Final[tuple[_ContainerRule, ...]] = (
    (
        Feature.TARGET_PID,
        "another container's processes (namespace_options.pid = TARGET)",
        lambda c: c.security.namespaces.pid is NamespaceMode.TARGET,
    ),
    (Feature.PRIVILEGED, "privileged containers", lambda c: c.security.privileged),
    (Feature.TTY, "a terminal (tty)", lambda c: c.tty),
    (Feature.DEVICES, "host devices", lambda c: bool(c.devices or c.cdi_devices)),
    (
        Feature.HOST_PATH_MOUNTS,
        "mounts of host paths",
        lambda c: any(mount.host_path for mount in c.mounts),
    ),
    (
        Feature.BIDIRECTIONAL_MOUNTS,
        "bidirectional mount propagation",
        lambda c: any(m.propagation is MountPropagation.BIDIRECTIONAL for m in c.mounts),
    ),
    (
        Feature.RECURSIVE_READ_ONLY,
        "recursively read-only mounts",
        lambda c: any(mount.recursive_read_only for mount in c.mounts),
    ),
    (
        Feature.IMAGE_VOLUMES,
        "images as volumes",
        lambda c: any(mount.image is not None and mount.image.image for mount in c.mounts),
    ),
    (Feature.SECCOMP, "a seccomp profile of its own", lambda c: _localhost(c.security.seccomp)),
    (Feature.APPARMOR, "an AppArmor profile", lambda c: _confined(c.security.apparmor)),
    (Feature.SELINUX, "SELinux options", lambda c: c.security.selinux is not None),
    (
        Feature.RESOURCES,
        "memory or cpu limits",
        lambda c: bool(c.resources.memory_limit_in_bytes or c.resources.cpu_quota > 0),
    ),
)


def check_sandbox(handler: Handler, config: SandboxConfig) -> None:
    """Check a sandbox request against the handler's type.

    Raises:
        InvalidArgument: the request contradicts itself.
        Unsupported: the type does not declare what is asked.
    """
    if not config.metadata.name or not config.metadata.uid:
        raise InvalidArgument("sandbox metadata: name and uid must not be empty")
    if not _plain_path(config.cgroup_parent):
        raise InvalidArgument(
            f"cgroup_parent {config.cgroup_parent!r}: an absolute path without '..' was expected"
        )
    if config.security.run_as_group is not None and config.security.run_as_user is None:
        raise InvalidArgument("sandbox security_context: run_as_group needs run_as_user")
    for feature, what, asked in SANDBOX_RULES:
        if feature not in handler.type.features and asked(config):
            raise _unsupported(handler, f"sandbox {config.metadata.name}", what, feature)
    user_namespaces.check_pod(config)


def check_container(handler: Handler, sandbox: SandboxConfig, config: ContainerConfig) -> None:
    """Check a container request against its sandbox and the handler's type.

    Raises:
        InvalidArgument: the request contradicts itself or its sandbox.
        Unsupported: the type does not declare what is asked.
    """
    if not config.metadata.name:
        raise InvalidArgument("container metadata: name must not be empty")
    if not config.image.image:
        raise InvalidArgument(f"container {config.metadata.name}: image.image must not be empty")
    if config.security.privileged and not sandbox.security.privileged:
        raise InvalidArgument(
            f"container {config.metadata.name} is privileged, but its sandbox was not run with "
            "security_context.privileged"
        )
    user_namespaces.check_container(sandbox.security.namespaces, config)
    for feature, what, asked in CONTAINER_RULES:
        if feature not in handler.type.features and asked(config):
            raise _unsupported(handler, f"container {config.metadata.name}", what, feature)


def _plain_path(path: str) -> bool:
    """Return whether a path is empty, or absolute and cannot lead out of where it is put below."""
    if not path:
        return True
    return path.startswith("/") and not {"..", "."} & set(path.split("/")) and path.isprintable()


def _unsupported(handler: Handler, who: str, what: str, feature: Feature) -> Unsupported:
    return Unsupported(
        f"{who} asks for {what}, which runtime handler {handler.name!r} (type {handler.type.name}, "
        f"feature {feature}) does not offer: choose another handler or leave it out"
    )
