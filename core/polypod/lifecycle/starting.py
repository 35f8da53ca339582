"""StartContainer: streams, then the backend's create and start, then RUNNING."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

from polypod.lifecycle.checkpoints import CHECKPOINT, checkpointable
from polypod.lifecycle.creating import prepare_rootfs, require_ready
from polypod.lifecycle.facts import container_facts
from polypod.lifecycle.heart import Heart
from polypod.lifecycle.image_volumes import prepare_volumes
from polypod.lifecycle.objects import Container, sandbox_spec
from polypod.lifecycle.parts import Handler
from polypod.lifecycle.rollback import Rollback
from polypod.lifecycle.states import ContainerEvent
from polypod.lifecycle.steps import bounded, step
from polypod.lifecycle.views import ContainerState
from polypod.plugin.errors import BackendError, FailedPrecondition, NotFound
from polypod.plugin.oci import OciConfig
from polypod.plugin.runtime import BackendState, BackendStatus, ContainerSpec
from polypod.plugin.services import Stdio

START_ERROR = 128
"""The exit code of a container whose program could not be executed, as peers report it."""
_DEATH_POLLS, _DEATH_POLL_S = 500, 0.01


class Starting:
    """Starts containers."""

    def __init__(self, heart: Heart) -> None:
        self._heart = heart

    async def start(self, container_id: str) -> None:
        """Start a created container.

        Raises:
            FailedPrecondition: it is not CREATED, or its sandbox is not READY.
            BackendError: its program could not be executed; it is EXITED with code 128 then.

        Spec:
            kubernetes/cri-api api.proto, RuntimeService.StartContainer.
        """
        container = self._heart.containers.require(container_id)
        key = ("start", container.record.id)
        await self._heart.joins.run(key, lambda: self._start(container))

    async def _start(self, container: Container) -> None:
        heart, what = self._heart, f"container {container.record.id}"
        async with container.lock:
            state = container.record.state
            if state is not ContainerState.CREATED or container.removing:
                raise FailedPrecondition(
                    f"{what} is {'being removed' if container.removing else state}, not created: "
                    "only a created container can be started"
                )
            require_ready(container.sandbox)
            handler = heart.handler_of(container.sandbox)
            undo = heart.rollback(f"start {what}")
            work = self._launch(container, handler, undo)
            try:
                await bounded(heart.clock, heart.settings.create_s, what, container.explain, work)
            except BaseException as error:
                self._failed(container, undo, error)
                raise
        heart.parts.hooks.notify_container_started(container.record.id, container.record.pid)

    async def _launch(self, container: Container, handler: Handler, undo: Rollback) -> None:
        heart, record, hit = self._heart, container.record, self._heart.failpoints.hit
        what, explain = f"container {record.id}", container.explain
        async with undo:
            with step(explain, what, "ask plugins"):
                await heart.parts.hooks.before_container_start(container_facts(heart, container))
            with step(explain, what, "open the log"):
                undo.push("close the streams", lambda: heart.parts.logs.close(record.id))
                stdio = await self._open_log(container)
            try:
                await hit("container.start.logs")
                with step(explain, what, "create"):
                    undo.push("delete in the backend", lambda: handler.backend.delete(record.id))
                    await self._create(
                        container, handler, await self._spec(container, handler, stdio)
                    )
                    await hit("container.start.created")
                with step(explain, what, "start"):
                    undo.push("kill", lambda: self._kill(container, handler))
                    status = await handler.backend.start(record.id)
                    await hit("container.started")
            finally:
                close_stdio(stdio)
            self._running(container, status)
            undo.commit()

    async def _create(self, container: Container, handler: Handler, spec: ContainerSpec) -> None:
        if container.record.restores:
            backend = checkpointable(self._heart, handler)
            await backend.restore(spec, container.directory / CHECKPOINT)
        else:
            await handler.backend.create(spec)

    async def _open_log(self, container: Container) -> Stdio:
        record = container.record
        return await self._heart.parts.logs.open(
            record.id,
            Path(record.log_path),
            base=container.log_base,
            tty=record.config.tty,
            stdin=record.config.stdin,
            stdin_once=record.config.stdin_once,
        )

    async def _spec(self, container: Container, handler: Handler, stdio: Stdio) -> ContainerSpec:
        record = container.record
        if container.rootfs is None:  # a restart lay between create and start
            container.rootfs = await prepare_rootfs(handler, container)
            container.volumes = await prepare_volumes(handler, container)
        return ContainerSpec(
            id=record.id,
            sandbox=sandbox_spec(container.sandbox),
            request=record.config,
            config=oci_config(self._heart, container),
            rootfs=container.rootfs,
            stdio=stdio,
            directory=container.directory,
            cgroup=f"{container.sandbox.record.cgroup}/{record.id}",
            image_volumes=container.volumes,
        )

    @staticmethod
    async def _kill(container: Container, handler: Handler) -> None:
        """Kill what a failed start has left and see it dead: only then may it be deleted."""
        container_id = container.record.id
        await handler.backend.kill(container_id, signal.SIGKILL, whole=True)
        for _ in range(_DEATH_POLLS):
            try:
                status = await handler.backend.status(container_id)
            except NotFound:
                return
            if status.state is not BackendState.RUNNING:
                return
            await asyncio.sleep(_DEATH_POLL_S)
        raise BackendError(f"container {container_id} survives SIGKILL")

    def _running(self, container: Container, status: BackendStatus) -> None:
        self._heart.move_container(
            container,
            ContainerEvent.STARTED,
            started_at_ns=self._heart.clock.now_ns(),
            pid=status.pid,
        )

    def _failed(self, container: Container, undo: Rollback, error: BaseException) -> None:
        heart = self._heart
        for name, failure in undo.failures:
            container.explain.note(f"undo failed: {name}: {failure}")
        now = heart.clock.now_ns()
        heart.move_container(
            container,
            ContainerEvent.START_FAILED,
            exit_code=START_ERROR,
            reason="StartError",
            message=str(error) or "the server was stopped during the start",
            started_at_ns=now,
            finished_at_ns=now,
        )
        container.exited.set()


def oci_config(heart: Heart, container: Container) -> OciConfig:
    """Return the container's OCI config, from memory or from its record.

    Raises:
        FailedPrecondition: the record is gone (it was damaged and put aside).
    """
    if container.oci is None:
        container.oci = heart.oci_configs.get(container.record.id)
    if container.oci is None:
        raise FailedPrecondition(
            f"the configuration of container {container.record.id} is lost: remove the container"
        )
    return container.oci


def close_stdio(stdio: Stdio) -> None:
    """Close our copies of the process' ends."""
    for fd in (stdio.stdin, stdio.stdout, stdio.stderr, stdio.console):
        if fd is not None:
            os.close(fd)


def without_terminal(config: OciConfig, command: tuple[str, ...]) -> OciConfig:
    """Return a config whose process is a command with pipes: what an exec runs."""
    return replace(config, process=replace(config.process, args=command, terminal=False))
