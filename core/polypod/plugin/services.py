"""What core lends to plugins: the supervisor's abilities, the standard streams, and their data.

A plugin never talks to keeper, supervisor or logger itself; it calls these Protocols, which
``polypod.processes`` implements for the daemon and ``polypod.testing.fakes`` for tests.

File descriptors given *to* a service stay the caller's, unless a method says that it takes them;
descriptors that a service *returns* belong to the caller, who closes them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from polypod.plan.operations import Plan
from polypod.plugin.ids import ProcessId, SandboxId
from polypod.plugin.oci import OciIdMapping


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended.

    ``code`` is 0-255, 128 + signal where a signal ended it, and ``None`` where nobody can know it
    any more (never 0 then). Times are CLOCK_REALTIME in nanoseconds.
    """

    code: int | None
    signal: int = 0
    finished_at_ns: int = 0


@dataclass(frozen=True, slots=True)
class ProcessExit:
    """One process is gone; told once per daemon, and again after a restart until it is forgotten."""

    process_id: ProcessId
    status: ExitStatus


@dataclass(frozen=True, slots=True)
class Launched:
    """A process that executes (or is held before it, see `Supervisor.launch`)."""

    process_id: ProcessId
    pid: int
    """As seen from the host."""
    start_time: int
    """Field 22 of ``/proc/PID/stat``: with the pid, a name that is never used twice."""
    pidfd: int
    """Belongs to the caller; -1 for an adopted one that was gone already."""


@dataclass(frozen=True, slots=True)
class LiveProcess:
    """What the supervisor knows of a process after a restart of the daemon."""

    process_id: ProcessId
    pid: int
    start_time: int
    labels: Mapping[str, str] = field(default_factory=dict)
    exit: ExitStatus | None = None
    """Set if it is gone and not yet forgotten."""


@dataclass(frozen=True, slots=True)
class IdMaps:
    """The mappings of a user namespace: which ids of it are which on the host."""

    uids: tuple[OciIdMapping, ...]
    gids: tuple[OciIdMapping, ...]


@dataclass(frozen=True, slots=True)
class SandboxNamespaces:
    """The namespaces of one sandbox, pinned by descriptors (held by supervisor and keeper too)."""

    sandbox_id: SandboxId
    fds: Mapping[str, int]
    """Kind (``network``, ``ipc``, ``uts``, ``pid``, ``user``, as in runtime-spec) → nsfs descriptor."""
    netlink: int | None = None
    """A NETLINK_ROUTE socket created inside the network namespace, where one was made."""
    init_pid: int | None = None
    """The init of a POD-mode pid namespace, as seen from the host."""


@dataclass(frozen=True, slots=True)
class Stdio:
    """The process' ends of its standard streams; the process' side is the holder's to close.

    Without a terminal: ``stdin`` (or None = /dev/null), ``stdout``, ``stderr``.
    With one: only ``console``, a unix stream socket on which the process' side sends the pty master
    by SCM_RIGHTS (the console socket of OCI runtimes).
    """

    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    console: int | None = None


