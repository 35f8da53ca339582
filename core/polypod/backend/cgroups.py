"""cgroups: made, limited, joined, read, ended and removed, below a parent of our own.

Which values go into which files is decided by ``polypod.spec.cgroup`` (pure); this module only does
what it says, on cgroup v1 with a mount per controller, on hybrid hosts, and on v2. Its methods take paths
relative to each hierarchy's root, such as ``/polypod/x``; they block, for microseconds where nothing is amiss.

Spec:
    Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal as signals
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from polypod.plugin.errors import BackendError, InvalidArgument

_ROOT = Path("/sys/fs/cgroup")
_CGROUP2_MAGIC = "cgroup2"
_REMOVE_TRIES = 50
INNER = "inside"
"""The name of what `Cgroups.join_inner` makes."""
_READ_BYTES = 1 << 16
_NO_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True)
class Hierarchies:
    """Where the controllers are mounted on this host."""

    version: int
    controllers: Mapping[str, Path]
    """v1: controller → mount. v2: every controller → the one mount."""
    mounts: tuple[Path, ...]
    """Each hierarchy once, in the order in which a process joins them."""
    unified: Path | None = None
    """Where cgroup v2 is mounted, on hybrid hosts too."""

    @property
    def tracking(self) -> Path:
        """The one hierarchy in which processes are looked for."""
        return self.controllers.get("pids") or self.controllers.get("memory") or self.mounts[0]

    def with_unified(self) -> Hierarchies:
        """Return these and, on a hybrid host, the unified one: some programs use both."""
        return replace(
            self, mounts=tuple(dict.fromkeys((*self.mounts, self.unified or self.mounts[0])))
        )

    def only_tracking(self) -> Hierarchies:
        """Return the one hierarchy that it takes to know who belongs to a cgroup."""
        found = {name: mount for name, mount in self.controllers.items() if mount == self.tracking}
        return replace(self, controllers=found, mounts=(self.tracking,))


def discover(mountinfo: str | None = None) -> Hierarchies:
    """Read what this host has.

    Args:
        mountinfo: the text of ``/proc/self/mountinfo``, for tests.

    Raises:
        BackendError: no cgroup file system is mounted.
    """
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    first: dict[str, Path] = {}
    unified: Path | None = None
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        mount = Path(left.split()[4])
        fstype, _source, options = (*right.split(maxsplit=2), "", "")[:3]
        if fstype == "cgroup2":
            unified = unified or mount
        elif fstype == "cgroup":
            for name in _controllers_of(options):
                first.setdefault(name, mount)
    if first:
        return Hierarchies(1, first, tuple(dict.fromkeys(first.values())), unified)
    if unified is None:
        msg = "no cgroup file system is mounted below /sys/fs/cgroup: mount one, see polypod doctor"
        raise BackendError(msg)
    names = _read_or_empty(f"{unified}/cgroup.controllers").split()
    return Hierarchies(2, dict.fromkeys(names, unified), (unified,), unified)


_KUBELET_MANAGES = ("cpu", "cpuacct", "cpuset", "memory", "pids", "hugetlb", "name=systemd")
_V1_CONTROLLERS = frozenset(
    [
        "cpu",
        "cpuacct",
        "cpuset",
        "memory",
        "pids",
        "devices",
        "freezer",
        "blkio",
        "hugetlb",
        "net_cls",
        "net_prio",
        "perf_event",
        "rdma",
    ]
)


def _controllers_of(options: str) -> list[str]:
    names = [item for item in options.split(",") if item in _V1_CONTROLLERS]
    # A named hierarchy (systemd's) is joined too, so that its owner finds the processes.
    return names + [item for item in options.split(",") if item.startswith("name=")]


class Cgroups:
    """The cgroups of one backend, in the hierarchies that it was given."""

    def __init__(self, hierarchies: Hierarchies) -> None:
        self.hierarchies = hierarchies
        self.version = hierarchies.version
        self.tracking = hierarchies.tracking

    def create(self, path: str) -> list[str]:
        """Make a cgroup in every hierarchy; return the directories that had to be made, outermost first."""
        relative = _checked_path(path)
        made: list[str] = []
        try:
            for mount in self.hierarchies.mounts:
                made += self._make(mount, relative)
        except OSError as error:
            _remove_all(reversed(made))
            msg = f"cgroup {path}: {error}"
            raise BackendError(msg) from error
        return made

    def create_child(self, path: str) -> None:
        """Make a cgroup wherever somebody else has made its parent.

        Raises:
            BackendError: the kernel refused.
        """
        relative = _checked_path(path)
        try:
            for mount in self.hierarchies.mounts:
                if os.path.isdir(os.path.dirname(f"{mount}/{relative}")):
                    self._make(mount, relative)
        except OSError as error:
            msg = f"cgroup {path}: {error}"
            raise BackendError(msg) from error

    def apply(self, path: str, files: Mapping[str, Sequence[tuple[str, str]]]) -> None:
        """Write limits, in the order given.

        Args:
            path: the cgroup.
            files: controller → (file, text); on v2 all under ``""``.

        Raises:
            BackendError: the kernel refused a value, or the controller is missing (E23: a limit that
                cannot be set fails the call).
        """
        relative = _checked_path(path)
        for controller, writes in files.items():
            mount = self._mount_of(controller, writes)
            for name, texts in groupby(writes, itemgetter(0)):
                _write(f"{mount}/{relative}/{name}", [text for _name, text in texts], path)

    def join_descriptors(self, path: str) -> list[int]:
        """Open the files into which a process writes "0" to join; the caller closes them.

        v1: ``tasks``, because ``cgroup.procs`` waits for every other thread group of the host.
        """
        relative = _checked_path(path)
        name = "tasks" if self.version == 1 else "cgroup.procs"
        opened: list[int] = []
        try:
            opened.extend(
                os.open(f"{mount}/{relative}/{name}", os.O_WRONLY | os.O_CLOEXEC)
                for mount in self.hierarchies.mounts
            )
        except OSError as error:
            for descriptor in opened:
                os.close(descriptor)
            msg = f"cgroup {path}: {error}"
            raise BackendError(msg) from error
        return opened

    def join_inner(self, path: str) -> list[int]:
        """Make a cgroup below another one, and open the files to join that: its own limits are out of reach there.

        Who may mount (CAP_SYS_ADMIN) can make its view of the cgroups writable, and that view begins with
        the cgroup that it is in: devices could be allowed, limits lifted. What holds for the one above
        holds for the inner one, too. Not in the cpuset hierarchy of v1, where it would be in the way of
        changes: a cpuset must have all that those below it have.

        Raises:
            BackendError: the kernel refused.
        """
        inner = f"{path}/{INNER}"
        opened: list[int] = []
        try:
            for mount in self.hierarchies.mounts:
                alone = self.version == 1 and mount == self.hierarchies.controllers.get("cpuset")
                if not alone:
                    (mount / _checked_path(inner)).mkdir(0o755, exist_ok=True)
                opened.append(self._open_joint(mount, path if alone else inner))
        except OSError as error:
            for descriptor in opened:
                os.close(descriptor)
            msg = f"cgroup {inner}: {error}"
            raise BackendError(msg) from error
        return opened

    def _open_joint(self, mount: Path, path: str) -> int:
        name = "tasks" if self.version == 1 else "cgroup.procs"
        return os.open(f"{mount}/{_checked_path(path)}/{name}", os.O_WRONLY | os.O_CLOEXEC)

    def join_child(self, path: str, child: str) -> list[int]:
        """Make a cgroup below another one for processes that are to be killed apart, and open the files to join.

        v1: it exists in one hierarchy; in the others the processes are in the parent itself, whose
        limits are theirs. v2: the parent gives its child no controllers, so the child may hold
        processes beside the parent's.
        """
        relative, below = _checked_path(path), _checked_path(child)
        chosen = self.tracking
        name = "tasks" if self.version == 1 else "cgroup.procs"
        opened: list[int] = []
        try:
            os.mkdir(f"{chosen}/{below}", 0o755)
            for mount in self.hierarchies.mounts:
                directory = below if mount == chosen else relative
                opened.append(os.open(f"{mount}/{directory}/{name}", os.O_WRONLY | os.O_CLOEXEC))
        except OSError as error:
            for descriptor in opened:
                os.close(descriptor)
            self.remove_quietly(child)
            msg = f"cgroup {child}: {error.strerror}"
            raise BackendError(msg) from error
        return opened

    def read(
        self, path: str, files: Mapping[str, Sequence[tuple[str, str]]]
    ) -> dict[str, list[tuple[str, str]]]:
        """Return what stands in files that `apply` would write, in reverse order: to put it back."""
        relative = _checked_path(path)
        found: dict[str, list[tuple[str, str]]] = {}
        for controller, writes in files.items():
            mount = self._mount_of(controller, writes)
            directory = f"{mount}/{relative}"
            values = [(name, _read_or_empty(f"{directory}/{name}").strip()) for name, _ in writes]
            found[controller] = [(name, text) for name, text in reversed(values) if text]
        return found

    def processes(self, path: str) -> list[int]:
        """Return the pids in a cgroup and in those below it."""
        found: list[int] = []
        for directory in _walk(f"{self.tracking}/{_checked_path(path)}"):
            found += [int(line) for line in _read_or_empty(f"{directory}/cgroup.procs").split()]
        return found

    def exists(self, path: str) -> bool:
        """Tell whether the cgroup is there."""
        return (self.tracking / _checked_path(path)).is_dir()

    def kill(self, path: str, signal: int) -> None:
        """Signal every process of a cgroup until none is left that was not signalled."""
        directory = self.tracking / _checked_path(path)
        if self.version == 2 and signal == signals.SIGKILL and (directory / "cgroup.kill").exists():
            _write(f"{directory}/cgroup.kill", ["1"], path)
            return
        seen: set[int] = set()
        while True:
            fresh = [pid for pid in self.processes(path) if pid not in seen]
            if not fresh:
                return
            for pid in fresh:
                seen.add(pid)
                _signal(pid, signal)

    def end(self, path: str) -> None:
        """Kill every process of a cgroup and remove it; a gone one is fine.

        Raises:
            BackendError: a process cannot be ended.
        """
        if not self._remove_empty(path):
            self.kill(path, signals.SIGKILL)
            self.remove(path)

    def _remove_empty(self, path: str) -> bool:
        """Remove a cgroup that nothing is in any more; False: something may be left."""
        relative = _checked_path(path)
        # First where a process would be found and killed.
        for mount in sorted(self.hierarchies.mounts, key=lambda mount: mount != self.tracking):
            try:
                os.rmdir(f"{mount}/{relative}")
            except FileNotFoundError:
                continue
            except OSError:
                return False
        return True

    def remove(self, path: str) -> None:
        """Remove a cgroup and those below it in every hierarchy; gone ones are fine.

        Raises:
            BackendError: processes are still in it.
        """
        relative = _checked_path(path)
        for mount in self.hierarchies.mounts:
            for directory in reversed(list(_walk(f"{mount}/{relative}"))):
                _rmdir(directory, path)

    def remove_quietly(self, path: str) -> None:
        """Remove one cgroup without cgroups below it, if nothing is in it any more."""
        relative = _checked_path(path)
        for mount in self.hierarchies.mounts:
            try:
                os.rmdir(f"{mount}/{relative}")
            except OSError:
                continue

    def remove_empty_parents(self, path: str, keep: str) -> None:
        """Remove the empty cgroups above a removed one, where no kubelet does that.

        A kubelet makes and removes its pods' parents in the hierarchies that it manages; in the others
        `create` made them. Our own parent, ``keep``, stays.
        """
        relative = os.path.dirname(_checked_path(path))
        if self.version == 2 or f"{relative}/".startswith(f"{_checked_path(keep)}/"):
            return
        managed = {self.hierarchies.controllers.get(name) for name in _KUBELET_MANAGES}
        for mount in self.hierarchies.mounts:
            if mount not in managed:
                _remove_upwards(str(mount), relative)

    def memory_limit(self, path: str) -> int | None:
        """Return the memory limit of a cgroup in bytes, -1 for none; None where nothing counts memory."""
        name = "memory.limit_in_bytes" if self.version == 1 else "memory.max"
        directory = self.directory("memory", path)
        text = _read_or_empty(f"{directory}/{name}").strip() if directory else ""
        if not text.isdigit():
            return -1 if text == "max" else None
        # v1 has no word for "no limit" but a number near 2⁶³.
        return -1 if int(text) >= _NO_LIMIT else int(text)

    def has_swap_accounting(self) -> bool:
        """Tell whether memory and swap together can be limited here."""
        mount = self.hierarchies.controllers.get("memory")
        return self.version == 2 or bool(mount and (mount / "memory.memsw.limit_in_bytes").exists())

    def oom_kills(self, path: str) -> int:
        """Return how often the kernel killed for memory in this cgroup and those below it."""
        relative = _checked_path(path)
        if self.version == 2:
            return _field(f"{self.tracking}/{relative}/memory.events", "oom_kill")
        memory = self.hierarchies.controllers.get("memory")
        below = _walk(f"{memory}/{relative}") if memory else ()
        return sum(_field(f"{each}/memory.oom_control", "oom_kill") for each in below)

    def children(self, path: str) -> list[str]:
        """Return the names of the cgroups directly below."""
        try:
            with os.scandir(self.tracking / _checked_path(path)) as entries:
                return sorted(item.name for item in entries if item.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []

    def directory(self, controller: str, path: str) -> Path | None:
        """Return a controller's directory of the cgroup; None where the host lacks the controller."""
        mount = self.hierarchies.controllers.get(controller)
        return mount / _checked_path(path) if mount is not None else None

    def _mount_of(self, controller: str, writes: Sequence[tuple[str, str]]) -> Path:
        if self.version == 2:
            return self.hierarchies.mounts[0]
        mount = self.hierarchies.controllers.get(controller)
        if mount is None:
            names = ", ".join(name for name, _text in writes)
            msg = (
                f"this host has no cgroup controller {controller!r} for {names}: see polypod doctor"
            )
            raise BackendError(msg)
        return mount

    def _make(self, mount: Path, relative: str) -> list[str]:
        directory = f"{mount}/{relative}"
        try:
            os.mkdir(directory, 0o755)
        except FileExistsError:
            return []
        except FileNotFoundError:
            # A parent is missing: make them one by one, so that cpuset is filled in on each.
            return self._make(mount, os.path.dirname(relative)) + self._make(mount, relative)
        if self.version == 1 and mount == self.hierarchies.controllers.get("cpuset"):
            _inherit_cpuset(directory)
        if self.version == 2:
            _delegate(os.path.dirname(directory))
        return [directory]


