"""The supervisor's abilities without a supervisor: namespaces are null devices, programs simulated."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from polypod.plan.operations import ChangeDirectory, Execute, Plan, SetUser, UseStdio
from polypod.plugin.errors import AlreadyExists, BackendError, InvalidArgument, NotFound
from polypod.plugin.ids import ProcessId, SandboxId
from polypod.plugin.oci import User
from polypod.plugin.rootfs import DirectoryRootfs
from polypod.plugin.services import (
    ExitStatus,
    IdMaps,
    Launched,
    LiveProcess,
    ProcessExit,
    SandboxNamespaces,
    Stdio,
)
from polypod.testing.clock import Clock, SystemClock
from polypod.testing.faults import Faults
from polypod.testing.files import Files
from polypod.testing.process import Group, Process, Start
from polypod.testing.programs import execute, why_not
from polypod.testing.streams import Streams

_FIRST_PID = 5_000_000
"""Above the kernel's largest pid (``/proc/sys/kernel/pid_max`` <= 4194304): nobody can be hit."""


@dataclass(slots=True)
class _Pinned:
    kinds: frozenset[str]
    hostname: str
    sysctls: Mapping[str, str]


@dataclass(slots=True)
class _Launch:
    process: Process
    pid: int
    labels: Mapping[str, str]
    held: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    exit: ExitStatus | None = None


