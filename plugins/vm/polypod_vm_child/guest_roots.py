"""What containers stand on in a guest: block devices by their serial, overlays over them, bound files.

Spec:
    man fsopen(2), open_tree(2); kernel Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import errno
import os
import time

from polypod.supervisor.kernel import mounts

DISKS = "/run/disks"
CONTAINERS = "/run/containers"
FILES = "/run/pod"
_APPEARS_S = 60.0
_LOOKS_AGAIN_S = 0.005
_ROOT_MODE = 0o755


def device_of(serial: str) -> str | None:
    """Return the path of the block device with a serial; None if it is not there (yet)."""
    for name in os.listdir("/sys/block"):
        try:
            with open(f"/sys/block/{name}/serial") as file:
                if file.read().strip() == serial:
                    return f"/dev/{name}"
        except OSError:
            continue
    return None


def mount_disk(serial: str, fstype: str) -> str:
    """Mount a disk read-only, once, and return where.

    Raises:
        OSError: it does not appear, or holds no such file system.
    """
    place = f"{DISKS}/{serial}"
    if os.path.ismount(place):
        return place
    os.makedirs(place, exist_ok=True)
    deadline = time.monotonic() + _APPEARS_S
    while not _mounted(serial, fstype, place):
        if time.monotonic() > deadline:
            text = f"disk {serial} does not appear in the guest"
            raise FileNotFoundError(errno.ENOENT, text)
        time.sleep(_LOOKS_AGAIN_S)
    return place


def _mounted(serial: str, fstype: str, place: str) -> bool:
    """Try once; a disk that is just being plugged in has a name before it can be opened."""
    device = device_of(serial)
    if device is None:
        return False
    try:
        mounts.mount(device, place, fstype, mounts.MS_RDONLY)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOENT, errno.ENODEV):
            return False
        raise
    return True


def make_root(container: str, lower: str) -> int:
    """Return a detached overlay: a disk below, a tmpfs of the container's own above."""
    place = f"{CONTAINERS}/{container}"
    os.makedirs(place)
    try:
        mounts.mount("polypod", place, "tmpfs", 0, "mode=700")
        facts = os.stat(lower)
        for name in ("upper", "work"):
            os.mkdir(f"{place}/{name}", _ROOT_MODE)
        os.chown(f"{place}/upper", facts.st_uid, facts.st_gid)
        os.chmod(f"{place}/upper", facts.st_mode & 0o7777)
        options: list[tuple[str, str | None]] = [
            ("source", "polypod"),
            ("lowerdir", lower),
            ("upperdir", f"{place}/upper"),
            ("workdir", f"{place}/work"),
        ]
        return mounts.new_mount("overlay", options)
    except BaseException:
        remove_root(container)
        raise


def remove_root(container: str) -> None:
    """Give back what a container has written; one that is gone is fine."""
    place = f"{CONTAINERS}/{container}"
    if os.path.ismount(place):
        mounts.umount2(place, mounts.MNT_DETACH)
    try:
        os.rmdir(place)
    except FileNotFoundError:
        return


def write_files(files: dict[str, str]) -> None:
    """Write the pod's files (hostname, hosts, resolv.conf), and make its shared memory."""
    os.makedirs(FILES, exist_ok=True)
    for name, content in files.items():
        path = f"{FILES}/{os.path.basename(name)}"
        with open(path, "w") as file:
            file.write(content)
        os.chmod(path, 0o644)
    memory = f"{FILES}/shm"
    if not os.path.ismount(memory):
        os.makedirs(memory)
        mounts.mount("shm", memory, "tmpfs", _SHM_FLAGS, "mode=1777,size=65536k")


_SHM_FLAGS = 2 | 4 | 8  # linux/mount.h: MS_NOSUID, MS_NODEV, MS_NOEXEC


def open_bind(path: str, attributes: int) -> int:
    """Return a detached bind mount of a path of the guest with ``MOUNT_ATTR_…`` set."""
    fd = mounts.open_tree(mounts.AT_FDCWD, path, mounts.OPEN_TREE_CLONE)
    try:
        mounts.mount_setattr(fd, attributes, propagation=mounts.MS_PRIVATE)
    except OSError:
        os.close(fd)
        raise
    return fd
