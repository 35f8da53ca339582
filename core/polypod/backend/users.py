"""What a launch into a user namespace needs of us: there its root has no right to make it himself.

Layers are idmapped and put together here, because an overlay that is mounted cannot be idmapped any
more. Device nodes are made here, in a file system that lets them be devices. Streams are given to who
the program's user is on the host.

Spec:
    man user_namespaces(7), mount_setattr(2), "ID-mapped mounts"; kernel Documentation/filesystems/idmappings.rst.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from polypod.backend import mountapi
from polypod.backend.descriptors import Descriptors
from polypod.plugin.errors import BackendError, InvalidArgument
from polypod.plugin.oci import Linux, OciConfig, OciDevice, OciMount, Process
from polypod.plugin.rootfs import OverlayRootfs
from polypod.plugin.services import IdMaps, Stdio
from polypod.spec.compile import bound_nodes
from polypod.spec.devices import DEFAULT_DEVICES
from polypod.spec.mount_options import MS_PRIVATE, RDONLY, parse_mount_options
from polypod.spec.namespaces import host_id

_CLONE: Final = mountapi.OPEN_TREE_CLONE | mountapi.OPEN_TREE_CLOEXEC
_GIVEN: Final = "trusted.polypod.given"
"""An attribute of an upper directory that belongs to the root of a user namespace."""
_KINDS: Final = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}


class Stage:
    """A directory of ours where mounts are attached for a moment, on kernels that need it.

    What a daemon that was killed has left there is unmounted by the next one; nothing in it is ever
    removed but empty directories.
    """

    def __init__(self, directory: Path) -> None:
        """Make it, and clear it."""
        self._directory = directory
        directory.mkdir(mode=0o700, exist_ok=True)
        for place in directory.iterdir():
            with suppress(OSError):
                mountapi.unmount(str(place))
            place.rmdir()

    @contextmanager
    def attached(self, fd: int) -> Iterator[Path]:
        """Attach a detached mount for the time of the block."""
        place = Path(tempfile.mkdtemp(dir=self._directory))
        try:
            mountapi.mount_setattr(fd, propagation=MS_PRIVATE)
            mountapi.move_mount(fd, str(place))
            try:
                yield place
            finally:
                mountapi.unmount(str(place))
        finally:
            place.rmdir()

    def parts_of(self, fd: int, paths: Sequence[str]) -> list[int]:
        """Return detached mounts of what lies at paths in another one; links cannot lead out of it.

        That other one may be of no more use afterwards.

        Raises:
            OSError: the kernel refused, or there is nothing.
        """
        try:
            return _parts_of(fd, paths)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        # Before 6.15 only what is attached can be copied. The descriptor is of the same mount still.
        with self.attached(fd):
            return _parts_of(fd, paths)


def _parts_of(fd: int, paths: Sequence[str]) -> list[int]:
    found: list[int] = []
    try:
        for path in paths:
            found.append(_part_of(fd, path))  # noqa: PERF401 - those before a failure are closed
    except OSError:
        for part in found:
            os.close(part)
        raise
    return found


def _part_of(fd: int, path: str) -> int:
    place = mountapi.open_in_root(fd, path)
    try:
        return mountapi.open_tree(place, "", _CLONE | mountapi.AT_EMPTY_PATH)
    finally:
        os.close(place)


@dataclass(frozen=True, slots=True)
class Root:
    """Who root of a user namespace is on the host."""

    uid: int
    gid: int


def root_of(linux: Linux) -> Root | None:
    """Return who a container's root is; None where it is the host's."""
    uid, gid = host_id(0, linux.uid_mappings), host_id(0, linux.gid_mappings)
    return None if uid is None or gid is None else Root(uid, gid)


def give_streams(stdio: Stdio, process: Process, linux: Linux) -> None:
    """Give streams to a program's user, so that it can open its ``/dev/stdout``; nothing without mappings."""
    uid = host_id(process.user.uid, linux.uid_mappings)
    if uid is None:
        return
    for fd in (stdio.stdin, stdio.stdout, stdio.stderr):
        if fd is not None:
            os.fchown(fd, uid, -1)


