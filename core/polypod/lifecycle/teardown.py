"""StopPodSandbox and RemovePodSandbox: give everything back, however often it takes."""

from __future__ import annotations

import asyncio

from polypod.lifecycle.containers import Containers
from polypod.lifecycle.facts import sandbox_facts
from polypod.lifecycle.heart import Heart
from polypod.lifecycle.objects import Sandbox
from polypod.lifecycle.states import SandboxEvent
from polypod.lifecycle.steps import step
from polypod.lifecycle.trees import remove_tree
from polypod.lifecycle.views import SandboxState
from polypod.plugin.errors import FailedPrecondition, PolypodError


class Teardown:
    """Stops and removes sandboxes. Each step may have been done before; what failed is tried again."""

    def __init__(self, heart: Heart, containers: Containers) -> None:
        self._heart = heart
        self._containers = containers

    async def stop(self, sandbox_id: str) -> None:
        """Kill what runs in the sandbox and give back its network.

        Raises:
            NotFound: never; an unknown sandbox counts as stopped.
            FailedPrecondition: it is still being created.
            BackendError: a step failed; the call can be repeated.

        Spec:
            kubernetes/cri-api api.proto, RuntimeService.StopPodSandbox: idempotent.
        """
        sandbox = self._find(sandbox_id)
        if sandbox is not None:
            await self._join_stop(sandbox)

    async def remove(self, sandbox_id: str) -> None:
        """Stop the sandbox if need be, remove its containers, forget it; its name is free last.

        Spec:
            kubernetes/cri-api api.proto, RuntimeService.RemovePodSandbox: idempotent, forcible.
        """
        sandbox = self._find(sandbox_id)
        if sandbox is not None:
            key = ("remove sandbox", sandbox.record.id)
            await self._heart.joins.run(key, lambda: self._remove(sandbox))

    async def detach(self, sandbox: Sandbox) -> None:
        """Take the network back, if there is or may be one."""
        record = sandbox.record
        if record.networked:
            await self._heart.parts.network.detach(record.id, record.attachment)
            self._heart.commit_sandbox(sandbox, networked=False, attachment=None)

    async def drop_namespaces(self, sandbox: Sandbox) -> None:
        """Unpin the namespaces; the kernel frees them behind the call."""
        sandbox.close_namespaces()
        if sandbox.record.namespaces:
            await self._heart.parts.supervisor.drop_namespaces(sandbox.record.id)

    def died(self, sandbox: Sandbox, reason: str) -> None:
        """Note that a sandbox's holder is gone: NOTREADY at the next list, not at the next restart."""
        if sandbox.record.state is not SandboxState.READY:
            return
        sandbox.explain.note(reason)
        self._heart.move_sandbox(sandbox, SandboxEvent.DIED, message=reason)
        self._heart.parts.hooks.notify_sandbox_stopped(sandbox.record.id)

    def _find(self, sandbox_id: str) -> Sandbox | None:
        sandbox = self._heart.sandboxes.find(sandbox_id)
        if sandbox is not None and sandbox.record.state is SandboxState.CREATING:
            raise FailedPrecondition(
                f"sandbox {sandbox.record.id} is still being created; try again"
            )
        return sandbox

    async def _join_stop(self, sandbox: Sandbox) -> None:
        if not sandbox.record.torn_down:
            key = ("stop sandbox", sandbox.record.id)
            await self._heart.joins.run(key, lambda: self._stop(sandbox))

    async def _stop(self, sandbox: Sandbox) -> None:
        heart, record = self._heart, sandbox.record
        what, hit = f"sandbox {record.id}", heart.failpoints.hit
        sandbox.stopping = True
        with step(sandbox.explain, what, "kill containers"):
            await self._kill_containers(sandbox)
            await hit("sandbox.stop.containers")
        refusal = await self._ask_plugins(sandbox)
        self._not_ready(sandbox)
        with step(sandbox.explain, what, "stop in the backend"):
            await hit("sandbox.stop.recorded")
            await heart.handler_of(sandbox).backend.stop_sandbox(record.id)
            await hit("sandbox.stop.backend")
        with step(sandbox.explain, what, "detach from the network"):
            await self.detach(sandbox)
            await hit("sandbox.stop.detached")
        with step(sandbox.explain, what, "drop namespaces"):
            await self.drop_namespaces(sandbox)
            await hit("sandbox.stop.namespaces")
        heart.commit_sandbox(sandbox, torn_down=True)
        await hit("sandbox.stop.done")
        if refusal is not None:
            raise refusal

    async def _ask_plugins(self, sandbox: Sandbox) -> PolypodError | None:
        """Return what a plugin has against the stop: it is answered once nothing is left to give back."""
        try:
            await self._heart.parts.hooks.before_sandbox_stop(sandbox_facts(sandbox))
        except PolypodError as error:
            sandbox.explain.note(f"stopped in spite of a plugin: {error}")
            return error
        return None

    def _not_ready(self, sandbox: Sandbox) -> None:
        was = sandbox.record.state
        self._heart.move_sandbox(sandbox, SandboxEvent.STOPPED)
        if was is SandboxState.READY:
            self._heart.parts.hooks.notify_sandbox_stopped(sandbox.record.id)

    async def _kill_containers(self, sandbox: Sandbox) -> None:
        """Kill all at once; wait for all, then report the first failure."""
        kills = [self._containers.halt(each, 0) for each in tuple(sandbox.containers.values())]
        outcomes = await asyncio.gather(*kills, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _remove(self, sandbox: Sandbox) -> None:
        heart, record = self._heart, sandbox.record
        what, hit = f"sandbox {record.id}", heart.failpoints.hit
        try:
            await self._join_stop(sandbox)
        except PolypodError:
            if not sandbox.record.torn_down:
                raise  # else a plugin is against it: nobody's word keeps a sandbox
        with step(sandbox.explain, what, "remove containers"):
            for container in tuple(sandbox.containers.values()):
                await self._containers.remove(container.record.id)
            await hit("sandbox.remove.containers")
        with step(sandbox.explain, what, "remove from the backend"):
            await heart.handler_of(sandbox).backend.remove_sandbox(record.id)
            await hit("sandbox.remove.backend")
        with step(sandbox.explain, what, "remove files"):
            remove_tree(sandbox.directory)
            remove_tree(heart.parts.root / "logs" / record.id)
            await hit("sandbox.remove.files")
        heart.forget_sandbox(sandbox)
        heart.parts.hooks.notify_sandbox_removed(record.id)