class Supervisor(Protocol):
    """Makes namespaces, runs launch plans, sends signals: everything that the daemon may not do itself."""

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
        """Make and pin the namespaces of a sandbox; ``sysctls`` are applied inside them.

        Args:
            sandbox_id: whose they are; a second call for the same id returns the first one's.
            kinds: of ``network``, ``ipc``, ``uts``, ``pid``, ``user``. ``pid`` starts an init that only
                reaps; the others belong to ``user`` if it is among them.
            hostname: set in the new uts namespace.
            sysctls: already checked names and values.
            ids: mappings of ``user``.

        Raises:
            BackendError: the kernel refused; nothing is left.
        """
        ...

    async def map_ids(self, ids: IdMaps, /) -> int:
        """Return a user namespace in which nobody is: idmapped mounts take their mappings from one.

        Raises:
            BackendError: the kernel refuses the mappings.
        """
        ...

    async def namespaces(self, sandbox_id: SandboxId, /) -> SandboxNamespaces | None:
        """Return what is pinned for a sandbox (after a restart), or None."""
        ...

    async def list_namespaces(self) -> Sequence[SandboxId]:
        """Return every sandbox for which namespaces are pinned."""
        ...

    async def drop_namespaces(self, sandbox_id: SandboxId, /) -> None:
        """Unpin them and end the init; unknown ids are no error. The kernel frees them behind us."""
        ...

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
        """Run a launch plan in a new process that is the keeper's child.

        Args:
            process_id: unique; the exit status is kept under it until `forget`.
            plan: operations; ``fd:N`` in them is an index into ``fds``.
            fds: at most 200; duplicated, they stay the caller's.
            labels: kept with the process, returned by `processes`.
            hold: stop just before the last operation (execve) until `release`: the OCI
                ``created`` state.

        Raises:
            BackendError: an operation failed; the text names it, its arguments and the errno; the
                process is gone and nothing is left of it. ``__cause__`` is the OSError.
            AlreadyExists: a process of this id is known.
            Unavailable: supervisor or keeper died meanwhile; nothing is left. Try again.
        """
        ...

    async def execute(
        self,
        process_id: ProcessId,
        plan: Plan,
        /,
        *,
        fds: Sequence[int],
        labels: Mapping[str, str] | None = None,
    ) -> Launched:
        """Like `launch`, but in the host's mount namespace: for runtimes, shims and hypervisors."""
        ...

    async def adopt(
        self, process_id: ProcessId, pid: int, /, *, labels: Mapping[str, str] | None = None
    ) -> Launched:
        """Take over a process that an executed program left behind, such as a runtime's detached init.

        From here on it is like a launched one: its exit is recorded, told and kept until `forget`. One
        that has ended already is found, too, unless thousands of others ended since.

        Args:
            process_id: unique.
            pid: as the program told it; a descendant of something that `execute` ran.
            labels: kept with the process, returned by `processes`.

        Raises:
            NotFound: there is no such process, and none has ended lately.
            AlreadyExists: a process of this id is known.
            Unavailable: supervisor or keeper died meanwhile; the process is left as it is.
        """
        ...

    async def release(self, process_id: ProcessId, /) -> None:
        """Let a held process execute. Raises like `launch`; NotFound if there is none.

        A held process survives the supervisor like one that executes.
        """
        ...

    async def kill(self, process_id: ProcessId, signal: int, /) -> None:
        """Send a signal through the pidfd. NotFound where no such process lives.

        `Unavailable` leaves open whether it was sent, except for SIGKILL, which is sent again.
        """
        ...

    async def connect_tcp(self, sandbox_id: SandboxId, host: str, port: int, /) -> int:
        """Return a TCP socket connected from inside the sandbox's network namespace."""
        ...

    async def processes(self) -> Sequence[LiveProcess]:
        """Return all processes launched and not forgotten."""
        ...

    async def wait(self, process_id: ProcessId, /) -> ExitStatus:
        """Return when the process is gone; at once if it is gone already. NotFound if unknown."""
        ...

    async def forget(self, process_id: ProcessId, /) -> None:
        """Drop the exit status. Called once the daemon has committed it."""
        ...

    def exits(self) -> AsyncIterator[ProcessExit]:
        """Yield each exit, first those that happened while no daemon was there."""
        ...


@runtime_checkable
class HoldsDescriptors(Protocol):
    """Optional, of a `Supervisor`: programs that it executed may leave descriptors with the keeper."""

    @property
    def keeper_directory(self) -> Path:
        """Where the keeper listens, as ``keeper.sock``."""
        ...


class Session(Protocol):
    """A running exec: its end, its size, its signals."""

    async def wait(self) -> ExitStatus:
        """Return when the process is gone."""
        ...

    async def kill(self, signal: int, /) -> None:
        """Signal the exec and everything that it left behind (its own child cgroup), never the container."""
        ...

    async def resize(self, *, width: int, height: int) -> None:
        """Set the size of its terminal, in characters."""
        ...
