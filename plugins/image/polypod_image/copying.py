"""The form ``directory``: a copy of what the layers of an image show together."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

from polypod_image.directories import Directory, OpenDirectories, duplicate, join
from polypod_image.merged import MergedView, Node, kept_xattrs
from polypod_image.meter import Meter

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE: Final = 1 << 24


def copy_merged(view: MergedView, target: int, meter: Meter) -> None:
    """Copy a merged tree into an empty directory. Blocks.

    Names are made with one component below an open directory, so no link is ever followed. Directories
    wait in a list of paths and not on the stack: a deep tree costs nothing.

    Raises:
        ResourceExhausted: too little space.
    """
    directories = OpenDirectories(target)
    linked: dict[tuple[int, int], bytes] = {}
    todo: list[tuple[bytes, Node]] = [(b"", view.root)]
    stamps: list[tuple[bytes, Node]] = []
    try:
        while todo:
            path, node = todo.pop()
            stamps.append((path, node))
            for name in view.names(node):
                child = view.child(node, name)
                if child is None:
                    continue
                meter.inode()
                here = directories.get(path)
                if child.is_directory:
                    os.mkdir(name, 0o700, dir_fd=here.descriptor)
                    todo.append((join(path, name), child))
                elif not _link(directories, child, here, name, linked):
                    _copy(child, here.descriptor, name, meter)
        for path, node in reversed(stamps):
            _own(directories.get(path).descriptor, node)
    finally:
        directories.close()


def _link(
    directories: OpenDirectories,
    node: Node,
    here: Directory,
    name: bytes,
    linked: dict[tuple[int, int], bytes],
) -> bool:
    """Make a further name of what was copied before; False if this is its first."""
    key = (node.status.st_dev, node.status.st_ino)
    if node.status.st_nlink == 1:
        return False
    if key not in linked:
        linked[key] = join(here.path, name)
        return False
    first, _, last = linked[key].rpartition(b"/")
    held = duplicate(here)
    try:
        source = directories.get(first).descriptor
        where = {"src_dir_fd": source, "dst_dir_fd": held.descriptor}
        os.link(last, name, **where, follow_symlinks=False)
    finally:
        os.close(held.descriptor)
    return True


def _copy(node: Node, here: int, name: bytes, meter: Meter) -> None:
    status, place = node.status, node.places[0]
    if stat.S_ISREG(status.st_mode):
        _copy_file(node, here, name, meter)
        return
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(place), name, dir_fd=here)  # noqa: PTH115 - bytes
    else:
        os.mknod(name, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev, dir_fd=here)
    os.chown(name, status.st_uid, status.st_gid, dir_fd=here, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=here)
    stamp = (status.st_mtime_ns, status.st_mtime_ns)
    os.utime(name, ns=stamp, dir_fd=here, follow_symlinks=False)


def _copy_file(node: Node, here: int, name: bytes, meter: Meter) -> None:
    source = os.open(node.places[0], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        made = os.open(name, _CREATE, 0o600, dir_fd=here)
        try:
            os.ftruncate(made, node.status.st_size)
            for offset, length in _extents(source, node.status.st_size):
                os.lseek(source, offset, os.SEEK_SET)
                os.lseek(made, offset, os.SEEK_SET)
                _send(source, made, length, meter)
            _own(made, node)
        finally:
            os.close(made)
    finally:
        os.close(source)


def _extents(source: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield offset and length of what a file has beside holes."""
    at = 0
    while at < size:
        try:
            begin = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        at = min(os.lseek(source, begin, os.SEEK_HOLE), size)
        yield begin, at - begin


def _send(source: int, target: int, left: int, meter: Meter) -> None:
    while left:
        done = os.sendfile(target, source, None, min(left, _PIECE))
        if done == 0:
            return
        meter.passed(done)
        left -= done


def _own(descriptor: int, node: Node) -> None:
    status = node.status
    os.fchown(descriptor, status.st_uid, status.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
    for key, value in kept_xattrs(node.places[0]).items():
        os.setxattr(descriptor, key, value)
    os.utime(descriptor, ns=(status.st_mtime_ns, status.st_mtime_ns))
