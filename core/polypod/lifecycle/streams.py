"""Exec, Attach, PortForward: requests that are checked now and opened when the client has come.

The wire gets a URL; what it leads to are the objects made here. They look again when they are opened:
between the two a container may have ended.

Spec:
    kubernetes/cri-api api.proto, RuntimeService.Exec, Attach, PortForward.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Sequence
from dataclasses import replace

from polypod.lifecycle.clock import within
from polypod.lifecycle.conversations import AttachConversation, ExecConversation, Pipes
from polypod.lifecycle.execs import started
from polypod.lifecycle.heart import Heart
from polypod.lifecycle.objects import Container, Sandbox
from polypod.lifecycle.parts import Handler
from polypod.lifecycle.ports import Conversation
from polypod.lifecycle.starting import oci_config
from polypod.lifecycle.steps import step
from polypod.lifecycle.views import ContainerState, SandboxState, StreamChoice
from polypod.plugin.errors import (
    BackendError,
    FailedPrecondition,
    InvalidArgument,
    PolypodError,
    Unsupported,
)
from polypod.plugin.ids import ExecId, new_id
from polypod.plugin.oci import Process
from polypod.plugin.requests import NamespaceMode
from polypod.plugin.runtime import Execs as BackendExecs
from polypod.plugin.runtime import ExecSpec, Feature, Forwards

_CONSOLE_S = 10.0
_CONNECT_S = 10.0
_LOOPBACK = ("127.0.0.1", "::1")
"""Kubernetes: localhost of the pod, IPv4 first."""


class Streams:
    """Checks requests and makes URLs of them."""

    def __init__(self, heart: Heart) -> None:
        self._heart = heart

    def exec(self, container_id: str, command: Sequence[str], choice: StreamChoice) -> str:
        """Return the URL of an exec.

        Raises:
            InvalidArgument: the request contradicts itself.
            FailedPrecondition: the container does not run.
            Unsupported: its backend cannot run further processes, or give them a terminal.
        """
        if not command:
            raise InvalidArgument(f"exec in container {container_id}: the command is empty")
        container = self._container(container_id, choice, "exec")
        wanted = RemoteExec(self._heart, container, tuple(command), choice)
        wanted.backend()
        return self._heart.parts.urls.exec(wanted)

    def attach(self, container_id: str, choice: StreamChoice) -> str:
        """Return the URL of an attach; as `exec`."""
        container = self._container(container_id, choice, "attach")
        config = container.record.config
        if choice.tty != config.tty:
            has = "a terminal" if config.tty else "no terminal"
            raise InvalidArgument(
                f"attach to container {container.record.id}: tty is {choice.tty}, but the container "
                f"was made with {has}"
            )
        if choice.stdin and not config.stdin:
            raise InvalidArgument(
                f"attach to container {container.record.id}: it was made without stdin"
            )
        return self._heart.parts.urls.attach(RemoteAttach(self._heart, container, choice))

    def forward(self, sandbox_id: str, ports: Sequence[int]) -> str:
        """Return the URL of a port-forward.

        Raises:
            FailedPrecondition: the sandbox is not ready.
        """
        sandbox = self._heart.sandboxes.require(sandbox_id)
        _require_ready(sandbox)
        return self._heart.parts.urls.forward(SandboxForward(self._heart, sandbox, tuple(ports)))

    def _container(self, container_id: str, choice: StreamChoice, what: str) -> Container:
        if choice.tty and choice.stderr:
            raise InvalidArgument(
                f"{what} in container {container_id}: a terminal has no stderr of its own: leave out "
                "tty or stderr"
            )
        if not (choice.stdin or choice.stdout or choice.stderr):
            raise InvalidArgument(
                f"{what} in container {container_id}: ask for one of stdin, stdout, stderr"
            )
        container = self._heart.containers.require(container_id)
        _require_running(container, what)
        return container


class RemoteExec:
    """An exec to be opened; implements `RemoteCommand`."""

    def __init__(
        self, heart: Heart, container: Container, command: tuple[str, ...], choice: StreamChoice
    ) -> None:
        self.choice = choice
        self._heart = heart
        self._container = container
        self._command = command

    def backend(self) -> BackendExecs:
        """Return who runs it, or raise as `Streams.exec` does."""
        _require_running(self._container, "exec")
        handler: Handler = self._heart.handler_of(self._container.sandbox)
        if not isinstance(handler.backend, BackendExecs):
            raise Unsupported(
                f"runtime handler {handler.name!r} (type {handler.type.name}) cannot run further "
                f"processes in container {self._container.record.id}"
            )
        if self.choice.tty and Feature.TTY not in handler.type.features:
            raise Unsupported(
                f"runtime handler {handler.name!r} (type {handler.type.name}, feature {Feature.TTY}) "
                f"gives no terminal to processes of container {self._container.record.id}"
            )
        return handler.backend

    async def open(self, size: tuple[int, int] | None = None, /) -> Conversation:
        """See `RemoteCommand.open`."""
        backend = self.backend()
        container = self._container
        config = oci_config(self._heart, container)
        pipes = Pipes(self.choice)
        try:
            process = _process(config.process, self._command, tty=self.choice.tty, size=size)
            spec = ExecSpec(ExecId(new_id()), container.record.id, process, pipes.stdio, config)
            with step(container.explain, f"container {container.record.id}", "exec"):
                session = await started(backend, spec)
            try:
                await self._use_console(pipes)
            except BaseException:
                await session.kill(signal.SIGKILL)
                raise
        except BaseException:
            pipes.close()
            raise
        return ExecConversation(session, pipes)

    async def _use_console(self, pipes: Pipes) -> None:
        pipes.started()
        if self.choice.tty:
            try:
                await within(self._heart.clock, _CONSOLE_S, pipes.receive_terminal())
            except TimeoutError as error:
                raise BackendError(
                    f"exec in container {self._container.record.id}: its terminal did not come"
                ) from error


class RemoteAttach:
    """An attach to be opened; implements `RemoteCommand`."""

    def __init__(self, heart: Heart, container: Container, choice: StreamChoice) -> None:
        self.choice = choice
        self._heart = heart
        self._container = container

    async def open(self, size: tuple[int, int] | None = None, /) -> Conversation:
        """See `RemoteCommand.open`."""
        _require_running(self._container, "attach")
        joined = await AttachConversation.open(self._heart, self._container, self.choice)
        if size is not None:
            try:
                await joined.resize(width=size[0], height=size[1])
            except BaseException:
                joined.close()
                raise
        return joined


class SandboxForward:
    """A port-forward; implements `Forward`."""

    def __init__(self, heart: Heart, sandbox: Sandbox, ports: tuple[int, ...]) -> None:
        self.ports = ports
        self._heart = heart
        self._sandbox = sandbox

    async def connect(self, port: int, /) -> socket.socket:
        """See `Forward.connect`: localhost of the sandbox, and of the host only if it has no other."""
        _require_ready(self._sandbox)
        record, backend = self._sandbox.record, self._heart.handler_of(self._sandbox).backend
        if isinstance(backend, Forwards):
            fd = await within(self._heart.clock, _CONNECT_S, backend.forward(record.id, port))
            return _adopted(fd)
        first: Exception | None = None
        for host in _LOOPBACK:
            try:
                return await within(self._heart.clock, _CONNECT_S, self._connect(host, port))
            except (PolypodError, OSError) as error:  # TimeoutError is an OSError
                first = first or error
        raise BackendError(f"sandbox {record.id}: port {port}: {first}") from first

    async def _connect(self, host: str, port: int) -> socket.socket:
        record = self._sandbox.record
        if record.config.security.namespaces.network is not NamespaceMode.NODE:
            return _adopted(await self._heart.parts.supervisor.connect_tcp(record.id, host, port))
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(found, (host, port))
        except BaseException:
            found.close()
            raise
        return found


def _adopted(fd: int) -> socket.socket:
    found = socket.socket(fileno=fd)
    found.setblocking(False)
    return found


def _process(
    own: Process, command: tuple[str, ...], *, tty: bool, size: tuple[int, int] | None
) -> Process:
    """Return what an exec runs: the container's own process with another command."""
    env = own.env
    if tty and not any(entry.startswith("TERM=") for entry in env):
        env = (*env, "TERM=xterm")
    height_width = (size[1], size[0]) if size is not None and tty else None
    return replace(own, args=command, terminal=tty, env=env, console_size=height_width)


def _require_running(container: Container, what: str) -> None:
    if container.record.state is not ContainerState.RUNNING:
        raise FailedPrecondition(
            f"container {container.record.id} is {container.record.state}, not running: {what} is "
            "not possible"
        )


def _require_ready(sandbox: Sandbox) -> None:
    if sandbox.record.state is not SandboxState.READY or sandbox.stopping:
        raise FailedPrecondition(
            f"sandbox {sandbox.record.id} is not ready: nothing of it can be connected to"
        )
