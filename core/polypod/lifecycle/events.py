"""What backends tell without being asked: exits and dead sandboxes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress

from polypod.lifecycle.containers import Containers
from polypod.lifecycle.heart import Heart
from polypod.lifecycle.objects import Container, Sandbox
from polypod.lifecycle.parts import Handler
from polypod.lifecycle.tasks import Background
from polypod.lifecycle.teardown import Teardown
from polypod.lifecycle.views import ContainerState, SandboxState
from polypod.plugin.runtime import (
    BackendEvent,
    BackendState,
    ContainerExited,
    Inventory,
    SandboxDied,
)
from polypod.plugin.services import ExitStatus

log = logging.getLogger(__name__)


class Events:
    """One listener for each handler. A broken stream is opened again, and compared with `list()`."""

    def __init__(
        self, heart: Heart, containers: Containers, teardown: Teardown, background: Background
    ) -> None:
        self._heart = heart
        self._containers = containers
        self._teardown = teardown
        self._background = background

    async def listen(self, handler: Handler) -> None:
        """Listen to a backend for ever."""
        while True:
            try:
                await self._follow(handler, handler.backend.events())
                log.warning("event stream ended handler=%s", handler.name)
            except Exception:
                log.exception("event stream broke handler=%s", handler.name)
            await self._heart.clock.sleep(self._heart.settings.resync_s)

    async def resync(self, handler: Handler) -> None:
        """Compare what is on record as alive with what the backend has."""
        # Chosen before the question: what becomes ready while the backend answers is not in its list.
        ready = [
            each
            for each in self._heart.sandboxes
            if each.handler is handler and each.record.state is SandboxState.READY
        ]
        running = [
            each
            for each in self._heart.containers
            if each.sandbox.handler is handler and each.record.state is ContainerState.RUNNING
        ]
        inventory = await handler.backend.list()
        for sandbox in ready:
            self.compare(sandbox, inventory)
        for container in running:
            await self.compare_container(container, inventory)

    def compare(self, sandbox: Sandbox, inventory: Inventory) -> None:
        """Note a sandbox's death that no event told."""
        ready = sandbox.record.state is SandboxState.READY and not sandbox.stopping
        if ready and not inventory.sandboxes.get(sandbox.record.id, False):
            self._teardown.died(sandbox, "the backend does not hold the sandbox any more")

    async def compare_container(self, container: Container, inventory: Inventory) -> None:
        """Note a container's exit that no event told."""
        if container.record.state is not ContainerState.RUNNING:
            return
        status = inventory.containers.get(container.record.id)
        if status is None:
            await self._containers.lost(
                container, "the backend does not have the container any more"
            )
        elif status.state is BackendState.STOPPED:
            ended = status.exit or ExitStatus(None, finished_at_ns=self._heart.clock.now_ns())
            exited = ContainerExited(container.record.id, ended, status.oom_killed)
            await self._containers.exited(exited)

    async def _follow(self, handler: Handler, stream: AsyncIterator[BackendEvent]) -> None:
        pending = asyncio.ensure_future(_next(stream))
        try:
            await asyncio.sleep(
                0
            )  # the stream is open before the comparison: no exit falls between
            await self.resync(handler)
            while (event := await pending) is not None:
                self._dispatch(event)
                pending = asyncio.ensure_future(_next(stream))
        finally:
            pending.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await pending

    async def _record(self, event: ContainerExited) -> None:
        """Record an exit, however long that takes: a full disk must not lose it, it is told once."""
        while True:
            try:
                await self._containers.exited(event)
                return
            except Exception:
                log.exception("exit not recorded, trying again container=%s", event.container_id)
            await self._heart.clock.sleep(self._heart.settings.resync_s)

    def _dispatch(self, event: BackendEvent) -> None:
        """Act on an event in a task of its own: one hung log must not hold other exits back."""
        match event:
            case ContainerExited():
                self._background.spawn(f"exit {event.container_id}", self._record(event))
            case SandboxDied():
                sandbox = self._heart.sandboxes.exact(event.sandbox_id)
                if sandbox is not None and not sandbox.stopping:
                    self._teardown.died(sandbox, event.reason)


async def _next(stream: AsyncIterator[BackendEvent]) -> BackendEvent | None:
    return await anext(stream, None)
