"""Which namespaces a container gets: new ones, its sandbox's, another container's, the host's."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Final

from polypod.plugin.errors import InvalidArgument
from polypod.plugin.oci import Namespace, OciIdMapping
from polypod.plugin.requests import IdMapping, NamespaceMode, NamespaceOptions, UserNamespace

_RANGES_MAX: Final = 340
"""user_namespaces(7), since Linux 4.15."""


def sandbox_namespace(kind: str) -> str:
    """Return what stands for a path of the sandbox's own namespace in an `OciConfig`.

    Namespaces are held by descriptors, so there is no path: a backend that needs one makes it.
    """
    return f"sandbox:{kind}"


def container_namespace(container_id: str) -> str:
    """Return what stands for the path of another container's pid namespace."""
    return f"container:{container_id}"


def container_namespaces(
    sandbox: NamespaceOptions,
    container: NamespaceOptions,
    paths: Mapping[str, str],
    *,
    privileged: bool,
) -> tuple[Namespace, ...]:
    """Return the namespaces to make (``path`` empty) and to join; a kind that is missing is the host's.

    Network, IPC and UTS are the sandbox's, whatever the container's own copy of the options says: the
    kubelet sends the same values, and a container cannot leave its pod's. A pod in the host's network
    has the host's name too. Privileged containers see the host's cgroup tree, except in a user namespace,
    where nobody may mount it.

    Args:
        sandbox: the sandbox's options.
        container: the container's: only ``pid`` is read.
        paths: kind → path (or descriptor token) of what exists already; ``target`` is the pid
            namespace of ``target_id``. A kind of the sandbox that is missing is made by the backend.
        privileged: the container's.

    Raises:
        InvalidArgument: TARGET without a target.

    Spec:
        kubernetes/cri-api api.proto, NamespaceOption; runtime-spec config-linux.md, namespaces.
    """
    found = [Namespace("mount")]
    if sandbox.network is not NamespaceMode.NODE:
        found += [Namespace(kind, paths.get(kind, "")) for kind in ("network", "uts")]
    if sandbox.ipc is not NamespaceMode.NODE:
        found.append(Namespace("ipc", paths.get("ipc", "")))
    found += _pid(container, paths)
    if not privileged or has_user_namespace(sandbox):
        found.append(Namespace("cgroup"))
    if has_user_namespace(sandbox):
        found.append(Namespace("user", paths.get("user", "")))
    return tuple(found)


def has_user_namespace(options: NamespaceOptions) -> bool:
    """Tell whether the pod has a user namespace of its own."""
    return options.userns is not None and options.userns.mode is NamespaceMode.POD


def id_mappings(
    userns: UserNamespace | None,
) -> tuple[tuple[OciIdMapping, ...], tuple[OciIdMapping, ...]]:
    """Return the uid and gid mappings of a pod's user namespace; both empty without one.

    Raises:
        InvalidArgument: POD without mappings; a range is empty, out of bounds or overlaps another one; the
            ids of root are not mapped.

    Spec:
        kubernetes/cri-api api.proto, UserNamespace; man user_namespaces(7).
    """
    if userns is None or userns.mode is NamespaceMode.NODE:
        return (), ()
    if userns.mode is not NamespaceMode.POD:
        raise InvalidArgument(f"userns_options.mode {userns.mode.name}: must be POD or NODE")
    if not userns.uids or not userns.gids:
        raise InvalidArgument("userns_options: mode POD needs uids and gids")
    found = (
        oci_mappings(userns.uids, "userns_options.uids"),
        oci_mappings(userns.gids, "userns_options.gids"),
    )
    for field, ranges in zip(("uids", "gids"), found, strict=True):
        if host_id(0, ranges) is None:
            raise InvalidArgument(
                f"userns_options.{field}: container id 0 is not mapped, and a container is set up by its root"
            )
    return found


def host_id(inside: int, ranges: tuple[OciIdMapping, ...]) -> int | None:
    """Return what an id of a user namespace is on the host; None if nothing."""
    for item in ranges:
        if 0 <= inside - item.container_id < item.size:
            return item.host_id + inside - item.container_id
    return None


def oci_mappings(mappings: tuple[IdMapping, ...], field: str) -> tuple[OciIdMapping, ...]:
    """Return mappings in OCI's form.

    Raises:
        InvalidArgument: a range is empty, leaves the 32 bits of an id, or overlaps another one; there are more
            than the kernel takes.
    """
    if len(mappings) > _RANGES_MAX:
        raise InvalidArgument(f"{field}: {len(mappings)} ranges, the kernel takes {_RANGES_MAX}")
    for item in mappings:
        first, last = min(item.host_id, item.container_id), max(item.host_id, item.container_id)
        if item.length < 1 or first < 0 or last + item.length > 2**32 - 1:
            raise InvalidArgument(
                f"{field}: host {item.host_id}, container {item.container_id}, length {item.length} is "
                "no range of ids"
            )
    for side in ("host_id", "container_id"):
        _check_apart([(getattr(item, side), item.length) for item in mappings], f"{field}: {side}")
    return tuple(OciIdMapping(item.container_id, item.host_id, item.length) for item in mappings)


def _check_apart(ranges: list[tuple[int, int]], field: str) -> None:
    ranges.sort()
    for (first, length), (second, _) in itertools.pairwise(ranges):
        if second < first + length:
            raise InvalidArgument(f"{field} {second} is in two ranges")


def _pid(container: NamespaceOptions, paths: Mapping[str, str]) -> list[Namespace]:
    match container.pid:
        case NamespaceMode.NODE:
            return []
        case NamespaceMode.CONTAINER:
            return [Namespace("pid")]
        case NamespaceMode.POD:
            return [Namespace("pid", paths.get("pid", ""))]
        case NamespaceMode.TARGET:
            if "target" not in paths:
                raise InvalidArgument(
                    f"namespace_options.target_id {container.target_id!r}: pid TARGET needs a running "
                    "container of the same pod"
                )
            return [Namespace("pid", paths["target"])]
