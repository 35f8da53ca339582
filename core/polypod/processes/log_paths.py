"""Opening CRI log files: paths that a client gave, walked beneath a directory without following links.

Spec:
    CVE-2025-0750 and its kind; requirement A7.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from polypod.plugin.errors import BackendError, InvalidArgument, ResourceExhausted

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE})


def open_log(container_id: str, log_path: Path, base: Path) -> int:
    """Open a log file for appending, making it and its directories; may hang with its disk.

    Readable, too: after a crash the logger looks for a torn last line.

    Args:
        container_id: for the error's text.
        log_path: absolute, below ``base``.
        base: the directory that must not be left; itself it may be a link.

    Raises:
        InvalidArgument: the path leaves ``base``, passes a link, or is no regular file.
        ResourceExhausted: no space or no descriptors are left.
        BackendError: the file system refused.
    """
    what = f"container {container_id}: log file {log_path}"
    try:
        parts = log_path.relative_to(base).parts
    except ValueError as error:
        msg = f"{what}: it is not below {base}"
        raise InvalidArgument(msg) from error
    if not parts or any(part in ("", ".", "..") for part in parts):
        msg = f"{what}: it leads out of {base}"
        raise InvalidArgument(msg)
    try:
        return _walk(base, parts, what)
    except OSError as error:
        raise _meaning(error, what) from error


def _walk(base: Path, parts: tuple[str, ...], what: str) -> int:
    base.mkdir(mode=0o755, parents=True, exist_ok=True)
    at = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            inner = _directory(at, part)
            os.close(at)
            at = inner
        return _file(at, parts[-1], what)
    finally:
        os.close(at)


def _directory(at: int, name: str) -> int:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=at)
    except FileNotFoundError:
        try:
            os.mkdir(name, 0o755, dir_fd=at)
        except FileExistsError:
            # Somebody else was faster; if it is not a directory the next line says so.
            return os.open(name, flags, dir_fd=at)
        return os.open(name, flags, dir_fd=at)


def _file(at: int, name: str, what: str) -> int:
    # O_NONBLOCK: a fifo that waits for its other end is no reason to wait, but one to refuse.
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, 0o640, dir_fd=at)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        msg = f"{what}: it exists and is no regular file"
        raise InvalidArgument(msg)
    return fd


def _meaning(error: OSError, what: str) -> Exception:
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ENXIO):
        return InvalidArgument(f"{what}: a link or the wrong kind of file stands in the way")
    if error.errno in _FULL:
        return ResourceExhausted(f"{what}: {error.strerror}")
    return BackendError(f"{what}: {error.strerror}")
