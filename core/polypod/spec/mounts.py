"""Mounts of a container: the default ones, the sandbox's files, and what the request names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from polypod.plugin.errors import InvalidArgument, Unsupported
from polypod.plugin.oci import OciMount
from polypod.plugin.requests import Mount, MountPropagation
from polypod.spec.namespaces import oci_mappings
from polypod.spec.paths import container_path, depth, host_path

_IMAGE: Final = "image:"
_STRICT: Final = ("nosuid", "noexec", "nodev")
_MOUNT_OPTIONS: Final = frozenset(_STRICT)
_PROPAGATION: Final = {
    MountPropagation.PRIVATE: "rprivate",
    MountPropagation.HOST_TO_CONTAINER: "rslave",
    MountPropagation.BIDIRECTIONAL: "rshared",
}
_SHM_BYTES: Final = 64 * 1024 * 1024
_TTY_GID: Final = 5
_SHM_PATH: Final = "/dev/shm"  # noqa: S108 - a mount point inside the container


@dataclass(frozen=True, slots=True)
class SandboxFiles:
    """Paths of what all containers of a pod share; ``""`` = there is none to mount."""

    hostname: str = ""
    hosts: str = ""
    resolv_conf: str = ""
    shm: str = ""
    """A directory or tmpfs for ``/dev/shm``; without one each container gets its own."""


@dataclass(frozen=True, slots=True)
class MountInputs:
    """What mounts depend on beside the request's list."""

    files: SandboxFiles = SandboxFiles()
    image_volumes: Mapping[str, str] = field(default_factory=dict)
    """Container path → source of a mount whose source is an image: see `image_source`."""
    privileged: bool = False
    readonly_rootfs: bool = False
    user_namespace: bool = False
    host_network: bool = False
    devpts_gid: int | None = _TTY_GID


def image_source(destination: str) -> str:
    """Return what stands for the path of an image: nobody but the backend mounts it."""
    return f"{_IMAGE}{destination}"


def is_image(mount: OciMount) -> bool:
    """Tell whether a mount's source is an image."""
    return mount.source.startswith(_IMAGE)


def container_mounts(requested: tuple[Mount, ...], inputs: MountInputs) -> tuple[OciMount, ...]:
    """Return all mounts, parents before children.

    A requested mount replaces a default one on the same path.

    Raises:
        InvalidArgument: a path or a combination of options is wrong.
        Unsupported: an image volume that the caller could not provide.

    Spec:
        kubernetes/cri-api api.proto, Mount; runtime-spec config.md, mounts.
    """
    asked = [_requested(item, inputs) for item in requested]
    taken = {item.destination for item in asked}
    standard = (*_default_mounts(inputs), *_file_mounts(inputs))
    kept = [item for item in standard if item.destination not in taken]
    # The sort is stable: equal depths stay in the order of the request.
    return tuple(sorted([*kept, *asked], key=lambda item: depth(item.destination)))


def rootfs_propagation(requested: tuple[Mount, ...]) -> str:
    """Return the root's propagation: what the most open mount needs to work at all."""
    widest = max((item.propagation for item in requested), default=MountPropagation.PRIVATE)
    return _PROPAGATION[widest]


def _default_mounts(inputs: MountInputs) -> tuple[OciMount, ...]:
    kernel = () if inputs.privileged else ("ro",)
    terminal = () if inputs.devpts_gid is None else (f"gid={inputs.devpts_gid}",)
    return (
        OciMount("/proc", "proc", "proc", _STRICT),
        OciMount("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
        OciMount(
            "/dev/pts",
            "devpts",
            "devpts",
            ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", *terminal),
        ),
        OciMount("/dev/mqueue", "mqueue", "mqueue", _STRICT),
        _shm(inputs.files.shm),
        _sys(inputs),
        OciMount("/sys/fs/cgroup", "cgroup", "cgroup", (*_STRICT, "relatime", *kernel)),
    )


def _sys(inputs: MountInputs) -> OciMount:
    """Root of a user namespace may only mount the sysfs of a network that is its own."""
    if inputs.user_namespace and inputs.host_network:
        return OciMount("/sys", "bind", "/sys", ("bind", "rprivate", "ro", *_STRICT))
    access = () if inputs.privileged else ("ro",)
    return OciMount("/sys", "sysfs", "sysfs", (*_STRICT, *access))


def _shm(source: str) -> OciMount:
    if source:
        return OciMount(_SHM_PATH, "bind", source, ("rbind", "rprivate", "rw", *_STRICT))
    options = (*_STRICT, "mode=1777", f"size={_SHM_BYTES}")
    return OciMount(_SHM_PATH, "tmpfs", "shm", options)


def _file_mounts(inputs: MountInputs) -> tuple[OciMount, ...]:
    files = inputs.files
    access = "ro" if inputs.readonly_rootfs else "rw"
    return tuple(
        OciMount(destination, "bind", source, ("rbind", "rprivate", access))
        for destination, source in (
            ("/etc/hostname", files.hostname),
            ("/etc/hosts", files.hosts),
            ("/etc/resolv.conf", files.resolv_conf),
        )
        if source
    )


def _requested(mount: Mount, inputs: MountInputs) -> OciMount:
    destination = container_path(mount.container_path, "mounts.container_path")
    if destination == "/":
        raise InvalidArgument("mounts.container_path '/': the root itself cannot be replaced")
    if mount.propagation is MountPropagation.BIDIRECTIONAL and (
        not inputs.privileged or inputs.user_namespace
    ):
        raise InvalidArgument(
            f"mount {destination}: bidirectional propagation takes a privileged container without a "
            "user namespace, because it reaches the host's mounts"
        )
    return OciMount(
        destination,
        "bind",
        _source(mount, destination, inputs.image_volumes),
        ("rbind", _PROPAGATION[mount.propagation], _access(mount, destination), *_flags(mount)),
        oci_mappings(mount.uid_mappings, f"mount {destination}: uidMappings"),
        oci_mappings(mount.gid_mappings, f"mount {destination}: gidMappings"),
    )


def _source(mount: Mount, destination: str, image_volumes: Mapping[str, str]) -> str:
    if mount.image is None or not mount.image.image:
        return host_path(mount.host_path, f"mount {destination}: host_path")
    if mount.host_path:
        raise InvalidArgument(f"mount {destination}: host_path and image exclude each other")
    if mount.container_path not in image_volumes:
        raise Unsupported(
            f"ImageVolumeMountFailed: mount {destination}: image {mount.image.image} cannot be mounted "
            "as a volume by this version"
        )
    return image_volumes[mount.container_path]


def _access(mount: Mount, destination: str) -> str:
    if mount.recursive_read_only:
        if not mount.readonly or mount.propagation is not MountPropagation.PRIVATE:
            raise InvalidArgument(
                f"mount {destination}: recursive_read_only needs readonly and private propagation"
            )
        return "rro"
    return "ro" if mount.readonly or (mount.image is not None and mount.image.image) else "rw"


def _flags(mount: Mount) -> tuple[str, ...]:
    unknown = set(mount.mount_options) - _MOUNT_OPTIONS
    if unknown:
        raise InvalidArgument(
            f"mount {mount.container_path}: mount_options {sorted(unknown)} are not among "
            f"{', '.join(_STRICT)}"
        )
    return tuple(dict.fromkeys(mount.mount_options))
