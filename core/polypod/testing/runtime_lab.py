"""The bench on which a runtime check works: sandboxes, containers, their output, their events."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from polypod.plugin.ids import ContainerId, ExecId, SandboxId, new_id
from polypod.plugin.oci import Process, User
from polypod.plugin.requests import PodMetadata, SandboxConfig
from polypod.plugin.runtime import (
    BackendEvent,
    BackendState,
    BackendStatus,
    ContainerExited,
    ContainerSpec,
    Execs,
    ExecSpec,
    RuntimeBackend,
    RuntimeType,
    SandboxSpec,
)
from polypod.plugin.services import Session, Stdio
from polypod.testing.fake_logs import FakeCaptured
from polypod.testing.suite import NotApplicable, Verdict, Violation, expect, judge, soon, until

HOSTNAME = "contract-suite"
_OUTPUT_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Wanted:
    """The container that a check needs; the subject knows how to ask its backend for it."""

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    """Besides a PATH of the subject's."""
    cwd: str = "/"
    user: User = field(default_factory=User)
    terminal: bool = False
    memory_limit_bytes: int = 0


class RuntimeSubject(Protocol):
    """What the author of a backend writes to have it checked."""

    type: RuntimeType
    shell: tuple[str, ...]
    """A POSIX shell in the rootfs, with its ``-c``: ``("/bin/sh", "-c")``. busybox is enough."""
    path: str
    """A PATH on which ``sleep``, ``cat``, ``seq``, ``id``, ``env`` and ``hostname`` are."""
    out_of_memory: tuple[str, ...]
    """A program that takes memory until it is killed for it; ``()`` skips that check."""

    async def open(self) -> RuntimeBackend:
        """Open the backend; called again, on the same directories, to play a restart of the daemon."""
        ...

    async def sandbox(self, config: SandboxConfig, /) -> SandboxSpec:
        """Make what core makes before ``create_sandbox``: id, namespaces, directory."""
        ...

    async def container(
        self, container_id: ContainerId, sandbox: SandboxSpec, wanted: Wanted, stdio: Stdio, /
    ) -> ContainerSpec:
        """Make what core makes before ``create``: OCI config, rootfs, directory."""
        ...

    async def discard(self, sandbox: SandboxSpec, /) -> None:
        """Give back what `sandbox` and `container` made, for this sandbox."""
        ...


class Box:
    """One container of a check, with what it writes."""

    def __init__(self, lab: RuntimeLab, spec: ContainerSpec, output: FakeCaptured) -> None:
        self._lab = lab
        self.spec = spec
        self.id = spec.id
        self.output = output
        self.stdin: int | None = None
        self.console: int | None = None
        """Our end of the console socket."""
        self._masters: list[int] = []
        stdio = spec.stdio
        self._theirs = [fd for fd in (stdio.stdin, stdio.console) if fd is not None]

    async def start(self) -> BackendStatus:
        """Start it, and let go of our copies of its streams, as core does."""
        try:
            return await soon(self._lab.backend.start(self.id), "start")
        finally:
            self.release()

    def release(self) -> None:
        """Close our copies of the process' ends. Idempotent."""
        self.output.started()
        for fd in self._theirs:
            os.close(fd)
        self._theirs = []

    async def terminal(self) -> int:
        """Return the master of its pty, as the backend sent it; closed with the box."""
        expect(self.console is not None, "the check made a container without a terminal")
        loop = asyncio.get_running_loop()
        with socket.socket(fileno=os.dup(self.console or 0)) as receiver:
            receiver.setblocking(False)
            await soon(_readable(loop, receiver.fileno()), "the pty's master arrives")
            _, fds, _, _ = socket.recv_fds(receiver, 1024, 4)
        expect(len(fds) == 1, f"{len(fds)} descriptors came over the console socket, not one")
        self._masters += fds
        os.set_blocking(fds[0], False)
        return fds[0]

    async def status(self) -> BackendStatus:
        """Ask the backend for its state."""
        return await soon(self._lab.backend.status(self.id), "status")

    async def kill(self, signal: int, *, whole: bool = False) -> None:
        """Signal it."""
        await soon(self._lab.backend.kill(self.id, signal, whole=whole), f"kill {signal}")

    async def delete(self) -> None:
        """Delete it."""
        await soon(self._lab.backend.delete(self.id), "delete")

    async def ended(self) -> ContainerExited:
        """Return its exit, once the backend has told it."""
        await until(lambda: self._lab.exits(self.id), f"the exit of container {self.id} is told")
        return self._lab.exits(self.id)[0]

    async def text(self) -> tuple[bytes, bytes]:
        """Return what it has written, stdout and stderr."""
        return await self.output.collect()

    async def says(self, text: bytes) -> None:
        """Return once it has written a text to stdout."""
        for _ in range(2000):
            written, _ = await self.output.collect()
            if text in written:
                return
            await asyncio.sleep(0.01)
        raise Violation(f"the container never wrote {text!r} but {await self.output.collect()!r}")

    async def silent(self) -> None:
        """Return once no process holds its stdout and stderr any more: all of them are dead."""
        await until(lambda: self.output.ended, "every process of the container is gone")

    def feed(self, data: bytes) -> None:
        """Write to its stdin."""
        expect(self.stdin is not None, "the check made a container without stdin")
        os.write(self.stdin or 0, data)

    def end_input(self) -> None:
        """Close its stdin."""
        if self.stdin is not None:
            os.close(self.stdin)
            self.stdin = None

    def close(self) -> None:
        """Let go of the descriptors."""
        self.end_input()
        self.release()
        if self.console is not None:
            os.close(self.console)
            self.console = None
        while self._masters:
            os.close(self._masters.pop())
        self.output.close()


