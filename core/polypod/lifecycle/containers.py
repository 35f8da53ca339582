"""The end of containers: stop, kill, the exit, remove."""

from __future__ import annotations

import logging
import signal

from polypod.lifecycle.clock import first_of, within
from polypod.lifecycle.heart import Heart
from polypod.lifecycle.image_volumes import release_volumes
from polypod.lifecycle.objects import Container
from polypod.lifecycle.parts import Handler
from polypod.lifecycle.records import UNKNOWN_EXIT
from polypod.lifecycle.states import ContainerEvent
from polypod.lifecycle.steps import step
from polypod.lifecycle.tasks import Background
from polypod.lifecycle.trees import remove_tree
from polypod.lifecycle.views import ContainerState
from polypod.plugin.errors import BackendError, NotFound
from polypod.plugin.runtime import BackendState, ContainerExited
from polypod.plugin.services import ExitStatus

log = logging.getLogger(__name__)

_ALIVE = (ContainerState.RUNNING, ContainerState.UNKNOWN)


class Containers:
    """Stops and removes containers, and records their exits."""

    def __init__(self, heart: Heart, background: Background) -> None:
        self._heart = heart
        self._background = background

    async def stop(self, container_id: str, timeout_s: float) -> None:
        """Stop a container: its stop signal, a grace period, SIGKILL. Returns when it is gone.

        Args:
            container_id: id or unique prefix; an unknown one counts as stopped.
            timeout_s: the grace; 0 kills at once. A call that leaves less time than one in flight
                shortens that one; the stop signal is sent once.

        Spec:
            kubernetes/cri-api api.proto, RuntimeService.StopContainer: idempotent.
        """
        container = self._heart.containers.find(container_id)
        if container is not None:
            await self.halt(container, timeout_s)

    async def halt(self, container: Container, timeout_s: float) -> None:
        """Stop a container, as `stop` does; one that does not run is left as it is."""
        async with container.lock:  # a create or start in flight ends first
            if container.record.state not in _ALIVE:
                return
        deadline = self._heart.clock.monotonic() + max(0.0, timeout_s)
        if deadline < container.deadline:
            container.deadline = deadline
            container.changed.set()
        key = ("kill container", container.record.id)
        await self._heart.joins.run(key, lambda: self._kill(container))

    async def remove(self, container_id: str) -> None:
        """Kill a container if need be and forget it; its log file stays.

        Spec:
            kubernetes/cri-api api.proto, RuntimeService.RemoveContainer: idempotent, forcible.
        """
        container = self._heart.containers.find(container_id)
        if container is not None:
            key = ("remove container", container.record.id)
            await self._heart.joins.run(key, lambda: self._remove(container))

    async def exited(self, event: ContainerExited) -> None:
        """Record an exit that the backend told: once, after the log has everything."""
        container = self._heart.containers.exact(event.container_id)
        if container is None:
            log.debug("exit of an unknown container id=%s", event.container_id)
            return
        async with container.lock:
            if container.record.state in _ALIVE:
                await self._record_exit(container, event)

    async def lost(self, container: Container, why: str) -> None:
        """Record that a container is gone and nobody knows how it ended."""
        container.explain.note(why)
        now = self._heart.clock.now_ns()
        gone = ContainerExited(container.record.id, ExitStatus(None, finished_at_ns=now))
        await self.exited(gone)

    # The exit

    async def _record_exit(self, container: Container, event: ContainerExited) -> None:
        heart, record = self._heart, container.record
        try:
            await within(heart.clock, heart.settings.drain_s, heart.parts.logs.drained(record.id))
        except Exception as error:  # noqa: BLE001 - a hung log must not hold the exit back
            container.explain.note(f"the log may lack its end: {error}")
        await heart.failpoints.hit("container.exit.drained")
        code, reason = exit_facts(event)
        heart.move_container(
            container,
            ContainerEvent.EXITED,
            exit_code=code,
            reason=reason,
            finished_at_ns=max(
                event.status.finished_at_ns or heart.clock.now_ns(), record.started_at_ns
            ),
            pid=None,
        )
        container.exited.set()
        heart.parts.hooks.notify_container_exited(record.id, event.status)
        self._background.spawn(f"tidy {record.id}", self._tidy(container))

    async def _tidy(self, container: Container) -> None:
        """Give back early what a dead container holds; RemoveContainer does what this could not."""
        async with container.lock:
            await self._forget(container)

    async def _forget(self, container: Container) -> None:
        if container.tidied:
            return
        await self._heart.handler_of(container.sandbox).backend.delete(container.record.id)
        await self._heart.parts.logs.close(container.record.id)
        container.tidied = container.record.state is ContainerState.EXITED

    # Stopping

    async def _kill(self, container: Container) -> None:
        heart, record = self._heart, container.record
        handler = heart.handler_of(container.sandbox)
        with step(container.explain, f"container {record.id}", "stop"):
            try:
                if not await self._gone(container, handler):
                    await self._end(container, handler)
            finally:
                container.deadline = float("inf")

    async def _end(self, container: Container, handler: Handler) -> None:
        """Send the stop signal once, wait out the grace, then SIGKILL."""
        heart, record = self._heart, container.record
        graceful = container.deadline > heart.clock.monotonic()
        if graceful and not record.signalled:
            await handler.backend.kill(record.id, record.stop_signal)
            heart.commit_container(container, signalled=True)
            await heart.failpoints.hit("container.stop.signalled")
        await self._grace(container)
        if container.exited.is_set():
            return
        await handler.backend.kill(record.id, signal.SIGKILL, whole=True)
        try:
            await within(heart.clock, heart.settings.kill_s, container.exited.wait())
        except TimeoutError as error:
            if not await self._gone(container, handler):
                raise BackendError(
                    f"it still runs {heart.settings.kill_s:g} s after SIGKILL; a process in an "
                    "uninterruptible system call does that: the call can be repeated"
                ) from error

    async def _grace(self, container: Container) -> None:
        """Wait for the exit or the deadline, which may become shorter meanwhile."""
        clock = self._heart.clock
        while not container.exited.is_set():
            left = container.deadline - clock.monotonic()
            if left <= 0:
                return
            container.changed.clear()
            await first_of(container.exited.wait(), container.changed.wait(), clock.sleep(left))

    async def _gone(self, container: Container, handler: Handler) -> bool:
        """Ask the backend; record the exit if the container has ended without an event reaching us."""
        if container.record.state is ContainerState.EXITED:
            return True
        container_id = container.record.id
        try:
            status = await handler.backend.status(container_id)
        except NotFound:
            await self.lost(container, "the backend does not know the container any more")
            return True
        if status.state is not BackendState.STOPPED:
            return False
        ended = status.exit or ExitStatus(None, finished_at_ns=self._heart.clock.now_ns())
        await self.exited(ContainerExited(container_id, ended, status.oom_killed))
        return True

    # Removing

    async def _remove(self, container: Container) -> None:
        container.removing = True
        try:
            await self.halt(container, 0)
            async with container.lock:
                await self._give_back(container)
        finally:
            container.removing = False

    async def _give_back(self, container: Container) -> None:
        heart, record = self._heart, container.record
        what, hit = f"container {record.id}", heart.failpoints.hit
        handler = heart.handler_of(container.sandbox)
        with step(container.explain, what, "delete in the backend"):
            await self._forget(container)
            await hit("container.remove.backend")
        with step(container.explain, what, "release the root file system"):
            await handler.image_store.release(record.id)
            await release_volumes(handler, container)
            await hit("container.remove.rootfs")
        with step(container.explain, what, "remove files"):
            remove_tree(container.directory)
            await hit("container.remove.files")
        heart.forget_container(container)
        heart.parts.hooks.notify_container_removed(record.id)


def exit_facts(event: ContainerExited) -> tuple[int, str]:
    """Return the exit code and the reason that CRI reports.

    Spec:
        kubelet: the reason ``OOMKilled`` exactly; the others are its custom.
    """
    code = event.status.code
    if event.oom_killed:
        return (128 + signal.SIGKILL if code is None else code), "OOMKilled"
    if code is None:
        return UNKNOWN_EXIT, "Unknown"
    return code, "Completed" if code == 0 else "Error"
