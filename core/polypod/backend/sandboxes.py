"""The sandboxes of one handler: a cgroup each, shared memory, the init that core made for shared processes.

A small file for each tells a daemon that comes after us of it, because a pod on the host's namespaces has
nothing else that lives.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal as signals
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from polypod.backend import inits, usage
from polypod.backend.cgroups import Cgroups
from polypod.backend.containers import Containers, Runner
from polypod.backend.mounts import unmount
from polypod.plugin import (
    ContainerId,
    ContainerUsage,
    NotFound,
    RuntimeContext,
    SandboxDied,
    SandboxId,
    SandboxNamespaces,
    SandboxSpec,
)

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
    """All sandboxes of one handler, by id."""

    def __init__(
        self,
        context: RuntimeContext,
        cgroups: Cgroups,
        containers: Containers,
        run: Runner = asyncio.to_thread,
    ) -> None:
        """Begin with none; `restore` finds those of an earlier daemon.

        Args:
            context: the handler's; the notes lie below its ``state``.
            cgroups: in which each sandbox gets one.
            containers: that are stopped with their sandbox; they also tell of one that died.
            run: for what blocks.
        """
        self._handler = context.handler
        self._supervisor = context.supervisor
        self._parent = context.cgroup_parent
        self._directory = context.state / "sandboxes"
        self._cgroups = cgroups
        self._containers = containers
        self._run = run
        self._known: dict[SandboxId, Sandbox] = {}
        self._watches: dict[SandboxId, asyncio.Task[None]] = {}
        self._directory.mkdir(mode=0o700, exist_ok=True)

    def known(self, sandbox_id: SandboxId) -> Sandbox:
        """Return one.

        Raises:
            NotFound: there is no such sandbox in this handler.
        """
        sandbox = self._known.get(sandbox_id)
        if sandbox is None:
            raise NotFound(f"sandbox {sandbox_id}: not in handler {self._handler!r}")
        return sandbox

    async def stats(self, sandbox_ids: Sequence[SandboxId]) -> Mapping[SandboxId, ContainerUsage]:
        """Return what `SandboxStatsSource.sandbox_stats` returns, from the cgroups."""
        known = ((each, self._known.get(each)) for each in sandbox_ids)
        groups = {each: found.cgroup for each, found in known if found and not found.dead}
        return await self._run(usage.read_all, self._cgroups, groups)

    def health(self) -> dict[SandboxId, bool]:
        """Return all, and whether each is healthy, for `RuntimeBackend.list`."""
        return {each.id: not each.dead for each in self._known.values()}

    async def create(self, spec: SandboxSpec) -> None:
        """Note it, make its cgroup, watch its init. On failure nothing is left."""
        held = spec.namespaces.fds if spec.namespaces is not None else {}
        sandbox = Sandbox(spec.id, spec.cgroup, spec.directory / "shm", "pid" in held)
        try:
            await self._run(self._make, sandbox)
        except BaseException:
            await asyncio.shield(self._run(self._unmake, sandbox))
            raise
        self._known[spec.id] = sandbox
        if spec.namespaces is not None:
            self._watch(sandbox, spec.namespaces)

    def _make(self, sandbox: Sandbox) -> None:
        facts = {"cgroup": sandbox.cgroup, "shm": str(sandbox.shm), "init": sandbox.has_init}
        (self._directory / sandbox.id).write_text(json.dumps(facts))
        self._cgroups.create(sandbox.cgroup)

    async def stop(self, sandbox_id: SandboxId) -> None:
        """End everything that runs in it; an unknown one is fine."""
        sandbox = self._known.get(sandbox_id)
        if sandbox is None:
            return
        self._unwatch(sandbox_id)
        alive = [each for each in self._containers.of(sandbox_id) if each.exit is None]
        for container in alive:
            # One that is just being made may not be in its cgroup yet.
            await self._containers.signal(container, signals.SIGKILL)
        await self._run(self._cgroups.kill, sandbox.cgroup, signals.SIGKILL)
        for container in alive:
            await self._containers.gone(container)

    async def remove(
        self, sandbox_id: SandboxId, delete: Callable[[ContainerId], Awaitable[None]]
    ) -> None:
        """Give everything back; an unknown one is fine.

        Args:
            sandbox_id: whose.
            delete: the backend's own, for the containers that are still there.
        """
        sandbox = self._known.get(sandbox_id)
        if sandbox is None:
            return
        self._unwatch(sandbox_id)
        for container in self._containers.of(sandbox_id):
            await delete(container.id)
        await self._run(self._unmake, sandbox)
        self._known.pop(sandbox_id, None)

    def _unmake(self, sandbox: Sandbox) -> None:
        unmount(sandbox.shm)
        if sandbox.cgroup:
            self._cgroups.end(sandbox.cgroup)
            self._cgroups.remove_empty_parents(sandbox.cgroup, self._parent)
        (self._directory / sandbox.id).unlink(missing_ok=True)

    # What an earlier daemon left

    async def restore(self) -> None:
        """Take over what was noted; half a note is a sandbox to be removed."""
        for sandbox in await self._run(lambda: list(self._read())):
            self._known[sandbox.id] = sandbox
            if not sandbox.has_init:
                continue
            made = await self._supervisor.namespaces(sandbox.id)
            if made is None:
                sandbox.dead = True
                continue
            try:
                self._watch(sandbox, made)
            finally:
                inits.release(made)

    def _read(self) -> Iterator[Sandbox]:
        for path in self._directory.iterdir():
            facts = read_note(path)
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
        pidfd = inits.open_init(made)
        sandbox.dead = pidfd < 0
        work = self._await_init(sandbox, pidfd)
        task = asyncio.get_running_loop().create_task(work, name=f"init of {sandbox.id[:12]}")
        self._watches[sandbox.id] = task
        task.add_done_callback(partial(self._watched, sandbox.id))

    def _watched(self, sandbox_id: SandboxId, task: asyncio.Task[None]) -> None:
        if self._watches.get(sandbox_id) is task:
            del self._watches[sandbox_id]
        if not task.cancelled() and task.exception() is not None:
            _log.error("sandbox %s: watching failed", sandbox_id, exc_info=task.exception())

    async def _await_init(self, sandbox: Sandbox, pidfd: int) -> None:
        await inits.ended(pidfd)
        sandbox.dead = True
        reason = "the init of its process namespace was killed"
        self._containers.tell(SandboxDied(sandbox.id, reason))

    def _unwatch(self, sandbox_id: SandboxId) -> None:
        """Say nothing of the end of an init any more."""
        task = self._watches.get(sandbox_id)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        """Stop watching; the sandboxes stay. Idempotent."""
        watches = list(self._watches.values())
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)


def read_note(path: Path) -> dict[str, object]:
    """Read a small JSON object; what is none, or not there, has nothing in it."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