# Mappings of mounts


def mount_maps(config: OciConfig) -> dict[str, IdMaps]:
    """Return destination → mappings, of the mounts that shall have any.

    Raises:
        InvalidArgument: only users or only groups are mapped.
    """
    found: dict[str, IdMaps] = {}
    for mount in config.mounts:
        if bool(mount.uid_mappings) is not bool(mount.gid_mappings):
            raise InvalidArgument(
                f"mount {mount.destination}: uidMappings and gidMappings go together"
            )
        if mount.uid_mappings:
            found[mount.destination] = IdMaps(mount.uid_mappings, mount.gid_mappings)
    return found


def map_ids(fd: int, users: int, mount: OciMount) -> None:
    """Map the ids of a detached mount, and of all that came with it.

    Raises:
        BackendError: a file system there cannot do it.
    """
    try:
        mountapi.idmap(fd, users, recursive=True)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EPERM):
            raise
        raise BackendError(
            f"mount {mount.destination}: source {mount.source}: its file system, or one that is mounted below "
            f"it, cannot be idmapped as uidMappings ask: {os.strerror(error.errno)}"
        ) from error


# The root file system


def open_overlay(
    rootfs: OverlayRootfs, linux: Linux, users: int, stage: Stage | None = None
) -> int:
    """Return a detached overlay mount of idmapped layers.

    The upper directory is not mapped, because overlayfs writes there as ourselves first, and we have no id
    in the map: it is given to who owns it inside, once.

    Args:
        rootfs: its description.
        linux: has the mappings.
        users: the user namespace.
        stage: for kernels before 6.15, whose overlays take no layers that are attached nowhere.

    Raises:
        OSError: the kernel refused.
    """
    _give_upper(rootfs.upper, linux)
    with ExitStack() as stack:
        layers = [_mapped(lower, users, stack) for lower in rootfs.lowers]
        try:
            return _mount_overlay(rootfs, [f"/proc/self/fd/{fd}" for fd in layers])
        except OSError as error:
            if error.errno != errno.EINVAL or stage is None:
                raise
        places = [stack.enter_context(stage.attached(fd)) for fd in layers]
        return _mount_attached(rootfs, places, stack)


def _mount_overlay(rootfs: OverlayRootfs, lowers: Iterable[str]) -> int:
    return _overlay(rootfs, [("lowerdir+", lower) for lower in lowers])


def _mount_attached(rootfs: OverlayRootfs, places: Iterable[Path], stack: ExitStack) -> int:
    try:
        return _mount_overlay(rootfs, map(str, places))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    # Before 6.7: one string for all layers, at most 256 bytes; descriptors are shorter than paths.
    found: list[str] = []
    for place in places:
        fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        found.append(f"/proc/self/fd/{fd}")
    return _overlay(rootfs, [("lowerdir", ":".join(found))])


def _overlay(rootfs: OverlayRootfs, lowers: list[tuple[str, str | None]]) -> int:
    options: list[tuple[str, str | None]] = [("source", "polypod"), *lowers]
    options += [("upperdir", str(rootfs.upper)), ("workdir", str(rootfs.work))]
    for option in rootfs.options:
        key, equals, value = option.partition("=")
        options.append((key, value if equals else None))
    return mountapi.mount_detached("overlay", options)


def _give_upper(upper: Path, linux: Linux) -> None:
    try:
        os.setxattr(upper, _GIVEN, b"", os.XATTR_CREATE)
    except FileExistsError:
        return  # a second start: what the ids were before is not to be seen any more
    facts = upper.stat()
    uid = host_id(facts.st_uid, linux.uid_mappings)
    gid = host_id(facts.st_gid, linux.gid_mappings)
    os.chown(upper, -1 if uid is None else uid, -1 if gid is None else gid)


def _mapped(path: Path, users: int, stack: ExitStack) -> int:
    fd = mountapi.open_tree(mountapi.AT_FDCWD, str(path), _CLONE)
    stack.callback(os.close, fd)
    mountapi.idmap(fd, users)
    return fd


