"""What is opened on the host for a launch: the root, volumes, a pod's shared memory.

The supervisor opens nothing by path; everything here becomes a descriptor in the launch, and its
propagation and flags are set before it is sent. What is opened is attached nowhere: it is gone with its
last descriptor, and nothing that a container mounts below it reaches the host.

Spec:
    man open_tree(2), mount_setattr(2), mount_namespaces(7).
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from polypod.backend import mountapi
from polypod.backend.descriptors import Descriptors
from polypod.backend.users import Stage, map_ids, open_overlay
from polypod.plugin.errors import BackendError, InvalidArgument, Unsupported
from polypod.plugin.oci import Linux, OciConfig, OciMount
from polypod.plugin.rootfs import BlockRootfs, DirectoryRootfs, ErofsRootfs, OverlayRootfs, Rootfs
from polypod.plugin.runtime import ImageVolume
from polypod.spec.compile import MountSource
from polypod.spec.mount_options import MS_PRIVATE, MS_SHARED, MS_SLAVE, parse_mount_options
from polypod.spec.mounts import is_image

_CLONE: Final = mountapi.OPEN_TREE_CLONE | mountapi.OPEN_TREE_CLOEXEC


def open_rootfs(
    rootfs: Rootfs, linux: Linux | None = None, users: int = -1, stage: Stage | None = None
) -> int:
    """Return a detached mount of a container's root.

    Args:
        rootfs: its description.
        linux: the container's, with the mappings of ``users``.
        users: the pod's user namespace; -1 = the host's.
        stage: for kernels that map layers only where they are attached.

    Raises:
        BackendError: the kernel refused; the text has its words.
        Unsupported: another form.
    """
    try:
        match rootfs:
            case OverlayRootfs():
                return _open_overlay(rootfs, linux, users, stage)
            case ErofsRootfs():
                return _open_erofs(rootfs, linux, users)
            case DirectoryRootfs(path):
                fd = mountapi.open_tree(mountapi.AT_FDCWD, str(path), _CLONE)
                return _private(fd, users)
            case BlockRootfs(path):
                raise Unsupported(f"{path}: block images cannot be a root file system here")
    except OSError as error:
        raise BackendError(f"root file system: {error.strerror}") from error


def mount_rootfs(rootfs: Rootfs, target: Path) -> None:
    """Mount a container's root on a directory of the host, for a program that takes a path.

    Raises:
        BackendError: the kernel refused.
        Unsupported: another form.
    """
    fd = open_rootfs(rootfs)
    try:
        mountapi.move_mount(fd, str(target))
        # Below a shared mount it becomes shared, and unmounting it would depend on who else shares it.
        mountapi.mount_setattr(fd, propagation=MS_PRIVATE)
    except OSError as error:
        raise BackendError(f"root file system {target}: {error.strerror}") from error
    finally:
        os.close(fd)


def unmount(target: Path) -> None:
    """Unmount what `mount_rootfs` or `SharedMemory` mounted; what is not mounted, or not there, is fine.

    Raises:
        BackendError: the kernel refused.
    """
    try:
        mountapi.unmount(str(target))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise BackendError(f"unmount {target}: {error.strerror}") from error


def _open_erofs(rootfs: ErofsRootfs, linux: Linux | None, users: int) -> int:
    """The image is one lower layer: a mount that is attached nowhere, and gone with the overlay."""
    source: list[tuple[str, str | None]] = [("source", str(rootfs.image))]
    try:
        image = mountapi.mount_detached("erofs", source, attributes=mountapi.MOUNT_ATTR_RDONLY)
    except OSError as error:
        if error.errno not in (errno.ENOTBLK, errno.ENODEV):
            raise
        raise Unsupported(
            f"{rootfs.image}: an erofs image is mounted from its file: that needs Linux 6.12 or later, "
            f"with erofs ({error.strerror})"
        ) from error
    try:
        lower = Path(f"/proc/self/fd/{image}")
        above = OverlayRootfs((lower,), rootfs.upper, rootfs.work, rootfs.options)
        return _open_overlay(above, linux, users)
    finally:
        os.close(image)


def _open_overlay(
    rootfs: OverlayRootfs, linux: Linux | None, users: int, stage: Stage | None = None
) -> int:
    if linux is not None and users >= 0:
        return open_overlay(rootfs, linux, users, stage)
    options: list[tuple[str, str | None]] = [("source", "polypod")]
    options += [("lowerdir+", str(path)) for path in rootfs.lowers]
    options += [("upperdir", str(rootfs.upper)), ("workdir", str(rootfs.work))]
    options += [_pair(option) for option in rootfs.options]
    try:
        return mountapi.mount_detached("overlay", options)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return _open_overlay_before_6_7(rootfs)


def _open_overlay_before_6_7(rootfs: OverlayRootfs) -> int:
    """One string for all layers, at most 256 bytes: descriptors are shorter than paths."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    layers = [os.open(path, flags) for path in rootfs.lowers]
    try:
        lower = ":".join(f"/proc/self/fd/{fd}" for fd in layers)
        options = [("source", "polypod"), ("lowerdir", lower)]
        options += [("upperdir", str(rootfs.upper)), ("workdir", str(rootfs.work))]
        return mountapi.mount_detached("overlay", [*options, *map(_pair, rootfs.options)])
    finally:
        for fd in layers:
            os.close(fd)