class FakeSupervisor:
    """Implements `polypod.plugin.services.Supervisor`. One object outlives the daemons of a test.

    A launch runs the plan's `Execute` as a program of `polypod.testing.programs`, with the streams of its
    `UseStdio`; the other operations are not carried out.
    """

    def __init__(self, *, clock: Clock | None = None, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self.pinned: dict[SandboxId, _Pinned] = {}
        self.plans: dict[ProcessId, Plan] = {}
        """The plan of each launch, for tests to look at."""
        self._clock = clock or SystemClock()
        self._launches: dict[ProcessId, _Launch] = {}
        self._orphans: dict[int, _Launch] = {}
        self._pids = itertools.count(_FIRST_PID)
        self._listeners: list[asyncio.Queue[ProcessExit]] = []
        self._servers: dict[tuple[SandboxId, int], asyncio.Queue[socket.socket]] = {}

    # Namespaces

    async def make_namespaces(
        self,
        sandbox_id: SandboxId,
        kinds: frozenset[str],
        /,
        *,
        hostname: str = "",
        sysctls: Mapping[str, str] | None = None,
        ids: IdMaps | None = None,
    ) -> SandboxNamespaces:
        """Note what was asked for, and open a null device for each."""
        await self.faults.hit("make_namespaces")
        if ("user" in kinds) is not (ids is not None):
            raise InvalidArgument(f"sandbox {sandbox_id}: a user namespace and its ids go together")
        self.pinned.setdefault(sandbox_id, _Pinned(kinds, hostname, dict(sysctls or {})))
        return self._open(sandbox_id)

    async def map_ids(self, ids: IdMaps, /) -> int:
        """Open a null device."""
        await self.faults.hit("map_ids")
        if not ids.uids:
            raise InvalidArgument("map_ids: no ids are mapped")
        return _null()

    async def namespaces(self, sandbox_id: SandboxId, /) -> SandboxNamespaces | None:
        """Return what is pinned."""
        await self.faults.hit("namespaces")
        return self._open(sandbox_id) if sandbox_id in self.pinned else None

    async def list_namespaces(self) -> Sequence[SandboxId]:
        """Return every sandbox that has namespaces."""
        return list(self.pinned)

    async def drop_namespaces(self, sandbox_id: SandboxId, /) -> None:
        """Forget them."""
        await self.faults.hit("drop_namespaces")
        self.pinned.pop(sandbox_id, None)

    def _open(self, sandbox_id: SandboxId) -> SandboxNamespaces:
        kinds = self.pinned[sandbox_id].kinds
        fds = {kind: _null() for kind in sorted(kinds)}
        return SandboxNamespaces(sandbox_id, fds, _null() if "network" in kinds else None)

    # Processes

    async def launch(
        self,
        process_id: ProcessId,
        plan: Plan,
        /,
        *,
        fds: Sequence[int],
        labels: Mapping[str, str] | None = None,
        hold: bool = False,
    ) -> Launched:
        """Run the plan's program in the simulation."""
        await self.faults.hit("launch")
        if process_id in self._launches:
            raise AlreadyExists(f"process {process_id} is known already")
        self.plans[process_id] = plan
        process = self._process(plan, fds)
        launch = _Launch(process, next(self._pids), dict(labels or {}), held=hold)
        process.on_end = lambda ended: self._ended(process_id, launch, ended.status)
        self._launches[process_id] = launch
        if not hold:
            with self._undone(process_id):
                self._execute(process_id, launch)
        return Launched(process_id, launch.pid, launch.pid, _null())

    async def execute(
        self,
        process_id: ProcessId,
        plan: Plan,
        /,
        *,
        fds: Sequence[int],
        labels: Mapping[str, str] | None = None,
    ) -> Launched:
        """Run a host's program; here there is no difference."""
        return await self.launch(process_id, plan, fds=fds, labels=labels)

    def bear(self, plan: Plan, fds: Sequence[int] = ()) -> int:
        """Let a program run that nobody launched, as a runtime leaves one behind; its pid."""
        launch = _Launch(self._process(plan, fds), next(self._pids), {})
        self._orphans[launch.pid] = launch
        launch.process.on_end = lambda ended: self._ended(None, launch, ended.status)
        launch.process.spawn(execute)
        return launch.pid

    async def adopt(
        self, process_id: ProcessId, pid: int, /, *, labels: Mapping[str, str] | None = None
    ) -> Launched:
        """Name what `bear` made, also if it has ended."""
        await self.faults.hit("adopt")
        if process_id in self._launches:
            raise AlreadyExists(f"process {process_id} is known already")
        launch = self._orphans.pop(pid, None)
        if launch is None:
            raise NotFound(f"process {process_id}: there is no {pid}")
        launch.labels = dict(labels or {})
        self._launches[process_id] = launch
        launch.process.on_end = lambda ended: self._ended(process_id, launch, ended.status)
        if launch.exit is not None:
            self._tell(process_id, launch.exit)
        return Launched(process_id, pid, pid, _null() if launch.exit is None else -1)

    @contextmanager
    def _undone(self, process_id: ProcessId) -> Iterator[None]:
        """Leave nothing of a launch that fails."""
        try:
            yield
        except BaseException:
            self._launches.pop(process_id).process.streams.close()
            raise

    async def release(self, process_id: ProcessId, /) -> None:
        """Let a held process go."""
        await self.faults.hit("release")
        launch = self._launches.get(process_id)
        if launch is None or not launch.held or launch.exit is not None:
            raise NotFound(f"no process {process_id} is held")
        with self._undone(process_id):
            self._execute(process_id, launch)

    def _execute(self, process_id: ProcessId, launch: _Launch) -> None:
        args = launch.process.start.args
        reason = why_not(args)
        if reason:
            raise BackendError(f"process {process_id}: {reason}") from FileNotFoundError(args[0])
        launch.held = False
        launch.process.spawn(execute)

    def _process(self, plan: Plan, fds: Sequence[int]) -> Process:
        start, streams = _start(plan), _streams(plan, fds)
        nothing = Files(DirectoryRootfs(Path(os.devnull)), (), read_only=True)
        return Process(Group(self._clock, nothing, "fake"), start, streams)

    async def kill(self, process_id: ProcessId, signal_: int, /) -> None:
        """Deliver a signal; a held process dies of any that kills."""
        await self.faults.hit("kill")
        launch = self._launches.get(process_id)
        if launch is None or launch.exit is not None:
            raise NotFound(f"no process {process_id} lives")
        if launch.held:
            launch.process.streams.close()
            self._ended(
                process_id, launch, ExitStatus(128 + signal_, signal_, self._clock.now_ns())
            )
        else:
            launch.process.deliver(signal_)

    async def processes(self) -> Sequence[LiveProcess]:
        """Return all that were launched and not forgotten."""
        await self.faults.hit("processes")
        return [
            LiveProcess(process_id, each.pid, each.pid, each.labels, each.exit)
            for process_id, each in self._launches.items()
        ]

    async def wait(self, process_id: ProcessId, /) -> ExitStatus:
        """Return when the process is gone."""
        launch = self._launches.get(process_id)
        if launch is None:
            raise NotFound(f"process {process_id} is unknown")
        await launch.ended.wait()
        return launch.exit or ExitStatus(None)

    async def forget(self, process_id: ProcessId, /) -> None:
        """Drop an exit status."""
        launch = self._launches.get(process_id)
        if launch is not None and launch.exit is not None:
            del self._launches[process_id]
            self.plans.pop(process_id, None)

    async def exits(self) -> AsyncIterator[ProcessExit]:
        """Yield each exit, first those that are not forgotten yet."""
        queue: asyncio.Queue[ProcessExit] = asyncio.Queue()
        for process_id, each in self._launches.items():
            if each.exit is not None:
                queue.put_nowait(ProcessExit(process_id, each.exit))
        self._listeners.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners.remove(queue)

    def _ended(
        self, process_id: ProcessId | None, launch: _Launch, status: ExitStatus | None
    ) -> None:
        if launch.process.group.processes:
            launch.process.group.signal(signal.SIGKILL)
        launch.exit = status or ExitStatus(None)
        launch.ended.set()
        if process_id is not None:
            self._tell(process_id, launch.exit)

    def _tell(self, process_id: ProcessId, status: ExitStatus) -> None:
        for queue in self._listeners:
            queue.put_nowait(ProcessExit(process_id, status))

    # Sockets

    def listen(self, sandbox_id: SandboxId, port: int) -> asyncio.Queue[socket.socket]:
        """Let something listen inside a sandbox; the queue gets the server's end of each connection."""
        return self._servers.setdefault((sandbox_id, port), asyncio.Queue())

    async def connect_tcp(self, sandbox_id: SandboxId, host: str, port: int, /) -> int:
        """Connect to what `listen` made."""
        await self.faults.hit("connect_tcp")
        server = self._servers.get((sandbox_id, port))
        if server is None:
            refused = ConnectionRefusedError(f"{host}:{port}: nobody listens there")
            raise BackendError(f"sandbox {sandbox_id}: {refused}") from refused
        ours, theirs = socket.socketpair()
        server.put_nowait(theirs)
        return ours.detach()


def _null() -> int:
    return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def _start(plan: Plan) -> Start:
    cwd, user = "/", User()
    for operation in plan.operations:
        if isinstance(operation, ChangeDirectory):
            cwd = operation.path
        elif isinstance(operation, SetUser):
            user = User(operation.uid, operation.gid, additional_gids=tuple(operation.groups))
    last = plan.operations[-1]
    if not isinstance(last, Execute) or not last.args:
        raise BackendError("the plan executes no program")
    return Start(tuple(last.args), tuple(last.env), cwd, user)


def _streams(plan: Plan, fds: Sequence[int]) -> Streams:
    for operation in plan.operations:
        if isinstance(operation, UseStdio):
            stdin, stdout, stderr = (
                fds[int(source.removeprefix("fd:"))] if source else None
                for source in (operation.stdin, operation.stdout, operation.stderr)
            )
            return Streams.adopt(Stdio(stdin, stdout, stderr))
    return Streams()