def _checked_path(path: str) -> str:
    parts = [part for part in path.split("/") if part]
    if not parts or any(part in (".", "..") or "\0" in part for part in parts):
        msg = f"cgroup path {path!r}: must name a cgroup below the root, without '..'"
        raise InvalidArgument(msg)
    return "/".join(parts)


def _walk(directory: str) -> Iterable[str]:
    """The cgroup and all below it, outermost first; a missing one yields nothing."""
    try:
        with os.scandir(directory) as entries:
            inner = [item.path for item in entries if item.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    yield directory
    for item in inner:
        yield from _walk(item)


def _inherit_cpuset(directory: str) -> None:
    """A v1 cpuset starts without processors, and nothing can join it then."""
    parent = os.path.dirname(directory)
    for name in ("cpuset.cpus", "cpuset.mems"):
        value = _read(f"{parent}/{name}")
        if not value.strip():
            # Somebody else is just making the parent; only a root is never empty.
            _inherit_cpuset(parent)
            value = _read(f"{parent}/{name}")
        Path(f"{directory}/{name}").write_text(value)


def _delegate(parent: str) -> None:
    """Give children the controllers that the parent has; one that cannot be given is left out."""
    for name in _read_or_empty(f"{parent}/cgroup.controllers").split():
        with contextlib.suppress(OSError):
            Path(f"{parent}/cgroup.subtree_control").write_text(f"+{name}")


def _write(file: str, texts: Sequence[str], path: str) -> None:
    try:
        _write_all(file, texts)
    except OSError as error:
        name = os.path.basename(file)
        msg = f"cgroup {path}: cannot set {name} to {error.filename!r}: {error.strerror}"
        raise BackendError(msg) from error


def _write_all(file: str, texts: Sequence[str]) -> None:
    """Write each text by a call of its own; an error's ``filename`` is the text that was refused."""
    text = texts[0]
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for text in texts:
                os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, text) from error


