"""What the steps of one launch share."""

from __future__ import annotations

import os
import stat

from polypod.supervisor.kernel import mounts


class Context:
    """Descriptors of the launch, and the root beneath which every path is resolved.

    ``root`` is a descriptor of the new root (E5: nothing is opened by a plain path); ``proc`` one of
    a procfs that no container can have touched (E3); ``null`` one of a checked ``/dev/null`` (E4).
    """

    __slots__ = ("fds", "null", "proc", "root")

    def __init__(self, fds: list[int], *, proc: int, null: int) -> None:
        self.fds = fds
        self.proc = proc
        self.null = null
        self.root = -1

    def source(self, name: str) -> int:
        """Return the descriptor that a source names."""
        kind, _, number = name.partition(":")
        if kind != "fd":
            text = f"source {name!r}: only fd:N exists on a host"
            raise ValueError(text)
        return self.fds[int(number)]

    def open_beneath(self, path: str, flags: int = os.O_PATH, mode: int = 0) -> int:
        """Open a path as the container would see it; links cannot lead out of the root."""
        resolve = mounts.RESOLVE_IN_ROOT | mounts.RESOLVE_NO_MAGICLINKS
        return mounts.openat2(self.root, path, flags, mode, resolve)

    def make_directory(self, path: str, mode: int = 0o755) -> int:
        """Open a directory, making it and its parents; returns an O_PATH descriptor.

        A component that is a link is followed inside the root; a dangling one is an error.
        """
        at = os.dup(self.root)
        walked = ""
        for part in [part for part in path.split("/") if part]:
            walked += f"/{part}"
            try:
                inner = self.open_beneath(walked, os.O_PATH | os.O_DIRECTORY)
            except FileNotFoundError:
                try:
                    os.mkdir(part, mode, dir_fd=at)
                except FileExistsError:
                    # A dangling link: making what it points to would be the image's choice, not ours.
                    os.close(at)
                    raise
                inner = mounts.openat2(at, part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
            os.close(at)
            at = inner
        return at

    def make_file(self, path: str) -> int:
        """Open a file for use as a mount target, making it empty; returns an O_PATH descriptor."""
        try:
            return self.open_beneath(path, os.O_PATH)
        except FileNotFoundError:
            parent, _, name = path.rstrip("/").rpartition("/")
            directory = self.make_directory(parent)
            try:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(name, flags, 0o644, dir_fd=directory))
                return mounts.openat2(directory, name, os.O_PATH | os.O_NOFOLLOW)
            finally:
                os.close(directory)

    def parent_of(self, path: str) -> tuple[int, str]:
        """Return (descriptor of the parent directory, made if missing; last component)."""
        parent, _, name = path.rstrip("/").rpartition("/")
        return self.make_directory(parent), name


def is_directory(fd: int) -> bool:
    """Tell whether a descriptor is of a directory."""
    return stat.S_ISDIR(os.fstat(fd).st_mode)
