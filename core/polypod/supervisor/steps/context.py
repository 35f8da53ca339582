"""What the steps of one launch share."""

from __future__ import annotations

import errno
import os
import stat

from polypod.supervisor.kernel import files
from polypod.supervisor.steps.walk import Walker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from polypod.supervisor.steps.process import Program

_TRIES = 32


class Context:
    """Descriptors of the launch, and the root beneath which every path is resolved.

    ``root`` is a descriptor of the new root (E5: nothing is opened by a plain path); ``proc`` one of
    a procfs that no container can have touched (E3); ``null`` one of a ``/dev/null`` that is ours (E4).
    ``keep`` are the pipes to the supervisor: they stay open until execve. ``program`` is what will be
    executed, prepared. ``birth`` is a socket to the supervisor if another process goes on midway.
    ``environment`` is that of the program, as (file, where it begins), if it is not in the plan. ``granted``
    are the capabilities that the program shall have (effective, permitted, inheritable). With
    ``is_born_last`` the process that goes on leads the session, and takes its terminal if it ``has_terminal``.
    """

    __slots__ = (
        *(
            "birth",
            "environment",
            "fds",
            "granted",
            "has_terminal",
            "is_born_last",
            "keep",
            "null",
            "proc",
        ),
        *("proc_devices", "program", "root"),
    )

    def __init__(
        self, fds: list[int], program: Program, *, proc: int, null: int, keep: tuple[int, ...] = ()
    ) -> None:
        self.fds = fds
        self.proc = proc
        self.null = null
        self.keep = keep
        self.program = program
        self.birth = -1
        self.environment = (-1, -1)
        self.granted = (0, 0, 0)
        self.has_terminal = False
        self.is_born_last = False
        self.root = -1
        self.proc_devices: set[int] = set()
        """st_dev of procfs instances in the container: nothing else is attached there unasked (E3)."""

    def source(self, name: str) -> int:
        """Return the descriptor that a source names."""
        kind, _, number = name.partition(":")
        if kind != "fd":
            text = f"source {name!r}: only fd:N exists on a host"
            raise OSError(errno.EINVAL, text)
        try:
            return self.fds[int(number)]
        except (ValueError, IndexError):
            text = f"source {name!r}: {len(self.fds)} descriptors came with the launch"
            raise OSError(errno.EBADF, text) from None

    def open_beneath(self, path: str, flags: int = os.O_PATH) -> int:
        """Open a path as the container would see it; links cannot lead out of the root."""
        resolve = files.RESOLVE_IN_ROOT | files.RESOLVE_NO_MAGICLINKS
        for _ in range(_TRIES):
            try:
                return files.openat2(self.root, path, flags, 0, resolve)
            except BlockingIOError:
                # Somebody renames directories below us at this moment: openat2(2), EAGAIN.
                continue
        raise OSError(errno.EAGAIN, f"open {path}: it is renamed all the time")

    def make_directory(self, path: str, mode: int = 0o755) -> int:
        """Open a directory, making it and its parents; returns an O_PATH descriptor.

        Links are followed inside the root, also those that point to what is missing: that is made.
        """
        try:
            return self.open_beneath(path, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            with Walker(self.root) as walker:
                return walker.make_directory(path, mode)

    def make_file(self, path: str) -> int:
        """Open a file for use as a mount target, making it empty; returns an O_PATH descriptor."""
        try:
            return self.open_beneath(path)
        except FileNotFoundError:
            with Walker(self.root) as walker:
                return walker.make_file(path)

    def parent_of(self, path: str) -> tuple[int, str]:
        """Return (descriptor of the parent directory, made if missing; last component)."""
        parent, _, name = path.rstrip("/").rpartition("/")
        if name in ("", ".", ".."):
            raise OSError(errno.EINVAL, f"{path}: names no file")
        return self.make_directory(parent or "/"), name

    def close_others(self) -> None:
        """Close everything but the standard streams and the ways to the supervisor (E2)."""
        files.close_all_but([0, 1, 2, self.birth, *self.keep])
        self.root = self.proc = self.null = -1
        self.fds = []


def is_directory(fd: int) -> bool:
    """Tell whether a descriptor is of a directory."""
    return stat.S_ISDIR(os.fstat(fd).st_mode)