class RuntimeLab:
    """Everything that a check may do. Made and cleaned up by `run_check`."""

    def __init__(self, subject: RuntimeSubject) -> None:
        self.subject = subject
        self.backend: RuntimeBackend
        self.events: list[BackendEvent] = []
        self._listener: asyncio.Task[None] | None = None
        self._sandboxes: list[SandboxSpec] = []
        self._boxes: list[Box] = []
        self._outputs: list[FakeCaptured] = []

    # Set-up

    async def open(self) -> None:
        """Open the backend and listen to it."""
        self.backend = await soon(self.subject.open(), "open")
        self._listener = asyncio.create_task(self._listen(self.backend))
        await asyncio.sleep(0)

    async def _listen(self, backend: RuntimeBackend) -> None:
        async for event in backend.events():
            self.events.append(event)

    async def restart(self, *, while_away: Callable[[], Awaitable[None]] | None = None) -> None:
        """Do what a crash of the daemon does: forget the backend, open it anew."""
        await self._stop_listening()
        await self.backend.close()
        self.events.clear()
        if while_away is not None:
            await while_away()
        await self.open()

    async def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listener

    async def close(self) -> None:
        """Stop and remove everything; `Violation` if something is left of it then."""
        failures: list[str] = []
        for sandbox in self._sandboxes:
            try:
                await soon(self.backend.stop_sandbox(sandbox.id), "stop_sandbox")
                await self._delete_all(sandbox)
                await soon(self.backend.remove_sandbox(sandbox.id), "remove_sandbox")
                await self.subject.discard(sandbox)
            except Exception as error:  # noqa: BLE001 - the others are cleaned up all the same
                failures.append(f"{type(error).__name__}: {error}")
        failures += await self._residue()
        await self._stop_listening()
        await self.backend.close()
        for box in self._boxes:
            box.close()
        for output in self._outputs:
            output.close()
        if failures:
            raise Violation("clean-up: " + "; ".join(failures))

    async def _delete_all(self, sandbox: SandboxSpec) -> None:
        for box in self._boxes:
            if box.spec.sandbox.id == sandbox.id:
                await box.delete()

    async def _residue(self) -> list[str]:
        ours = {sandbox.id for sandbox in self._sandboxes}
        mine = {box.id for box in self._boxes}
        left = await soon(self.backend.list(), "list")
        return [f"sandbox {each} is left" for each in ours & left.sandboxes.keys()] + [
            f"container {each} is left" for each in mine & left.containers.keys()
        ]

    # Sandboxes and containers

    async def sandbox_spec(self, **annotations: str) -> SandboxSpec:
        """Return the description of a sandbox that the backend does not know yet."""
        metadata = PodMetadata(f"pod-{new_id()[:8]}", new_id(), "contract")
        config = SandboxConfig(metadata, hostname=HOSTNAME, annotations=annotations)
        spec = await self.subject.sandbox(config)
        self._sandboxes.append(spec)
        return spec

    async def sandbox(self) -> SandboxSpec:
        """Return a sandbox that the backend has made."""
        spec = await self.sandbox_spec()
        await soon(self.backend.create_sandbox(spec), "create_sandbox")
        return spec

    async def box(self, sandbox: SandboxSpec, wanted: Wanted, *, stdin: bool = False) -> Box:
        """Return a container that the backend does not know yet."""
        output = FakeCaptured(_OUTPUT_BYTES)
        self._outputs.append(output)
        theirs_in, ours_in = os.pipe() if stdin else (None, None)
        stdio = Stdio(theirs_in, output.stdio.stdout, output.stdio.stderr)
        ours: socket.socket | None = None
        if wanted.terminal:
            ours, theirs = socket.socketpair()
            stdio = Stdio(console=theirs.detach())
        spec = await self.subject.container(
            ContainerId(new_id()), sandbox, self._complete(wanted), stdio
        )
        box = Box(self, spec, output)
        box.stdin = ours_in
        box.console = ours.detach() if ours is not None else None
        self._boxes.append(box)
        return box

    def _complete(self, wanted: Wanted) -> Wanted:
        env = (f"PATH={self.subject.path}", *wanted.env)
        return Wanted(
            wanted.args,
            env,
            wanted.cwd,
            wanted.user,
            wanted.terminal,
            wanted.memory_limit_bytes,
        )

    def script(self, text: str) -> Wanted:
        """Return what runs a shell script."""
        return Wanted((*self.subject.shell, text))

    async def create(
        self, sandbox: SandboxSpec, wanted: Wanted | str, *, stdin: bool = False
    ) -> Box:
        """Create a container; a text is a shell script."""
        what = self.script(wanted) if isinstance(wanted, str) else wanted
        box = await self.box(sandbox, what, stdin=stdin)
        await soon(self.backend.create(box.spec), "create")
        return box

    async def run(self, sandbox: SandboxSpec, wanted: Wanted | str, *, stdin: bool = False) -> Box:
        """Create and start a container."""
        box = await self.create(sandbox, wanted, stdin=stdin)
        await box.start()
        return box

    async def finished(self, sandbox: SandboxSpec, wanted: Wanted | str) -> Box:
        """Run a container to its end."""
        box = await self.run(sandbox, wanted)
        await box.ended()
        return box

    # Execs

    @property
    def execs(self) -> Execs:
        """The backend's power to run extra processes."""
        if not isinstance(self.backend, Execs):
            raise NotApplicable("the backend has no Execs")
        return self.backend

    async def exec(self, box: Box, wanted: Wanted | str) -> tuple[Session, FakeCaptured]:
        """Run an extra process; a text is a shell script."""
        what = self._complete(self.script(wanted) if isinstance(wanted, str) else wanted)
        process = Process(what.args, what.env, what.cwd, user=what.user)
        output = FakeCaptured(_OUTPUT_BYTES)
        self._outputs.append(output)
        spec = ExecSpec(ExecId(new_id()), box.id, process, output.stdio, box.spec.config)
        try:
            session = await soon(self.execs.exec(spec), "exec")
        finally:
            output.started()
        return session, output

    # What happened

    def exits(self, container_id: ContainerId) -> list[ContainerExited]:
        """Return the exits told of a container."""
        return [
            each
            for each in self.events
            if isinstance(each, ContainerExited) and each.container_id == container_id
        ]

    async def state(self, container_id: ContainerId) -> BackendState | None:
        """Return the state in the backend's list; None if it is not there."""
        found = (await soon(self.backend.list(), "list")).containers.get(container_id)
        return found.state if found is not None else None

    async def healthy(self, sandbox_id: SandboxId) -> bool | None:
        """Return a sandbox's health in the backend's list; None if it is not there."""
        return (await soon(self.backend.list(), "list")).sandboxes.get(sandbox_id)


async def _readable(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)


Check = Callable[[RuntimeLab], Awaitable[None]]


async def run_check(check: Check, subject: RuntimeSubject) -> Verdict:
    """Run one check on a subject, clean up, and say how it ended."""

    async def work() -> None:
        lab = RuntimeLab(subject)
        await lab.open()
        try:
            await check(lab)
        except BaseException:
            with contextlib.suppress(Exception):  # what the check found matters more
                await lab.close()
            raise
        await lab.close()

    exceptions: Mapping[str, str] = subject.type.exceptions
    return await judge(getattr(check, "__name__", ""), work, exceptions)
