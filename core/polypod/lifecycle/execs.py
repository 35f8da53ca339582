"""ExecSync: a command in a running container, its output, its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence

from polypod.lifecycle.clock import within
from polypod.lifecycle.heart import Heart
from polypod.lifecycle.objects import Container
from polypod.lifecycle.ports import Captured
from polypod.lifecycle.records import UNKNOWN_EXIT
from polypod.lifecycle.starting import oci_config, without_terminal
from polypod.lifecycle.steps import step
from polypod.lifecycle.views import ContainerState, ExecResult
from polypod.plugin.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    PolypodError,
    Unsupported,
)
from polypod.plugin.ids import ExecId, new_id
from polypod.plugin.runtime import Execs as BackendExecs
from polypod.plugin.runtime import ExecSpec
from polypod.plugin.services import ExitStatus, Session


async def started(backend: BackendExecs, spec: ExecSpec) -> Session:
    """Start an exec. A caller who is cancelled waits for it nevertheless, and it is killed then.

    A launch that is given up in the middle is undone behind our back, and its cgroup may then still have
    a process in it when it should be removed.
    """
    starting = asyncio.ensure_future(backend.exec(spec))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with contextlib.suppress(PolypodError, OSError):
            await (await starting).kill(signal.SIGKILL)
        raise


class Execs:
    """Runs commands."""

    def __init__(self, heart: Heart) -> None:
        self._heart = heart

    async def run(self, container_id: str, command: Sequence[str], timeout_s: float) -> ExecResult:
        """Run a command and return its output and exit code, whatever the code is.

        Args:
            container_id: id or unique prefix.
            command: program and arguments.
            timeout_s: 0 = none. When it is over the exec is killed, the container never.

        Raises:
            DeadlineExceeded: the time ran out (the kubelet maps only that to a probe's time-out).
            FailedPrecondition: the container does not run.
            Unsupported: its backend cannot run further processes.

        Spec:
            kubernetes/cri-api api.proto, RuntimeService.ExecSync; output caps: CVE-2022-1708.
        """
        if not command:
            raise InvalidArgument(f"exec in container {container_id}: the command is empty")
        container = self._heart.containers.require(container_id)
        backend = self._backend(container)
        limit = self._heart.settings.exec_output_bytes
        captured = self._heart.parts.logs.capture(limit_bytes=limit)
        try:
            with step(container.explain, f"container {container.record.id}", "exec"):
                session = await started(backend, self._spec(container, command, captured))
            captured.started()
            status = await self._ended(container, session, timeout_s)
            stdout, stderr = await captured.collect()
        finally:
            captured.close()
        code = UNKNOWN_EXIT if status.code is None else status.code
        return ExecResult(stdout, stderr, code)

    def _backend(self, container: Container) -> BackendExecs:
        if container.record.state is not ContainerState.RUNNING:
            raise FailedPrecondition(
                f"container {container.record.id} is {container.record.state}, not running: "
                "nothing can be executed in it"
            )
        handler = self._heart.handler_of(container.sandbox)
        if not isinstance(handler.backend, BackendExecs):
            raise Unsupported(
                f"runtime handler {handler.name!r} (type {handler.type.name}) cannot run further "
                f"processes in container {container.record.id}"
            )
        return handler.backend

    def _spec(self, container: Container, command: Sequence[str], captured: Captured) -> ExecSpec:
        own = oci_config(self._heart, container)
        process = without_terminal(own, tuple(command)).process
        return ExecSpec(ExecId(new_id()), container.record.id, process, captured.stdio, own)

    async def _ended(self, container: Container, session: Session, timeout_s: float) -> ExitStatus:
        """Wait for the exec; leave nothing of it behind on a time-out or when the client is gone."""
        try:
            if timeout_s <= 0:
                return await session.wait()
            return await within(self._heart.clock, timeout_s, session.wait())
        except TimeoutError as error:
            await session.kill(signal.SIGKILL)
            raise DeadlineExceeded(
                f"exec in container {container.record.id}: killed after {timeout_s:g} s"
            ) from error
        except BaseException:
            await session.kill(signal.SIGKILL)
            raise
