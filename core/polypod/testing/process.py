"""A simulated process: arguments, environment, streams, signals, children; no kernel involved."""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from polypod.plugin.oci import User
from polypod.plugin.services import ExitStatus
from polypod.testing.clock import Clock
from polypod.testing.files import Files
from polypod.testing.streams import Streams, read_some, write_all

log = logging.getLogger(__name__)

BASE_BYTES = 1024 * 1024
"""What each process takes of memory."""
STEP_NS = 200_000
"""What each program costs of cpu."""
_INTERNAL = 70
"""EX_SOFTWARE: the simulation itself has a fault."""
_IGNORED = {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH}
_UNSTOPPABLE = {signal.SIGKILL, signal.SIGSTOP}


class Exit(Exception):
    """The program ends with a code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code & 0xFF


@dataclass(slots=True)
class Group:
    """What the processes of one container share."""

    clock: Clock
    files: Files
    hostname: str
    memory_limit_bytes: int = 0
    """0 = none."""
    oom_killed: bool = False
    processes: list[Process] = field(default_factory=list)
    frozen: asyncio.Event | None = None
    """While it is there the processes stand still between two commands; set when they may go on."""
    pids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    ended_cpu_ns: int = 0

    def signal(self, number: int) -> None:
        """Signal all of them."""
        for process in tuple(self.processes):
            process.deliver(number)

    @property
    def memory_bytes(self) -> int:
        """What all of them take."""
        return sum(process.memory_bytes for process in self.processes)

    @property
    def cpu_ns(self) -> int:
        """What all of them have used, ended ones too."""
        return self.ended_cpu_ns + sum(process.cpu_ns for process in self.processes)

    def remove(self, process: Process) -> None:
        """Take an ended process out; the last one that used some streams closes them."""
        self.processes.remove(process)
        self.ended_cpu_ns += process.cpu_ns
        if not any(each.streams is process.streams for each in self.processes):
            process.streams.close()

    def charge(self, process: Process, size: int) -> None:
        """Give a process memory; beyond the limit the container is killed for it."""
        process.memory_bytes += size
        if 0 < self.memory_limit_bytes < self.memory_bytes:
            self.run_out()

    def run_out(self) -> None:
        """Do what the kernel does when memory runs out: kill, and say so."""
        self.oom_killed = True
        self.signal(signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Start:
    """What a process begins with."""

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = "/"
    user: User = field(default_factory=User)


@dataclass(frozen=True, slots=True)
class Captured:
    """A process at one moment, between two commands."""

    journal: bytes
    env: Mapping[str, str]
    cwd: str
    traps: Mapping[int, str]
    memory_bytes: int
    cpu_ns: int


class Process:
    """One process; `spawn` starts it."""

    def __init__(self, group: Group, start: Start, streams: Streams) -> None:
        self.group = group
        self.start = start
        self.pid = next(group.pids)
        self.env = dict(pair.partition("=")[::2] for pair in start.env)
        self.cwd = start.cwd
        self.streams = streams
        self.traps: dict[int, str] = {}
        self.pending: list[str] = []
        """Trap actions to run at the next step."""
        self.woken = asyncio.Event()
        self.children: list[Process] = []
        self.memory_bytes = BASE_BYTES
        self.cpu_ns = 0
        self.status: ExitStatus | None = None
        self.ended = asyncio.Event()
        self.on_end: Callable[[Process], None] = lambda _process: None
        self.journal = bytearray()
        """The status of every simple command so far: all that control flow depends on."""
        self.captured: Captured | None = None
        """Where it goes on from, until it has got there."""
        self._killer = 0
        self._task: asyncio.Task[int] | None = None

    @property
    def clock(self) -> Clock:
        """The container's clock."""
        return self.group.clock

    def spawn(self, body: Callable[[Process], Coroutine[Any, Any, int]]) -> None:
        """Run ``body``, a coroutine function of the process that returns the exit code."""
        self.group.processes.append(self)
        self._task = asyncio.create_task(body(self))
        self._task.add_done_callback(self._finish)

    def fork(self) -> Process:
        """Return a child with the same everything."""
        child = Process(self.group, self.start, self.streams)
        child.env, child.cwd, child.traps = dict(self.env), self.cwd, dict(self.traps)
        self.children.append(child)
        return child

    def family(self) -> list[Process]:
        """Return the process and all that descend from it."""
        return [self, *(each for child in self.children for each in child.family())]

    def deliver(self, number: int) -> None:
        """Signal the process, as kill(2) does. One that has ended hears nothing."""
        if self.status is not None or number == 0:
            return
        action = None if number in _UNSTOPPABLE else self.traps.get(number)
        if action is not None:
            if action:
                self.pending.append(action)
                self.woken.set()
            return
        if number in _IGNORED or self._task is None or self._task.done():
            return
        self._killer = number
        self._task.cancel()

    # Checkpoints

    def capture(self) -> Captured:
        """Return the moment at which it stands."""
        return Captured(
            bytes(self.journal),
            dict(self.env),
            self.cwd,
            dict(self.traps),
            self.memory_bytes,
            self.cpu_ns,
        )

    def replay(self) -> int | None:
        """Return the status of a command that ran before the checkpoint, or None where the present begins."""
        captured = self.captured
        if captured is None:
            return None
        if len(self.journal) < len(captured.journal):
            self.journal.append(captured.journal[len(self.journal)])
            return self.journal[-1]
        self.captured = None
        self.env, self.cwd, self.traps = dict(captured.env), captured.cwd, dict(captured.traps)
        self.memory_bytes, self.cpu_ns = captured.memory_bytes, captured.cpu_ns
        return None

    async def moving(self) -> None:
        """Return when it is not frozen."""
        while self.group.frozen is not None:
            await self.group.frozen.wait()

    # Streams

    async def read(self, limit: int) -> bytes:
        """Read from stdin."""
        if self.streams.stdin is None:
            return b""
        return await read_some(self.streams.stdin, limit)

    async def write(self, data: bytes, *, error: bool = False) -> None:
        """Write to stdout or stderr."""
        fd = self.streams.stderr if error else self.streams.stdout
        if fd is not None:
            await write_all(fd, data)

    # Time

    async def sleep(self, seconds: float) -> None:
        """Let time pass at no cost."""
        await self.clock.sleep(seconds)

    async def burn(self, seconds: float) -> None:
        """Let time pass, all of it as cpu time."""
        began = self.clock.monotonic()
        await self.clock.sleep(seconds)
        self.cpu_ns += int((self.clock.monotonic() - began) * 1_000_000_000)

    # The end

    def _finish(self, task: asyncio.Task[int]) -> None:
        now = self.clock.now_ns()
        killer = self._killer
        if task.cancelled():
            killer = killer or signal.SIGKILL
        elif isinstance(task.exception(), BrokenPipeError):
            killer = signal.SIGPIPE
        if killer:
            self.status = ExitStatus(128 + killer, killer, now)
        else:
            self.status = ExitStatus(_code(task), 0, now)
        self.group.remove(self)
        self.ended.set()
        self.on_end(self)


def _code(task: asyncio.Task[int]) -> int:
    error = task.exception()
    if error is None:
        return task.result() & 0xFF
    if isinstance(error, Exit):
        return error.code
    log.error("a simulated program failed", exc_info=error)
    return _INTERNAL