def _read(file: str) -> str:
    """Return a small file's text; open() takes more than twice as long (8 against 3 µs)."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = [os.read(descriptor, _READ_BYTES)]
        while parts[-1]:
            parts.append(os.read(descriptor, _READ_BYTES))
        return b"".join(parts).decode()
    finally:
        os.close(descriptor)


def _rmdir(directory: str, path: str) -> None:
    for attempt in range(_REMOVE_TRIES):
        try:
            os.rmdir(directory)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or attempt == _REMOVE_TRIES - 1:
                msg = f"cgroup {path}: cannot remove {directory}: {error.strerror}"
                raise BackendError(msg) from error
            # A dead process leaves its cgroup a moment after it was reaped.
            time.sleep(0.002)


def _remove_upwards(mount: str, relative: str) -> None:
    while relative:
        try:
            os.rmdir(f"{mount}/{relative}")
        except OSError:
            return
        relative = os.path.dirname(relative)


def _remove_all(directories: Iterable[str]) -> None:
    for directory in directories:
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def _signal(pid: int, signal: int) -> None:
    try:
        os.kill(pid, signal)
    except ProcessLookupError:
        return


def _read_or_empty(file: str) -> str:
    try:
        return _read(file)
    except OSError:
        return ""


def _field(file: str, name: str) -> int:
    for line in _read_or_empty(file).splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
