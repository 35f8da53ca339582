"""Making what is missing on a path beneath the root, one component at a time.

openat2 with RESOLVE_IN_ROOT resolves, but cannot make directories on its way. Here every step opens
one component below a descriptor that we hold, never following a link: a link's text is read and
walked inside the root. ``..`` goes back to the descriptor that we came from, so that renaming a
directory meanwhile leads nowhere else (E5).
"""

from __future__ import annotations

import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

_LINKS_MAX = 40


class Walker:
    """One walk; holds the descriptors from the root down to where it is."""

    __slots__ = ("_links", "_stack", "_todo")

    def __init__(self, root: int) -> None:
        self._stack = [os.dup(root)]
        self._todo: list[str] = []
        self._links = 0

    def __enter__(self) -> Walker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for fd in self._stack:
            os.close(fd)

    def make_directory(self, path: str, mode: int) -> int:
        """Walk to a directory, making what is missing; the descriptor is the caller's."""
        self._push(path)
        while self._todo:
            self._descend(self._todo.pop(), mode)
        return os.dup(self._stack[-1])

    def make_file(self, path: str) -> int:
        """Walk to a file, making its directories and an empty file; the descriptor is the caller's."""
        self._push(path)
        while True:
            name = self._todo.pop()
            if self._todo or name == "..":
                self._descend(name, 0o755)
                continue
            found = self._open(name)
            if found is None:
                return self._new_file(name)
            if not self._follow(found):
                return found

    def _push(self, path: str) -> None:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        self._todo += reversed(parts)

    def _descend(self, name: str, mode: int) -> None:
        if name == "..":
            if len(self._stack) > 1:
                os.close(self._stack.pop())
            return
        found = self._open(name)
        if found is None:
            self._make_one(name, mode)
            found = self._open(name)
            if found is None:
                raise FileNotFoundError(errno.ENOENT, f"{name}: was removed while it was made")
        if self._follow(found):
            return
        if not stat.S_ISDIR(os.fstat(found).st_mode):
            os.close(found)
            raise NotADirectoryError(errno.ENOTDIR, f"{name}: not a directory")
        self._stack.append(found)

    def _make_one(self, name: str, mode: int) -> None:
        try:
            os.mkdir(name, mode, dir_fd=self._stack[-1])
        except FileExistsError:
            # Somebody was faster; what it is shows when it is opened.
            return

    def _open(self, name: str) -> int | None:
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(name, flags, dir_fd=self._stack[-1])
        except FileNotFoundError:
            return None

    def _follow(self, fd: int) -> bool:
        """If it is a link, close it and walk its text inside the root."""
        if not stat.S_ISLNK(os.fstat(fd).st_mode):
            return False
        text = os.readlink("", dir_fd=fd)
        os.close(fd)
        self._links += 1
        if self._links > _LINKS_MAX:
            raise OSError(errno.ELOOP, f"{text}: too many links")
        if text.startswith("/"):
            while len(self._stack) > 1:
                os.close(self._stack.pop())
        self._push(text)
        return True

    def _new_file(self, name: str) -> int:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        made = os.open(name, flags, 0o644, dir_fd=self._stack[-1])
        try:
            seen = os.fstat(made)
        finally:
            os.close(made)
        found = self._open(name)
        if found is None or not os.path.samestat(seen, os.fstat(found)):
            if found is not None:
                os.close(found)
            raise OSError(errno.EAGAIN, f"{name}: was replaced while it was made")
        return found