def why_not(directory: Path, users: int, stage: Stage | None = None) -> str:
    """Try it, below a directory of our own; return why it does not work, or an empty text."""
    places = [directory / f"idmap-probe-{name}" for name in ("lower", "upper", "work")]
    try:
        for place in places:
            place.mkdir(exist_ok=True)
        above = OverlayRootfs((places[0],), places[1], places[2])
        os.close(open_overlay(above, Linux(), users, stage))
    except OSError as error:
        return f"{directory}: an overlay of idmapped layers: {error.strerror}"
    finally:
        for place in (places[2] / "work", *places):
            if place.is_dir():
                place.rmdir()
    return ""


# Devices


def open_devices(
    config: OciConfig, root: Root, descriptors: Descriptors, stage: Stage
) -> tuple[str, dict[str, str]]:
    """Make the device nodes; return the source of a whole ``/dev`` and path → source of single nodes.

    Devices of the host keep the host's owners: who is root of a user namespace has not become the owner of
    the host's disks, whatever the container was allowed.
    """
    ready, single = bound_nodes(config)
    dev = descriptors.take(_open_dev(config, root)) if ready else ""
    return dev, _open_nodes(single, root, descriptors, stage) if single else {}


def _open_dev(config: OciConfig, root: Root) -> int:
    mount = next(item for item in config.mounts if item.destination == "/dev")
    options = parse_mount_options(mount.options, mount.destination)
    data = [*options.data, ("uid", str(root.uid)), ("gid", str(root.gid))]
    attributes = (options.set_ | options.recursive_set) & ~RDONLY
    fd = mountapi.mount_detached("tmpfs", data, attributes=attributes)
    try:
        for device in (*DEFAULT_DEVICES, *config.linux.devices):
            if device.path.startswith("/dev/"):
                _make_node(fd, device.path.removeprefix("/dev/"), device, root)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_nodes(
    devices: Sequence[OciDevice], root: Root, descriptors: Descriptors, stage: Stage
) -> dict[str, str]:
    """Nodes for elsewhere: each is a mount of its own, of a file system that nothing else shows."""
    holder = mountapi.mount_detached("tmpfs", [("mode", "755")])
    names = [str(number) for number in range(len(devices))]
    try:
        for name, device in zip(names, devices, strict=True):
            _make_node(holder, name, device, root)
        parts = stage.parts_of(holder, names)
    except OSError as error:
        raise BackendError(f"device nodes: {error.strerror}") from error
    finally:
        os.close(holder)
    opened = zip(devices, parts, strict=True)
    return {device.path: descriptors.take(part) for device, part in opened}


def _make_node(directory: int, path: str, device: OciDevice, root: Root) -> None:
    """Make a node in a file system that nobody else has seen yet."""
    *parents, name = path.split("/")
    here = os.dup(directory)
    try:
        for parent in parents:
            try:
                os.mkdir(parent, 0o755, dir_fd=here)
                os.chown(parent, root.uid, root.gid, dir_fd=here)
            except FileExistsError:
                pass
            below = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = below
        _mknod(here, name, device, root)
    finally:
        os.close(here)


def _mknod(directory: int, name: str, device: OciDevice, root: Root) -> None:
    mode = 0o666 if device.file_mode is None else device.file_mode
    number = os.makedev(device.major, device.minor)
    try:
        os.mknod(name, _KINDS[device.type] | mode, number, dir_fd=directory)
    except FileExistsError:
        os.unlink(name, dir_fd=directory)
        os.mknod(name, _KINDS[device.type] | mode, number, dir_fd=directory)
    os.chmod(name, mode, dir_fd=directory)  # the umask took bits away
    uid, gid = (root.uid, root.gid) if device in DEFAULT_DEVICES else (device.uid, device.gid)
    os.chown(name, uid or 0, gid or 0, dir_fd=directory, follow_symlinks=False)


def open_maps(
    wanted: Mapping[str, IdMaps], users: int, own: IdMaps, others: Mapping[IdMaps, int]
) -> dict[str, int]:
    """Return destination → user namespace: the pod's where the mappings are its own."""
    return {place: users if maps == own else others[maps] for place, maps in wanted.items()}
