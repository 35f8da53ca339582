"""The cgroups that a runtime made: who is in them, who was killed for memory, what is left to remove.

The runtime makes and limits them (``linux.cgroupsPath``); here are only an exec's own child, counters,
and an end for whatever outlives the runtime's ``delete``.

Spec:
    Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst.
"""

from __future__ import annotations

import errno
import os
import signal as signals
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from polypod.plugin import BackendError

_V1: Final = ("pids", "memory", "freezer", "devices", "cpu", "cpuacct", "cpuset", "blkio")
_KUBELET_MANAGES: Final = ("cpu", "cpuacct", "cpuset", "memory", "pids", "hugetlb", "name=systemd")
_REMOVE_TRIES: Final = 100


class Cgroups:
    """All hierarchies of this host. Paths are relative to each one's root, such as ``/polypod/x``."""

    def __init__(self, mountinfo: str | None = None) -> None:
        text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
        self._controllers: dict[str, Path] = {}
        self._mounts: list[Path] = []
        unified: Path | None = None
        for line in text.splitlines():
            left, _, right = line.partition(" - ")
            mount, fstype = Path(left.split()[4]), right.split()[0]
            if fstype == "cgroup2":
                unified = unified or mount
            elif fstype == "cgroup":
                self._mounts.append(mount)
                for name in right.split()[-1].split(","):
                    self._controllers.setdefault(name, mount)
        self.version = 1 if self._controllers else 2
        if unified is not None:
            # On a hybrid host some runtimes use both.
            self._mounts.append(unified)
        if not self._mounts:
            raise BackendError("no cgroup file system is mounted: see polypod doctor")

    @property
    def tracking(self) -> Path:
        """The one hierarchy in which processes are looked for."""
        found = (self._controllers[name] for name in _V1 if name in self._controllers)
        return next(found, self._mounts[0])

    def controller(self, name: str) -> Path | None:
        """Return where a controller is mounted; None if this host does not have it."""
        return self._mounts[0] if self.version == 2 else self._controllers.get(name)

    def file(self, controller: str, path: str, name: str) -> Path | None:
        """Return a controller's file of a cgroup."""
        mount = self.controller(controller)
        return None if mount is None else mount / path.strip("/") / name

    def make(self, path: str) -> None:
        """Make a cgroup, and what is missing above it, in every hierarchy."""
        for mount in dict.fromkeys(self._mounts):
            self._make(mount, mount / path.strip("/"))

    def _make(self, mount: Path, directory: Path) -> None:
        if directory.is_dir():
            return
        if directory.parent != mount:
            self._make(mount, directory.parent)
        directory.mkdir(exist_ok=True)
        _inherit_cpuset(directory)
        if self.version == 2:
            _delegate(directory.parent)

    def make_child(self, path: str) -> None:
        """Make a cgroup wherever the runtime has made its parent."""
        for mount in dict.fromkeys(self._mounts):
            directory = mount / path.strip("/")
            if directory.parent.is_dir():
                directory.mkdir(exist_ok=True)
                _inherit_cpuset(directory)

    def processes(self, path: str) -> list[int]:
        """Return the pids in a cgroup and below it."""
        found: list[int] = []
        for directory in _walk(self.tracking / path.strip("/")):
            try:
                found += map(int, (directory / "cgroup.procs").read_text().split())
            except OSError as error:
                # One that is removed at this moment has no such file, or no such device.
                if error.errno not in (errno.ENOENT, errno.ENODEV):
                    raise
        return found

    def kill(self, path: str, signal: int) -> None:
        """Signal every process of a cgroup, until none is left that was not signalled."""
        seen: set[int] = set()
        while fresh := [pid for pid in self.processes(path) if pid not in seen]:
            for pid in fresh:
                seen.add(pid)
                try:
                    os.kill(pid, signal)
                except ProcessLookupError:
                    continue

    def remove(self, path: str) -> None:
        """End everything in a cgroup and remove it everywhere; a missing one is fine.

        Raises:
            BackendError: something in it cannot be ended.
        """
        self.kill(path, signals.SIGKILL)
        for mount in dict.fromkeys(self._mounts):
            for directory in reversed(list(_walk(mount / path.strip("/")))):
                _rmdir(directory)

    def remove_if_empty(self, path: str) -> None:
        """Remove a cgroup in which nothing is any more."""
        for mount in dict.fromkeys(self._mounts):
            try:
                os.rmdir(mount / path.strip("/"))
            except OSError:
                continue

    def remove_empty_parents(self, path: str, keep: str) -> None:
        """Remove the empty cgroups above a removed one, where no kubelet does that.

        A kubelet makes and removes its pods' parents in the hierarchies that it manages; in the others
        they are ours. Our own parent, ``keep``, stays.
        """
        parent = Path(path.strip("/")).parent
        ours = Path(keep.strip("/"))
        if self.version == 2 or ours == parent or ours in parent.parents:
            return
        managed = {self._controllers.get(name) for name in _KUBELET_MANAGES}
        for mount in dict.fromkeys(self._mounts):
            if mount not in managed:
                _remove_upwards(mount, mount / parent)

    def oom_kills(self, path: str) -> int:
        """Return how often the kernel has killed for memory in a cgroup and below it."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        mount = self.controller("memory")
        if mount is None:
            return 0
        # v2 counts a child's in its parents, too.
        directories = list(_walk(mount / path.strip("/")))[: None if self.version == 1 else 1]
        return sum(table(each / name).get("oom_kill", 0) for each in directories)


def _walk(directory: Path) -> Iterator[Path]:
    """The cgroup and all below it, outermost first; a missing one yields nothing."""
    try:
        with os.scandir(directory) as entries:
            inner = [Path(item.path) for item in entries if item.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    yield directory
    for item in inner:
        yield from _walk(item)


def _inherit_cpuset(directory: Path) -> None:
    """A v1 cpuset begins without processors, and nothing can join it then."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        source = directory.parent / name
        if source.exists() and (text := source.read_text().strip()):
            (directory / name).write_text(text)


def _delegate(parent: Path) -> None:
    """Give children the controllers that the parent has; one that cannot be given is left out."""
    for name in (parent / "cgroup.controllers").read_text().split():
        try:
            (parent / "cgroup.subtree_control").write_text(f"+{name}")
        except OSError:
            continue


def _remove_upwards(mount: Path, directory: Path) -> None:
    while directory != mount:
        try:
            directory.rmdir()
        except OSError:
            return
        directory = directory.parent


def _rmdir(directory: Path) -> None:
    for _ in range(_REMOVE_TRIES):
        try:
            directory.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise BackendError(f"cgroup {directory}: {error.strerror}") from error
            # A dead process leaves its cgroup a moment after it was reaped.
            time.sleep(0.005)
        else:
            return
    raise BackendError(f"cgroup {directory}: processes are still in it")


def table(file: Path) -> Mapping[str, int]:
    """Read a file of ``name number`` lines; one that is not there has none."""
    try:
        pairs = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def number(file: Path | None) -> int | None:
    """Read a file with one number; None if there is none."""
    try:
        text = file.read_text().strip() if file is not None else ""
    except OSError:
        return None
    return int(text) if text.isdigit() else None
