"""From a container's description to a launch plan with its descriptors: all that touches the host.

Everything here blocks and runs in a thread.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from polypod.backend import devicefilter, limits
from polypod.backend.cgroups import Cgroups
from polypod.backend.descriptors import Descriptors
from polypod.backend.mounts import (
    SharedMemory,
    bind_mounts,
    open_binds,
    open_image_volumes,
    open_rootfs,
)
from polypod.backend.users import (
    Stage,
    give_streams,
    mount_maps,
    open_devices,
    open_maps,
    root_of,
)
from polypod.plan.operations import Plan
from polypod.plugin.errors import BackendError, InvalidArgument, Unsupported
from polypod.plugin.oci import Hooks, OciConfig, OciResources
from polypod.plugin.requests import Resources
from polypod.plugin.runtime import ContainerSpec
from polypod.plugin.services import IdMaps
from polypod.spec.cgroup import v1_files, v2_files
from polypod.spec.cgroup_devices import device_program
from polypod.spec.compile import CgroupView, Sources, compile_container

_JOINABLE: Final = frozenset(["user", "network", "ipc", "uts", "pid", "cgroup", "mount"])


class Launches:
    """Prepares launches on this host's cgroups."""

    def __init__(self, cgroups: Cgroups, stage: Stage) -> None:
        self._cgroups = cgroups
        self._stage = stage
        self._view = _cgroup_view(cgroups)
        self._shm = SharedMemory()
        self._swap = cgroups.has_swap_accounting()

    def prepare(
        self,
        spec: ContainerSpec,
        descriptors: Descriptors,
        target: int,
        maps: Mapping[IdMaps, int],
    ) -> Plan:
        """Make the cgroup, open everything, compile.

        Args:
            spec: the container.
            descriptors: filled here; the caller closes them, whatever happens.
            target: pidfd of the container whose pid namespace is joined; -1 for none.
            maps: a user namespace for each mapping of a mount that is not the pod's own.

        Raises:
            BackendError: the host refused something; the text names it.
            InvalidArgument: the config contradicts itself.
            Unsupported: it asks for what this engine does not do (E23).
        """
        config = spec.config
        if config.hooks != Hooks():
            raise Unsupported(f"container {spec.id}: OCI hooks are not run by this handler")
        namespaces = _namespaces(spec, descriptors, target)
        users, owner = _pod_users(spec), root_of(config.linux)
        root = descriptors.take(open_rootfs(spec.rootfs, config.linux, users, self._stage))
        binds = bind_mounts(config)
        shm = spec.sandbox.directory / "shm"
        if any(item.source == str(shm) for item in binds):
            self._shm.ensure(shm, *((owner.uid, owner.gid) if owner else ()))
        give_streams(spec.stdio, config.process, config.linux)
        own = IdMaps(config.linux.uid_mappings, config.linux.gid_mappings)
        dev, nodes = open_devices(config, owner, descriptors, self._stage) if owner else ("", {})
        sources = Sources(
            root=root,
            streams=descriptors.streams(spec.stdio),
            namespaces=namespaces,
            mounts={
                **open_binds(binds, descriptors, open_maps(mount_maps(config), users, own, maps)),
                **open_image_volumes(config, spec.image_volumes, descriptors, self._stage, users),
            },
            dev=dev,
            nodes=nodes,
            cgroup_view=self._view,
            cgroups=self._limited_cgroup(spec.cgroup, config, descriptors),
        )
        return compile_container(config, sources)

    def _limited_cgroup(
        self, path: str, config: OciConfig, descriptors: Descriptors
    ) -> tuple[str, ...]:
        resources = config.linux.resources
        self._cgroups.create(path)
        self._cgroups.apply(path, self._files(resources))
        if self._cgroups.version == 2 and resources.devices:
            devicefilter.attach(
                f"{self._cgroups.hierarchies.mounts[0]}/{path.strip('/')}",
                device_program(resources.devices),
            )
        join = self._cgroups.join_inner if _may_mount(config) else self._cgroups.join_descriptors
        return tuple(descriptors.take(fd) for fd in join(path))

    def _files(self, resources: OciResources) -> Mapping[str, list[tuple[str, str]]]:
        if self._cgroups.version == 1:
            return v1_files(resources, swap_accounting=self._swap)
        return {"": v2_files(resources)}

    def update(self, path: str, resources: Resources) -> None:
        """Change limits, all or none.

        Raises:
            PolypodError: see `limits.update`; the old values hold.
        """
        limits.update(self._cgroups, path, resources)
        if resources.oom_score_adj:
            limits.set_scores(self._cgroups.processes(path), resources.oom_score_adj)


def _may_mount(config: OciConfig) -> bool:
    """Tell whether a container that is shown its own cgroups alone could make that view writable."""
    capabilities = config.process.capabilities
    granted = capabilities is not None and "CAP_SYS_ADMIN" in capabilities.bounding
    return granted and any(each.type == "cgroup" for each in config.linux.namespaces)


def joined_kinds(config: OciConfig) -> tuple[str, ...]:
    """Return the kinds of a container's namespaces that its execs join."""
    kinds = (each.type for each in config.linux.namespaces)
    return tuple(kind for kind in kinds if kind in _JOINABLE)


def other_maps(config: OciConfig) -> set[IdMaps]:
    """Return the mappings of mounts that are not those of the pod itself."""
    linux = config.linux
    return set(mount_maps(config).values()) - {IdMaps(linux.uid_mappings, linux.gid_mappings)}


def _pod_users(spec: ContainerSpec) -> int:
    """Return the pod's user namespace; -1 if it has none of its own."""
    made = spec.sandbox.namespaces
    return -1 if made is None else made.fds.get("user", -1)


def _namespaces(spec: ContainerSpec, descriptors: Descriptors, target: int) -> dict[str, str]:
    """Map `Namespace.path` to sources: names of the sandbox's, or of another container's."""
    found: dict[str, str] = {}
    held = spec.sandbox.namespaces.fds if spec.sandbox.namespaces is not None else {}
    for item in spec.config.linux.namespaces:
        scheme, _, name = item.path.partition(":")
        if scheme == "sandbox" and name in held:
            found[item.path] = descriptors.lend(held[name])
        elif scheme == "container" and target >= 0:
            found[item.path] = descriptors.lend(target)
        elif item.path.startswith("/"):
            found[item.path] = descriptors.take(_open_namespace(item.path))
        elif item.path:
            raise InvalidArgument(f"namespace {item.type}: there is no {item.path!r}")
    return found


def _open_namespace(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise BackendError(f"namespace {path}: {error.strerror}") from error


def _cgroup_view(cgroups: Cgroups) -> CgroupView:
    if cgroups.version == 2:
        return CgroupView(2)
    by_mount: dict[str, list[str]] = {}
    for controller, mount in cgroups.hierarchies.controllers.items():
        by_mount.setdefault(str(mount), []).append(controller)
    return CgroupView(1, tuple(_hierarchy(names) for names in by_mount.values()))


def _hierarchy(names: list[str]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return (directory, mount options, further links): ``cpu,cpuacct`` is also ``cpu`` and ``cpuacct``."""
    if names[0].startswith("name="):
        return names[0].removeprefix("name="), ("none", names[0]), ()
    directory = ",".join(names)
    return directory, tuple(names), tuple(names) if len(names) > 1 else ()