def _pair(option: str) -> tuple[str, str | None]:
    key, equals, value = option.partition("=")
    return key, value if equals else None


def _private(fd: int, users: int) -> int:
    try:
        if users >= 0:
            mountapi.idmap(fd, users)
        mountapi.mount_setattr(fd, propagation=MS_PRIVATE, recursive=True)
    except OSError:
        os.close(fd)
        raise
    return fd


def bind_mounts(config: OciConfig) -> list[OciMount]:
    """Return the mounts whose source is a path of the host."""
    return [
        item
        for item in config.mounts
        if (item.type in ("bind", "") or {"bind", "rbind"} & set(item.options))
        and not is_image(item)
    ]


def open_image_volumes(
    config: OciConfig,
    volumes: Mapping[str, ImageVolume],
    descriptors: Descriptors,
    stage: Stage,
    users: int = -1,
) -> dict[str, MountSource]:
    """Open the images that a container has as volumes, in its pod's user namespace if there is one.

    Raises:
        BackendError: the kernel refused, or a sub-path is not there.
        Unsupported: a volume shall be mapped otherwise than its pod.
    """
    found: dict[str, MountSource] = {}
    own = (config.linux.uid_mappings, config.linux.gid_mappings)
    for mount in filter(is_image, config.mounts):
        if (mount.uid_mappings, mount.gid_mappings) not in (own, ((), ())):
            raise Unsupported(
                f"mount {mount.destination}: an image is mapped as its pod, or not at all"
            )
        volume = volumes[mount.destination]
        whole = open_rootfs(volume.rootfs, config.linux, users, stage)
        try:
            part = volume.sub_path.strip("/")
            fd = stage.parts_of(whole, [part])[0] if part else os.dup(whole)
            try:
                _set_options(fd, mount)
            except OSError:
                os.close(fd)
                raise
        except OSError as error:
            raise BackendError(
                f"ImageVolumeMountFailed: mount {mount.destination}: {volume.sub_path}: {error.strerror}"
            ) from error
        finally:
            os.close(whole)
        is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        found[mount.destination] = MountSource(descriptors.take(fd), is_directory)
    return found


def open_binds(
    mounts: Iterable[OciMount], descriptors: Descriptors, users: Mapping[str, int] | None = None
) -> dict[str, MountSource]:
    """Open the sources of bind mounts.

    Args:
        mounts: bind mounts.
        descriptors: what is opened is added here.
        users: destination → user namespace, of those that are idmapped.

    Raises:
        BackendError: a source is gone, or its propagation is not what the mount needs.
    """
    mounts = tuple(mounts)
    check_propagation(mounts)
    found: dict[str, MountSource] = {}
    for mount in mounts:
        fd, is_directory = _open_bind(mount, (users or {}).get(mount.destination, -1))
        found[mount.destination] = MountSource(descriptors.take(fd), is_directory)
    return found


