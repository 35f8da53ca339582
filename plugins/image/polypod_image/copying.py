"""The form ``directory``: a copy of what the layers of an image show together."""

from __future__ import annotations

import os
import stat
from typing import Final

from polypod_image.merged import MergedView, Node, kept_xattrs
from polypod_image.meter import Meter

_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE: Final = 1 << 24


def copy_merged(view: MergedView, target: int, meter: Meter) -> None:
    """Copy a merged tree into an empty directory. Blocks.

    Names are made with one component below an open directory, so no link is ever followed. Directories
    wait in a list of paths and not on the stack: a deep tree costs nothing.

    Raises:
        ResourceExhausted: too little space.
    """
    linked: dict[tuple[int, int], bytes] = {}
    todo: list[tuple[bytes, Node]] = [(b"", view.root)]
    stamps: list[tuple[bytes, Node]] = []
    while todo:
        path, node = todo.pop()
        stamps.append((path, node))
        here = _descend(target, path)
        try:
            for name in view.names(node):
                child = view.child(node, name)
                if child is None:
                    continue
                meter.inode()
                inner = path + b"/" + name if path else name
                if child.is_directory:
                    os.mkdir(name, 0o700, dir_fd=here)
                    todo.append((inner, child))
                else:
                    _copy(child, here, name, (target, inner), linked, meter)
        finally:
            os.close(here)
    for path, node in reversed(stamps):
        _describe(target, path, node)


def _copy(
    node: Node,
    here: int,
    name: bytes,
    where: tuple[int, bytes],
    linked: dict[tuple[int, int], bytes],
    meter: Meter,
) -> None:
    status, place = node.status, node.places[0]
    key = (status.st_dev, status.st_ino)
    if status.st_nlink > 1:
        if key in linked:
            first, _, last = linked[key].rpartition(b"/")
            directory = _descend(where[0], first)
            try:
                os.link(last, name, src_dir_fd=directory, dst_dir_fd=here, follow_symlinks=False)
            finally:
                os.close(directory)
            return
        linked[key] = where[1]
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
            left = node.status.st_size
            while left:
                done = os.sendfile(made, source, None, min(left, _PIECE))
                if done == 0:
                    break
                meter.passed(done)
                left -= done
            _own(made, node)
        finally:
            os.close(made)
    finally:
        os.close(source)


def _describe(target: int, path: bytes, node: Node) -> None:
    directory = _descend(target, path)
    try:
        _own(directory, node)
    finally:
        os.close(directory)


def _own(descriptor: int, node: Node) -> None:
    status = node.status
    os.fchown(descriptor, status.st_uid, status.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
    for key, value in kept_xattrs(node.places[0]).items():
        os.setxattr(descriptor, key, value)
    os.utime(descriptor, ns=(status.st_mtime_ns, status.st_mtime_ns))


def _descend(root: int, path: bytes) -> int:
    here = os.dup(root)
    for part in filter(None, path.split(b"/")):
        try:
            inner = os.open(part, _OPEN_DIRECTORY, dir_fd=here)
        finally:
            os.close(here)
        here = inner
    return here
