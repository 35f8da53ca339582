"""What `fly` needs of the host: opened trees, and a cgroup by which everything in it can be ended."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import signal as signals
import struct
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from polypod.plugin import BackendError, ExitStatus, Launched, OverlayRootfs, Stdio, Supervisor
from polypod.spec.compile import Streams
from polypod.spec.mount_options import parse_mount_options

# asm-generic/unistd.h, linux/mount.h
_OPEN_TREE, _FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 428, 430, 431, 432, 442
_SET_STRING, _CREATE, _CLOEXEC = 1, 6, 1
_CLONE, _RECURSIVE, _EMPTY_PATH, _AT_FDCWD, _MS_PRIVATE = 1, 0x8000, 0x1000, -100, 1 << 18
_syscall = ctypes.CDLL(None, use_errno=True).syscall


class Opened:
    """The descriptors of one launch; a plan names them by number, as ``fd:0``."""

    def __init__(self) -> None:
        self.fds: list[int] = []
        self._ours: list[int] = []

    def __enter__(self) -> Opened:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for fd in self._ours:
            os.close(fd)

    def lend(self, fd: int) -> str:
        """Add a descriptor that stays somebody else's."""
        self.fds.append(fd)
        return f"fd:{len(self.fds) - 1}"

    def take(self, fd: int) -> str:
        """Add a descriptor that is closed behind the launch."""
        self._ours.append(fd)
        return self.lend(fd)

    def streams(self, stdio: Stdio) -> Streams:
        """Add a process' ends of its streams."""
        given = (stdio.stdin, stdio.stdout, stdio.stderr, stdio.console)
        return Streams(*("" if fd is None else self.lend(fd) for fd in given))

    def tree(self, path: Path, options: tuple[str, ...] = ()) -> str:
        """Add a copy of a tree of mounts that is attached nowhere.

        Args:
            path: of the host.
            options: a mount's, ``ro`` and ``rslave`` among them; without any nothing propagates.
        """
        flags = _CLONE | _RECURSIVE | os.O_CLOEXEC
        fd = _called(_syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags), str(path))
        source, wanted = self.take(fd), parse_mount_options(options, str(path))
        deep = (wanted.recursive_set, wanted.recursive_clear, wanted.propagation or _MS_PRIVATE)
        for how, numbers in ((_RECURSIVE, deep), (0, (wanted.set_, wanted.clear, 0))):
            text = struct.pack("=QQQQ", *numbers, 0)
            call = (_MOUNT_SETATTR, fd, b"", how | _EMPTY_PATH, text, ctypes.c_size_t(len(text)))
            _called(_syscall(*call), str(path))
        return source

    def _opened(self, path: Path) -> int:
        self._ours.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
        return self._ours[-1]

    def overlay(self, rootfs: OverlayRootfs) -> str:
        """Add a mount of layers that is attached nowhere."""
        context = _called(_syscall(_FSOPEN, b"overlay", _CLOEXEC), "overlay")
        self._ours.append(context)
        pairs = [("upperdir", str(rootfs.upper)), ("workdir", str(rootfs.work))]
        pairs += [
            (key, value) for key, _, value in (each.partition("=") for each in rootfs.options)
        ]
        links = [f"/proc/self/fd/{fd}" for fd in map(self._opened, rootfs.lowers)]
        try:
            for path in rootfs.lowers:
                _set(context, "lowerdir+", str(path))
        except BackendError:  # before Linux 6.7 all of them are one word, of at most 256 bytes
            _set(context, "lowerdir", ":".join(links))
        for key, value in pairs:
            _set(context, key, value)
        _called(_syscall(_FSCONFIG, context, _CREATE, None, None, 0), "overlay")
        return self.take(_called(_syscall(_FSMOUNT, context, _CLOEXEC, 0), "overlay"))


def _called(result: int, what: str) -> int:
    if result < 0:
        raise BackendError(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _set(context: int, key: str, value: str) -> None:
    # A flag such as `volatile` has no value.
    kind, text = (_SET_STRING, os.fsencode(value)) if value else (0, None)
    _called(_syscall(_FSCONFIG, context, kind, key.encode(), text, 0), f"{key}={value}")


class Group:
    """A cgroup without limits, in one hierarchy: it only knows who belongs to it."""

    def __init__(self, path: str) -> None:
        pids = Path("/sys/fs/cgroup/pids")
        self._path = (pids if pids.is_dir() else Path("/sys/fs/cgroup")) / path.strip("/")

    def child(self, name: str) -> Group:
        """Return one below it."""
        made = Group("")
        made._path = self._path / name[:16]
        return made

    def open(self) -> int:
        """Make it, and open the file by which a process joins it."""
        self._path.mkdir(parents=True, exist_ok=True)
        return os.open(self._path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)

    def kill(self, signal: int) -> None:
        """Signal everybody in it, until there is nobody who was not."""
        seen: set[int] = set()
        while fresh := self._pids() - seen:
            seen |= fresh
            for pid in fresh:
                try:
                    os.kill(pid, signal)
                except ProcessLookupError:
                    continue

    def _pids(self) -> set[int]:
        found = [self._path / "cgroup.procs", *self._path.glob("*/cgroup.procs")]
        return {int(pid) for file in found if file.exists() for pid in file.read_text().split()}

    def remove(self) -> None:
        """End everybody in it and remove it; a missing one is fine."""
        self.kill(signals.SIGKILL)
        for _ in range(100):
            self.discard()
            if not self._path.exists():
                return
            time.sleep(0.005)  # a dead process leaves it a moment after it was reaped

    def discard(self) -> None:
        """Remove it, and those below it, unless somebody is in there."""
        for directory in (*self._path.glob("*/"), self._path):
            with contextlib.suppress(OSError):
                directory.rmdir()

    @contextlib.contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Leave nothing of a launch that fails."""
        try:
            yield
        except BaseException:
            self.remove()
            raise


class FlySession:
    """Implements `Session`."""

    def __init__(self, supervisor: Supervisor, launched: Launched, group: Group) -> None:
        os.close(launched.pidfd)
        self._supervisor, self._group = supervisor, group
        self._id, self._pid = launched.process_id, launched.pid
        self._end: asyncio.Task[ExitStatus] = asyncio.ensure_future(self._ended())

    async def _ended(self) -> ExitStatus:
        status = await self._supervisor.wait(self._id)
        await self._supervisor.forget(self._id)
        self._group.discard()  # unless something in the background keeps it
        return status

    async def wait(self) -> ExitStatus:
        """See `Session.wait`."""
        return await asyncio.shield(self._end)

    async def kill(self, signal: int, /) -> None:
        """See `Session.kill`."""
        self._group.kill(signal)

    async def resize(self, *, width: int, height: int) -> None:
        """See `Session.resize`."""
        terminal = os.open(f"/proc/{self._pid}/fd/0", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        finally:
            os.close(terminal)
