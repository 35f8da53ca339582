"""What a pod's user namespace means for the rest of a request: who is mapped, who owns the pod's files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from polypod.plugin.errors import InvalidArgument
from polypod.plugin.requests import (
    ContainerConfig,
    NamespaceMode,
    NamespaceOptions,
    SandboxConfig,
)
from polypod.plugin.services import IdMaps
from polypod.spec.namespaces import has_user_namespace, host_id, id_mappings
from polypod.spec.users import ResolvedUser


def pod_maps(config: SandboxConfig) -> IdMaps | None:
    """Return the mappings of a pod's user namespace; None without one.

    Raises:
        InvalidArgument: they are malformed.
    """
    options = config.security.namespaces
    if not has_user_namespace(options):
        return None
    return IdMaps(*id_mappings(options.userns))


def check_pod(config: SandboxConfig) -> None:
    """Refuse what no user namespace can have.

    Raises:
        InvalidArgument: the mappings are malformed, or the pod shall share what root of another user
            namespace may not use.
    """
    options = config.security.namespaces
    if pod_maps(config) is None:
        return
    for kind, mode in (("pid", options.pid), ("ipc", options.ipc)):
        if mode is NamespaceMode.NODE:
            raise InvalidArgument(
                f"sandbox {config.metadata.name}: namespace_options.{kind} = NODE and a user namespace exclude "
                "each other: its root has no rights over what is the host's"
            )


def check_container(sandbox: NamespaceOptions, config: ContainerConfig) -> None:
    """Refuse a container that contradicts its pod; one that says nothing has what the pod has.

    Raises:
        InvalidArgument: it does.
    """
    asked = config.security.namespaces.userns
    if asked is None:
        return
    involved = has_user_namespace(config.security.namespaces) or has_user_namespace(sandbox)
    if involved and asked != sandbox.userns:
        raise InvalidArgument(
            f"container {config.metadata.name}: namespace_options.userns_options differ from those of its "
            "sandbox: a user namespace is the whole pod's"
        )


def check_user(user: ResolvedUser, maps: IdMaps | None) -> None:
    """Refuse a user or group that the pod's user namespace does not have.

    Raises:
        InvalidArgument: it is not mapped.
    """
    if maps is None:
        return
    if host_id(user.uid, maps.uids) is None:
        raise InvalidArgument(f"user {user.uid} is not mapped in the pod's user namespace")
    for gid in (user.gid, *user.additional_gids):
        if host_id(gid, maps.gids) is None:
            raise InvalidArgument(f"group {gid} is not mapped in the pod's user namespace")


def give(paths: Iterable[Path], maps: IdMaps | None) -> None:
    """Give files to the pod's root."""
    if maps is None:
        return
    uid, gid = host_id(0, maps.uids), host_id(0, maps.gids)
    for path in paths:
        os.chown(path, -1 if uid is None else uid, -1 if gid is None else gid)
