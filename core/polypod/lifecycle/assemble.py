"""CRI request → OCI config: the pure functions of `polypod.spec`, fed with what the host and image say.

Spec:
    kubernetes/cri-api api.proto, ContainerConfig and PodSandboxConfig; runtime-spec config.md.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

from polypod.lifecycle.cdi import DIRECTORIES as CDI_DIRECTORIES
from polypod.lifecycle.cdi import find_edits, host_devices
from polypod.lifecycle.host_facts import HostFacts
from polypod.lifecycle.ports import BuiltConfig, ConfigRequest
from polypod.lifecycle.user_namespaces import check_user, pod_maps
from polypod.plugin.errors import InvalidArgument, Unavailable, Unsupported
from polypod.plugin.ids import ImageId
from polypod.plugin.images import ImageStore
from polypod.plugin.oci import CapabilitySets, Linux, OciConfig, Process, Seccomp, User
from polypod.plugin.requests import (
    ContainerConfig,
    NamespaceMode,
    ProfileType,
    Resources,
    SandboxConfig,
    SecurityProfile,
)
from polypod.plugin.runtime import SandboxSpec
from polypod.spec import cdi
from polypod.spec.capabilities import ALL_CAPABILITIES, capability_sets
from polypod.spec.cdi import Edits
from polypod.spec.devices import HostDevice, device_nodes, device_rules
from polypod.spec.mounts import (
    MountInputs,
    SandboxFiles,
    container_mounts,
    image_source,
    rootfs_propagation,
)
from polypod.spec.namespaces import (
    container_namespace,
    container_namespaces,
    has_user_namespace,
    sandbox_namespace,
)
from polypod.spec.paths import host_path
from polypod.spec.process import environment, process_args, working_directory
from polypod.spec.resources import oci_resources, oom_score
from polypod.spec.sandbox_files import sandbox_files
from polypod.spec.seccomp_default import default_profile, parse_profile
from polypod.spec.signals import stop_signal
from polypod.spec.sysctls import checked_sysctls
from polypod.spec.updates import overlay
from polypod.spec.users import MAX_DATABASE_BYTES, ResolvedUser, UserDatabase, resolve_user

_A = TypeVar("_A")
_T = TypeVar("_T")
SHM: Final = "shm"
"""Below a sandbox's directory: what its containers share as ``/dev/shm``; the backend mounts it."""
_HOST_SHM: Final = "/dev/shm"  # noqa: S108 - what a pod in the host's IPC namespace shares
_PROFILE_BYTES: Final = 1 << 20
_PATH_S: Final = 10.0
_CACHED_DATABASES: Final = 64
_CACHED_BYTES: Final = 64 * 1024