def _open_bind(mount: OciMount, users: int) -> tuple[int, bool]:
    options = parse_mount_options(mount.options, mount.destination)
    if users < 0 and (mount.uid_mappings or mount.gid_mappings):
        raise Unsupported(
            f"mount {mount.destination}: idmapped mounts are not done by this handler"
        )
    deep = mountapi.AT_RECURSIVE if options.recursive else 0
    try:
        fd = mountapi.open_tree(mountapi.AT_FDCWD, mount.source, _CLONE | deep)
    except OSError as error:
        raise BackendError(
            f"mount {mount.destination}: source {mount.source}: {os.strerror(error.errno or 0)}"
        ) from error
    try:
        if users >= 0:
            map_ids(fd, users, mount)
        _set_options(fd, mount)
        return fd, stat.S_ISDIR(os.fstat(fd).st_mode)
    except BackendError:
        os.close(fd)
        raise
    except OSError as error:
        os.close(fd)
        raise BackendError(f"mount {mount.destination}: {error.strerror}") from error


def _set_options(fd: int, mount: OciMount) -> None:
    options = parse_mount_options(mount.options, mount.destination)
    mountapi.mount_setattr(fd, propagation=options.propagation or MS_PRIVATE, recursive=True)
    if options.set_ or options.clear:
        mountapi.mount_setattr(fd, set_=options.set_, clear=options.clear)
    if options.recursive_set or options.recursive_clear:
        mountapi.mount_setattr(
            fd, set_=options.recursive_set, clear=options.recursive_clear, recursive=True
        )


def check_propagation(mounts: Iterable[OciMount], mountinfo: str | None = None) -> None:
    """Refuse bind mounts through which nothing could propagate: on a private mount the kernel would be silent.

    Args:
        mounts: bind mounts.
        mountinfo: the text of ``/proc/self/mountinfo``, for tests.

    Raises:
        InvalidArgument: a source lies on such a mount.
        BackendError: a source is gone.
    """
    table: Mapping[int, str] | None = None
    for mount in mounts:
        options = parse_mount_options(mount.options, mount.destination)
        if options.propagation in (MS_SHARED, MS_SLAVE):
            table = table if table is not None else propagation_table(mountinfo)
            _check_propagation(mount, options.propagation, table)


def propagation_table(mountinfo: str | None = None) -> dict[int, str]:
    """Return mount id → the optional fields that tell its propagation (``shared:1 master:2``)."""
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    table: dict[int, str] = {}
    for line in text.splitlines():
        fields = line.split(" - ")[0].split()
        table[int(fields[0])] = " ".join(fields[6:])
    return table


def _check_propagation(mount: OciMount, wanted: int, table: Mapping[int, str]) -> None:
    """What the host mounts later can only arrive through a mount that takes part in propagation."""
    have = table.get(_mount_id(mount.source), "")
    if wanted == MS_SHARED and "shared:" not in have:
        raise InvalidArgument(
            f"mount {mount.destination}: {mount.source} lies on a mount that is not shared, so "
            "bidirectional propagation is impossible: `mount --make-rshared` it first"
        )
    if wanted == MS_SLAVE and "shared:" not in have and "master:" not in have:
        raise InvalidArgument(
            f"mount {mount.destination}: {mount.source} lies on a private mount, so nothing that the "
            "host mounts later can arrive: `mount --make-rshared` it first"
        )


def _mount_id(path: str) -> int:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise BackendError(f"{path}: {error.strerror}") from error
    try:
        for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
            if line.startswith("mnt_id:"):
                return int(line.split()[1])
    finally:
        os.close(fd)
    return -1


class SharedMemory:
    """The pods' ``/dev/shm``: one tmpfs each on the host, because containers come and go."""

    def __init__(self) -> None:
        # Two containers of a pod may be started at once; a second tmpfs would hide the first.
        self._lock = threading.Lock()

    def ensure(self, directory: Path, uid: int = 0, gid: int = 0) -> None:
        """Mount it if it is not there yet; ``uid`` and ``gid`` are those of the pod's root."""
        with self._lock:
            if not directory.is_mount():
                self._mount(directory, uid, gid)

    @staticmethod
    def _mount(directory: Path, uid: int, gid: int) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        attributes = (
            mountapi.MOUNT_ATTR_NOSUID | mountapi.MOUNT_ATTR_NODEV | mountapi.MOUNT_ATTR_NOEXEC
        )
        options: list[tuple[str, str | None]] = [("size", "65536k"), ("mode", "1777")]
        if uid or gid:
            options += [("uid", str(uid)), ("gid", str(gid))]
        fd = mountapi.mount_detached("tmpfs", options, attributes=attributes)
        try:
            mountapi.move_mount(fd, str(directory))
        finally:
            os.close(fd)
