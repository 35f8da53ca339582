"""The supervisor's own mount namespace: only what the interpreter lives on, read-only, and a procfs.

Two reasons. A clone with CLONE_NEWNS copies the mount table, so a small one makes containers faster
and keeps them independent of how many mounts the host has. And whatever of us is visible from inside
a container, such as ``/proc/PID/exe`` of an exec that is just joining, leads to a read-only mount and
cannot be opened for writing (E1).
"""

from __future__ import annotations

import os
import stat
import sys

from polypod.supervisor import start
from polypod.supervisor.kernel import mounts, namespace, process


def can_trim() -> bool:
    """Tell whether we may make a mount namespace at all."""
    return os.geteuid() == 0


def enter() -> None:
    """Move this process into a trimmed mount namespace of its own."""
    namespace.unshare(process.CLONE_NEWNS)
    mounts.mount("", "/", "", mounts.MS_REC | mounts.MS_PRIVATE)
    root = _read_only_copy("/")
    extra = [(path, _read_only_copy(path)) for path in _mounts_of_interpreter()]
    procfs = mounts.new_mount("proc", [])
    devices = mounts.new_mount("tmpfs", [("size", "0"), ("nr_inodes", "8"), ("mode", "755")])
    here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    mounts.move_mount(root, here)
    for path, copy in extra:
        _attach(copy, root, path)
    _attach(procfs, root, "/proc")
    _attach(devices, root, "/dev")
    # A null device that no container can reach: what masks files in containers is a copy of it (E4).
    os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3), dir_fd=devices)
    os.chmod("null", 0o666, dir_fd=devices)
    # Devices work on a read-only mount; their modes and owners cannot be changed there.
    mounts.mount_setattr(devices, mounts.MOUNT_ATTR_RDONLY)
    os.fchdir(root)
    mounts.pivot_root(".", ".")
    mounts.umount2(".", mounts.MNT_DETACH)
    os.chdir("/")
    for fd in (root, procfs, devices, here, *(copy for _path, copy in extra)):
        os.close(fd)


def _read_only_copy(path: str) -> int:
    copy = mounts.open_tree(mounts.AT_FDCWD, path, mounts.OPEN_TREE_CLONE)
    mounts.mount_setattr(copy, mounts.MOUNT_ATTR_RDONLY)
    return copy


def _attach(copy: int, root: int, path: str) -> None:
    target = os.open(path.lstrip("/"), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    mounts.move_mount(copy, target)
    os.close(target)


def _mounts_of_interpreter() -> list[str]:
    """The mount points on which our executable, libraries and code lie, outermost first, but for the root."""
    table = set()
    with open("/proc/self/mountinfo") as file:
        for line in file:
            table.add(line.split()[4].encode().decode("unicode_escape"))
    found: set[str] = set()
    for path in _files_of_interpreter():
        # All those above it, too: a mount point may lie on another mount.
        found.update(point for point in _with_parents(path) if point in table)
    return sorted(found, key=len)


def _with_parents(path: str) -> list[str]:
    """Return a path and all above it but the root."""
    found = []
    while path != "/":
        found.append(path)
        path = os.path.dirname(path)
    return found


def _files_of_interpreter() -> set[str]:
    files = {os.path.realpath(sys.executable), start.code_root()}
    files.update(path for path in sys.path if path.startswith("/"))
    with open("/proc/self/maps") as file:
        for line in file:
            _address, _mode, _offset, _device, _inode, *rest = line.split(maxsplit=5)
            if rest and rest[0].startswith("/"):
                files.add(rest[0].strip())
    return {os.path.realpath(path) for path in files}