class Assembler:
    """Implements `polypod.lifecycle.ports.ConfigBuilder`."""

    def __init__(
        self, *, host: HostFacts, cdi_directories: Sequence[Path] = CDI_DIRECTORIES
    ) -> None:
        """Build for a host.

        Args:
            host: what is known of it.
            cdi_directories: where the files of CDI devices lie, the strongest last.
        """
        self._host = host
        self._cdi_directories = cdi_directories
        # Paths of clients may hang (a dead NFS server): they cost a thread here, never the loop.
        self._paths = ThreadPoolExecutor(8, "client-paths")
        self._databases: dict[ImageId, UserDatabase] = {}

    def close(self) -> None:
        """Let go of the threads; one that hangs is left behind."""
        self._paths.shutdown(wait=False, cancel_futures=True)

    def sysctls(self, config: SandboxConfig, /) -> Mapping[str, str]:
        """See `ConfigBuilder.sysctls`."""
        modes = config.security.namespaces
        return checked_sysctls(
            config.sysctls,
            host_network=modes.network is NamespaceMode.NODE,
            host_ipc=modes.ipc is NamespaceMode.NODE,
        )

    def sandbox_files(
        self, config: SandboxConfig, addresses: Sequence[str] = (), /
    ) -> Mapping[str, str]:
        """See `ConfigBuilder.sandbox_files`."""
        return sandbox_files(
            config,
            node_hostname=self._host.hostname(),
            node_resolv_conf=self._host.text("resolv.conf"),
            node_hosts=self._host.text("hosts"),
            addresses=addresses,
        )

    def limits(self, config: OciConfig, change: Resources, /) -> OciConfig:
        """See `ConfigBuilder.limits`."""
        linux, process = config.linux, config.process
        wanted = overlay(linux.resources, oci_resources(change, self._host.cgroups))
        if change.oom_score_adj:
            score = oom_score(change, self._host.cgroups)
            process = replace(process, oom_score_adj=score)
        return replace(config, linux=replace(linux, resources=wanted), process=process)

    async def container(self, request: ConfigRequest, /) -> BuiltConfig:
        """See `ConfigBuilder.container`."""
        config, image = request.config, request.image.config
        privileged = config.security.privileged
        self._check_apparmor(config.security.apparmor)
        user, maps = await self._user(request), pod_maps(request.sandbox.config)
        check_user(user, maps)
        capabilities = capability_sets(
            config.security.capabilities,
            privileged=privileged,
            # What the host lacks is no right of it that is given, but one over the pod's own namespaces.
            grantable=self._host.grantable if maps is None else frozenset(ALL_CAPABILITIES),
        )
        devices: list[HostDevice] = []
        edits = Edits()
        if config.cdi_devices:
            edits, devices = await self._off_loop("CDI devices", self._cdi_devices, config)
            groups = (*user.additional_gids, *edits.groups)
            check_user(replace(user, additional_gids=groups), maps)
        if config.devices:
            devices += await self._off_loop("devices", self._devices, config)
        if any(mount.host_path for mount in config.mounts):
            await self._off_loop("mounts", _check_sources, config)
        everything = self._host.all_devices() if privileged else ()
        oci = OciConfig(
            process=self._process(request, user, capabilities),
            root_readonly=config.security.readonly_rootfs,
            hostname=_hostname(request.sandbox),
            mounts=container_mounts(config.mounts, _mount_inputs(request.sandbox, config)),
            linux=Linux(
                namespaces=container_namespaces(
                    request.sandbox.config.security.namespaces,
                    config.security.namespaces,
                    _namespace_paths(request.sandbox, config),
                    privileged=privileged,
                ),
                uid_mappings=maps.uids if maps else (),
                gid_mappings=maps.gids if maps else (),
                devices=device_nodes(devices, everything),
                cgroups_path=request.cgroup,
                resources=oci_resources(
                    config.resources,
                    self._host.cgroups,
                    device_rules(devices, privileged=privileged),
                ),
                rootfs_propagation=rootfs_propagation(config.mounts),
                seccomp=await self._seccomp(config, capabilities),
                masked_paths=() if privileged else config.security.masked_paths,
                readonly_paths=() if privileged else config.security.readonly_paths,
            ),
            annotations=_annotations(request),
        )
        if config.cdi_devices:
            oci = cdi.apply(oci, edits)
        return BuiltConfig(oci, stop_signal(config.stop_signal, image.stop_signal))

    def _process(
        self, request: ConfigRequest, user: ResolvedUser, capabilities: CapabilitySets
    ) -> Process:
        config, image = request.config, request.image.config
        hostname = request.sandbox.config.hostname or self._host.hostname()
        return Process(
            args=process_args(config, image),
            env=environment(config, image, hostname=hostname, home=user.home),
            cwd=working_directory(config, image),
            terminal=config.tty,
            user=User(user.uid, user.gid, additional_gids=user.additional_gids),
            capabilities=capabilities,
            no_new_privileges=config.security.no_new_privs,
            oom_score_adj=oom_score(config.resources, self._host.cgroups),
        )

    async def _user(self, request: ConfigRequest) -> ResolvedUser:
        database = await self._database(request.image_store, request.image.id)
        return resolve_user(request.config.security, request.image.config.user, database)

    async def _database(self, store: ImageStore, image_id: ImageId) -> UserDatabase:
        """An image never changes, so small user databases are kept."""
        known = self._databases.get(image_id)
        if known is not None:
            return known
        passwd = await store.image_file(image_id, "/etc/passwd", MAX_DATABASE_BYTES)
        group = await store.image_file(image_id, "/etc/group", MAX_DATABASE_BYTES)
        found = UserDatabase(passwd or b"", group or b"")
        if len(found.passwd) + len(found.group) <= _CACHED_BYTES:
            while len(self._databases) >= _CACHED_DATABASES:
                del self._databases[next(iter(self._databases))]
            self._databases[image_id] = found
        return found

    def _devices(self, config: ContainerConfig) -> list[HostDevice]:
        found: list[HostDevice] = []
        for item in config.devices:
            where = item.container_path or item.host_path
            found += self._host.devices_at(item.host_path, where, item.permissions or "rwm")
        return found

    def _cdi_devices(self, config: ContainerConfig) -> tuple[Edits, list[HostDevice]]:
        edits = find_edits(config.cdi_devices, self._cdi_directories)
        return edits, host_devices(edits.nodes)

    def _check_apparmor(self, profile: SecurityProfile | None) -> None:
        if profile is None or profile.profile_type is ProfileType.UNCONFINED:
            return
        if not self._host.apparmor:
            name = profile.localhost_ref or profile.profile_type.name
            raise Unsupported(f"AppArmor profile {name}: AppArmor is not enabled on this host")

    async def _seccomp(
        self, config: ContainerConfig, capabilities: CapabilitySets
    ) -> Seccomp | None:
        profile = config.security.seccomp
        if config.security.privileged or profile is None:
            return None
        match profile.profile_type:
            case ProfileType.UNCONFINED:
                return None
            case ProfileType.RUNTIME_DEFAULT:
                return default_profile(frozenset(capabilities.bounding))
            case ProfileType.LOCALHOST:
                text = await self._off_loop("seccomp", _read_profile, profile.localhost_ref)
                return parse_profile(text, capabilities=frozenset(capabilities.bounding))

    async def _off_loop(self, what: str, work: Callable[[_A], _T], argument: _A) -> _T:
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._paths, work, argument)
        try:
            return await asyncio.wait_for(asyncio.shield(future), _PATH_S)
        except TimeoutError as error:
            raise Unavailable(
                f"{what}: a path of the request did not answer for {_PATH_S:g} s; is its disk alive?"
            ) from error


