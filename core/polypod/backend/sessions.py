"""An extra process in a container: its launch, its end, its signals, its terminal's size."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal as signals
import stat
import struct
import termios

from polypod.backend.cgroups import Cgroups
from polypod.backend.containers import Container
from polypod.backend.descriptors import Descriptors
from polypod.backend.users import give_streams
from polypod.plugin import (
    BackendError,
    ExecSpec,
    ExitStatus,
    FailedPrecondition,
    Launched,
    NotFound,
    ProcessId,
    Supervisor,
    Unavailable,
)
from polypod.plugin.oci import Seccomp
from polypod.spec.compile import ExecSources, compile_exec

# linux/major.h: the peers of pseudo-terminals.
_TERMINALS = range(136, 144)


def exec_group(container: Container, spec: ExecSpec) -> str:
    """Return the cgroup of an exec: a child of its container's, by which it can be ended apart."""
    return f"{container.cgroup}/exec-{spec.id[:16]}"


async def launch_exec(
    supervisor: Supervisor,
    cgroups: Cgroups,
    handler: str,
    container: Container,
    spec: ExecSpec,
    /,
    *,
    kinds: tuple[str, ...],
    seccomp: Seccomp | None,
    watched: bool = True,
) -> ExecSession:
    """Run an extra process by a launch plan of its own.

    The files that it takes are a few small ones, so all of it is done on the loop.

    Args:
        supervisor: that launches it.
        cgroups: in which the container is.
        handler: whose it is; an exec that outlives its daemon is found by that label.
        container: a living one, whose pidfd is known.
        spec: what to run, as core asks for it.
        kinds: of the container's namespaces that are joined.
        seccomp: the container's own filter.
        watched: somebody there may trace (`Containers.is_watched`): nothing unfinished may be seen, which
            takes a second clone, some 1 ms.

    Raises:
        BackendError: the container is gone, or the program cannot be executed. Nothing is left.
    """
    if container.pidfd < 0:
        raise BackendError(f"container {container.id}: its first process is gone")
    group = exec_group(container, spec)
    with Descriptors() as descriptors:
        try:
            joined = cgroups.join_child(container.cgroup, group)
            give_streams(spec.stdio, spec.process, spec.config.linux)
            sources = ExecSources(
                pidfd=descriptors.lend(container.pidfd),
                kinds=kinds,
                streams=descriptors.streams(spec.stdio),
                cgroups=tuple(descriptors.take(fd) for fd in joined),
                watched=watched,
            )
            launched = await supervisor.launch(
                ProcessId(spec.id),
                compile_exec(spec.process, seccomp, sources),
                fds=descriptors.fds,
                labels={"handler": handler, "kind": "exec", "container": container.id},
            )
        except BaseException:
            cgroups.remove_quietly(group)
            raise
    return ExecSession(supervisor, cgroups, launched, group)


class ExecSession:
    """Implements `Session`. A child cgroup holds the exec and everything that it leaves behind."""

    def __init__(
        self, supervisor: Supervisor, cgroups: Cgroups, launched: Launched, group: str
    ) -> None:
        """Take over a process that executes.

        Args:
            supervisor: that knows it.
            cgroups: in which it is.
            launched: the process; its pidfd is closed.
            group: its own cgroup; ``""`` if it has none, then only the process itself can be signalled.
        """
        self._supervisor = supervisor
        self._cgroups = cgroups
        self._process_id = launched.process_id
        self._pid = launched.pid
        self._group = group
        if launched.pidfd >= 0:
            os.close(launched.pidfd)
        self._clearing: asyncio.Task[None] | None = None
        self._end: asyncio.Task[ExitStatus] = asyncio.ensure_future(self._ended())

    async def wait(self) -> ExitStatus:
        """See `Session.wait`."""
        return await asyncio.shield(self._end)

    async def kill(self, signal: int, /) -> None:
        """See `Session.kill`: also what the exec left in the background."""
        if self._group:
            await asyncio.to_thread(self._cgroups.kill, self._group, signal)
        elif not self._end.done():
            with contextlib.suppress(NotFound):
                await self._supervisor.kill(self._process_id, signal)
        if signal == signals.SIGKILL:
            await self.wait()
            await asyncio.to_thread(self._forget_group)

    async def resize(self, *, width: int, height: int) -> None:
        """See `Session.resize`."""
        if self._end.done():
            raise NotFound(f"exec {self._process_id}: it is gone")
        try:
            terminal = _terminal_of(self._pid)
        except OSError as error:
            raise NotFound(f"exec {self._process_id}: it is gone") from error
        if terminal < 0:
            raise FailedPrecondition(f"exec {self._process_id}: its stdin is no terminal")
        try:
            size = struct.pack("HHHH", height, width, 0, 0)
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)
        finally:
            os.close(terminal)

    async def _ended(self) -> ExitStatus:
        status = await self._supervisor.wait(self._process_id)
        # Nobody waits for that: a probe's answer is due now.
        self._clearing = asyncio.ensure_future(self._clear())
        return status

    async def _clear(self) -> None:
        with contextlib.suppress(NotFound, Unavailable):
            await self._supervisor.forget(self._process_id)
        # A background child keeps the cgroup; it goes with the container then.
        self._forget_group()

    def _forget_group(self) -> None:
        if self._group:
            self._cgroups.remove_quietly(self._group)


def _terminal_of(pid: int) -> int:
    """Open the terminal that a process has as stdin, whoever holds its master; -1 if it has none.

    What a container has put there may be anything, and opening it might hang us or do something: so
    it is looked at before it is opened, and opened by what was looked at (E4).
    """
    place = os.open(f"/proc/{pid}/fd/0", os.O_PATH | os.O_CLOEXEC)
    try:
        found = os.fstat(place)
        if not stat.S_ISCHR(found.st_mode) or os.major(found.st_rdev) not in _TERMINALS:
            return -1
        return os.open(f"/proc/self/fd/{place}", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    finally:
        os.close(place)
