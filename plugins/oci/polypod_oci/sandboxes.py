"""Sandboxes: a cgroup, shared memory, and the init that core has made where a pod shares its processes.

A small file each, because a pod on the host's namespaces has nothing else that lives.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from polypod.plugin import SandboxDied, SandboxId, SandboxNamespaces, SandboxSpec, Supervisor
from polypod_oci import mounts
from polypod_oci.cgroups import Cgroups

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Sandbox:
    """One sandbox."""

    id: SandboxId
    cgroup: str
    shm: Path
    has_init: bool
    """A pid namespace is pinned: when its init dies, the sandbox is dead."""
    dead: bool = False


class Sandboxes:
    """All sandboxes of one handler."""

    def __init__(
        self, directory: Path, cgroups: Cgroups, parent: str, tell: Callable[[SandboxDied], None]
    ) -> None:
        self.known: dict[SandboxId, Sandbox] = {}
        self._directory = directory
        self._cgroups = cgroups
        self._parent = parent
        self._tell = tell
        self._watches: dict[SandboxId, asyncio.Task[None]] = {}
        directory.mkdir(mode=0o700, exist_ok=True)

    async def create(self, spec: SandboxSpec) -> None:
        """Note it, make its cgroup, watch its init. On failure nothing is left."""
        held = spec.namespaces.fds if spec.namespaces is not None else {}
        sandbox = Sandbox(spec.id, spec.cgroup, spec.directory / "shm", "pid" in held)
        try:
            await asyncio.to_thread(self._make, sandbox)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(self._unmake, sandbox))
            raise
        self.known[spec.id] = sandbox
        if spec.namespaces is not None:
            self._watch(sandbox, spec.namespaces)

    def _make(self, sandbox: Sandbox) -> None:
        facts = {"cgroup": sandbox.cgroup, "shm": str(sandbox.shm), "init": sandbox.has_init}
        (self._directory / sandbox.id).write_text(json.dumps(facts))
        self._cgroups.make(sandbox.cgroup)

    async def remove(self, sandbox: Sandbox) -> None:
        """Give everything back."""
        self.unwatch(sandbox.id)
        await asyncio.to_thread(self._unmake, sandbox)
        self.known.pop(sandbox.id, None)

    def _unmake(self, sandbox: Sandbox) -> None:
        mounts.unmount(sandbox.shm)
        if sandbox.cgroup:
            self._cgroups.remove(sandbox.cgroup)
            self._cgroups.remove_empty_parents(sandbox.cgroup, self._parent)
        (self._directory / sandbox.id).unlink(missing_ok=True)

    async def restore(self, supervisor: Supervisor) -> None:
        """Take over what an earlier daemon noted."""
        for sandbox in list(self._read()):
            self.known[sandbox.id] = sandbox
            if not sandbox.has_init:
                continue
            made = await supervisor.namespaces(sandbox.id)
            if made is None:
                sandbox.dead = True
                continue
            self._watch(sandbox, made)
            for fd in (*made.fds.values(), made.netlink):
                if fd is not None:
                    os.close(fd)

    def _read(self) -> Iterator[Sandbox]:
        """Yield what was noted; half a note is a sandbox to be removed."""
        for path in self._directory.iterdir():
            facts = read_facts(path)
            yield Sandbox(
                SandboxId(path.name),
                str(facts.get("cgroup", "")),
                Path(str(facts.get("shm", "/nonexistent"))),
                bool(facts.get("init")),
                dead=not facts,
            )

    # The init

    def _watch(self, sandbox: Sandbox, made: SandboxNamespaces) -> None:
        if not sandbox.has_init:
            return
        pidfd = _open_init(made)
        sandbox.dead = pidfd < 0
        if pidfd >= 0:
            name = f"init of {sandbox.id[:12]}"
            work = self._await_init(sandbox, pidfd)
            self._watches[sandbox.id] = asyncio.get_running_loop().create_task(work, name=name)

    async def _await_init(self, sandbox: Sandbox, pidfd: int) -> None:
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        loop.add_reader(pidfd, gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
        sandbox.dead = True
        self._tell(SandboxDied(sandbox.id, "the init of its process namespace was killed"))

    def unwatch(self, sandbox_id: SandboxId) -> None:
        """Say nothing of the end of an init any more."""
        task = self._watches.pop(sandbox_id, None)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        """Stop watching."""
        tasks = list(self._watches.values())
        for sandbox_id in list(self._watches):
            self.unwatch(sandbox_id)
        await asyncio.gather(*tasks, return_exceptions=True)


def _open_init(made: SandboxNamespaces) -> int:
    """Return a pidfd of the init of a pinned pid namespace; -1 if it is gone.

    A pid alone could be somebody else's by now: it counts if its pid namespace is the pinned one.
    """
    try:
        pidfd = os.pidfd_open(made.init_pid or -1)
    except OSError:
        return -1
    try:
        theirs = os.stat(f"/proc/{made.init_pid}/ns/pid")
        if os.path.samestat(theirs, os.fstat(made.fds["pid"])):
            return pidfd
    except OSError:
        _log.debug("the init %s went while it was looked at", made.init_pid)
    os.close(pidfd)
    return -1


def read_facts(path: Path) -> dict[str, object]:
    """Read a note; what is no note has no facts."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