def _hostname(sandbox: SandboxSpec) -> str:
    """A name of the container's own only where it does not join the sandbox's uts namespace."""
    own = sandbox.config.security.namespaces.network is not NamespaceMode.NODE
    joined = sandbox.namespaces is not None and "uts" in sandbox.namespaces.fds
    return sandbox.config.hostname if own and not joined else ""


def _namespace_paths(sandbox: SandboxSpec, config: ContainerConfig) -> dict[str, str]:
    """Name what exists already: the backend turns these names into descriptors or paths."""
    held = sandbox.namespaces.fds if sandbox.namespaces is not None else {}
    paths = {kind: sandbox_namespace(kind) for kind in held}
    options = config.security.namespaces
    if options.pid is NamespaceMode.TARGET:
        paths["target"] = container_namespace(options.target_id)
    return paths


def _mount_inputs(sandbox: SandboxSpec, config: ContainerConfig) -> MountInputs:
    options, directory = sandbox.config.security.namespaces, sandbox.directory
    images = (each.container_path for each in config.mounts if each.image and each.image.image)
    return MountInputs(
        image_volumes={path: image_source(path) for path in images},
        files=SandboxFiles(
            hostname=str(directory / "hostname"),
            hosts=str(directory / "hosts"),
            resolv_conf=str(directory / "resolv.conf"),
            shm=_HOST_SHM if options.ipc is NamespaceMode.NODE else str(directory / SHM),
        ),
        privileged=config.security.privileged,
        readonly_rootfs=config.security.readonly_rootfs,
        user_namespace=has_user_namespace(options),
        host_network=options.network is NamespaceMode.NODE,
    )


def _annotations(request: ConfigRequest) -> dict[str, str]:
    """Who this is, in the names that OCI runtimes and shims know; nothing that a client sent (E10)."""
    pod = request.sandbox.config.metadata
    return {
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.container-name": request.config.metadata.name,
        "io.kubernetes.cri.sandbox-id": request.sandbox.id,
        "io.kubernetes.cri.sandbox-name": pod.name,
        "io.kubernetes.cri.sandbox-namespace": pod.namespace,
        "io.kubernetes.cri.sandbox-uid": pod.uid,
    }


def _check_sources(config: ContainerConfig) -> None:
    """Check the sources of volumes; a missing one is made as a directory, as kubelets expect."""
    for mount in config.mounts:
        if not mount.host_path:
            continue
        path = Path(host_path(mount.host_path, f"mount {mount.container_path}: host_path"))
        try:
            path.stat()
        except FileNotFoundError:
            _make_source(path, mount.container_path)
        except OSError as error:
            raise InvalidArgument(
                f"mount {mount.container_path}: host_path {path}: {error.strerror}"
            ) from error


def _make_source(path: Path, where: str) -> None:
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArgument(
            f"mount {where}: host_path {path} does not exist and cannot be made: {error.strerror}"
        ) from error


def _read_profile(reference: str) -> bytes:
    """Read a seccomp profile of the node (E22: an absolute path that does not climb)."""
    path = host_path(reference, "seccomp localhost_ref")
    if ".." in reference.split("/"):
        raise InvalidArgument(f"seccomp localhost_ref {reference!r}: must not climb with '..'")
    try:
        # Non-blocking: a fifo there must not hang us.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidArgument(f"seccomp profile {path}: {error.strerror}") from error
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > _PROFILE_BYTES:
            raise InvalidArgument(f"seccomp profile {path}: no regular file of at most 1 MiB")
        return os.read(fd, _PROFILE_BYTES)
    finally:
        os.close(fd)
