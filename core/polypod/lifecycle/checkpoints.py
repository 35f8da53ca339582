"""CheckpointContainer and CheckpointPod: what runs is written down, and runs on.

All chosen containers stand still before the first is captured, and go on whatever happens: a pod is one
moment. Capturing is the backend's (`polypod.plugin.runtime.Checkpointable`), everything else is here.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from polypod.lifecycle import checkpoint_files as files
from polypod.lifecycle.clock import within
from polypod.lifecycle.heart import Heart
from polypod.lifecycle.objects import Container, Sandbox
from polypod.lifecycle.parts import Handler
from polypod.lifecycle.trees import remove_tree
from polypod.lifecycle.views import ContainerState
from polypod.plugin.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    Unsupported,
)
from polypod.plugin.images import Changes
from polypod.plugin.runtime import Checkpointable

CHECKPOINT = "checkpoint"
"""The directory, in a restored container's own, with what its backend goes on from."""
_DEFAULT_S = 120.0
"""For CheckpointContainer without a timeout, as long as the kubelet's shortest."""
_THREADS = 2


class Checkpoints:
    """Writes checkpoints."""

    def __init__(self, heart: Heart) -> None:
        self._heart = heart
        # Paths of clients may hang: these threads are nobody else's.
        self._paths = ThreadPoolExecutor(_THREADS, "checkpoints")

    def close(self) -> None:
        """Let the threads go; one that hangs keeps nobody."""
        self._paths.shutdown(wait=False, cancel_futures=True)

    async def container(self, container_id: str, location: str, timeout_s: float) -> None:
        """Write one archive; the container runs on.

        Raises:
            NotFound, InvalidArgument: no such container; not a place for a file.
            FailedPrecondition: it does not run.
            Unsupported: its handler cannot do that; the text says what can.
            DeadlineExceeded: it took longer than ``timeout_s`` (0 = two minutes).

        Spec:
            kubernetes/cri-api api.proto, RuntimeService.CheckpointContainer.
        """
        container = self._heart.containers.require(container_id)
        backend = self._able(container.sandbox)
        path = await self._run(files.check_location, location)
        limit = timeout_s or _DEFAULT_S
        work = self._write(container.sandbox, backend, {container: path})
        try:
            await within(self._heart.clock, limit, work)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"container {container.record.id}: the checkpoint was not written within {limit:g} s; "
                "the container runs on, nothing was kept"
            ) from error

    async def pod(
        self,
        sandbox_id: str,
        output: str,
        container_ids: Sequence[str],
        options: Mapping[str, str],
    ) -> None:
        """Write one archive per container and a summary into an empty directory.

        Args:
            sandbox_id: of the pod.
            output: the directory; on failure it is empty again.
            container_ids: those that shall be captured; none = all that run.
            options: none are known.

        Raises:
            InvalidArgument: an unknown option; a container of another pod.
            AlreadyExists: the directory is not empty.
            FailedPrecondition: nothing runs, or one of those named does not.
            Unsupported: its handler cannot do that.

        Spec:
            kubernetes/cri-api api.proto, RuntimeService.CheckpointPod.
        """
        refuse_options(options)
        sandbox = self._heart.sandboxes.require(sandbox_id)
        backend = self._able(sandbox)
        chosen = self._chosen(sandbox, container_ids)
        path = await self._run(files.check_output, output)
        names = {each.record.config.metadata.name: f"{n}.tar" for n, each in enumerate(chosen)}
        places = {each: path / names[each.record.config.metadata.name] for each in chosen}
        try:
            await self._write(sandbox, backend, places)
            await self._run(files.write_pod, path, names)
        except BaseException:
            await asyncio.shield(self._run(_emptied, path))
            raise

    def _able(self, sandbox: Sandbox) -> Checkpointable:
        return checkpointable(self._heart, self._heart.handler_of(sandbox))

    def _chosen(self, sandbox: Sandbox, container_ids: Sequence[str]) -> list[Container]:
        if container_ids:
            chosen = [self._heart.containers.require(each) for each in dict.fromkeys(container_ids)]
        else:
            running = ContainerState.RUNNING
            chosen = [each for each in sandbox.containers.values() if each.record.state is running]
        for each in chosen:
            if each.sandbox is not sandbox:
                raise InvalidArgument(
                    f"container {each.record.id} is not one of sandbox {sandbox.record.id}"
                )
        if not chosen:
            raise FailedPrecondition(f"sandbox {sandbox.record.id}: no container runs in it")
        named = [each.record.config.metadata.name for each in chosen]
        if len(set(named)) < len(named):
            raise InvalidArgument("two of the containers have one name: choose by container_ids")
        return sorted(chosen, key=lambda each: each.record.config.metadata.name)

    async def _write(
        self, sandbox: Sandbox, backend: Checkpointable, places: Mapping[Container, Path]
    ) -> None:
        handler = self._heart.handler_of(sandbox)
        async with AsyncExitStack() as stack:
            for each in sorted(places, key=lambda each: each.record.id):
                await stack.enter_async_context(each.lock)
            for each in places:
                if each.record.state is not ContainerState.RUNNING:
                    raise FailedPrecondition(
                        f"container {each.record.id} is {each.record.state}, not running: "
                        "there is nothing to capture"
                    )
            ids = [each.record.id for each in places]
            # Thawed even where freezing failed half way: thaw is idempotent.
            stack.push_async_callback(self._thawed, backend, ids)
            await backend.freeze(ids)
            for each, place in places.items():
                with each.explain.stage("checkpoint"):
                    await self._capture(each, handler, backend, place)

    async def _thawed(self, backend: Checkpointable, ids: Sequence[Any]) -> None:
        await asyncio.shield(backend.thaw(ids))

    async def _capture(
        self, container: Container, handler: Handler, backend: Checkpointable, place: Path
    ) -> None:
        record = container.record
        summary = files.Summary(
            name=record.config.metadata.name,
            runtime_type=handler.type.name,
            image_id=record.image_id,
            created_at_ns=self._heart.clock.now_ns(),
        )
        async with self._room(container) as work:
            await backend.capture(record.id, work / files.BACKEND)
            if isinstance(handler.image_store, Changes):
                await handler.image_store.export_changes(record.id, work / files.CHANGES)
            await self._run(files.pack, work, summary, place)

    @asynccontextmanager
    async def _room(self, container: Container) -> AsyncIterator[Path]:
        """Lend a directory of ours, with an empty one for the backend in it."""
        work = container.directory / f"checkpoint-{secrets.token_hex(4)}"
        (work / files.BACKEND).mkdir(mode=0o700, parents=True)
        try:
            yield work
        finally:
            await asyncio.shield(self._run(remove_tree, work))

    async def _run(self, work: Any, *arguments: Any) -> Any:  # noqa: ANN401 - the work's own
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._paths, partial(work, *arguments))


def checkpointable(heart: Heart, handler: Handler) -> Checkpointable:
    """Return a handler's backend as one that captures and restores.

    Raises:
        Unsupported: it is none; the text names the handlers that are.
    """
    if isinstance(handler.backend, Checkpointable):
        return handler.backend
    able = sorted(
        name
        for name, each in heart.parts.handlers.items()
        if isinstance(each.backend, Checkpointable)
    )
    raise Unsupported(
        f"runtime handler {handler.name!r} (type {handler.type.name}) writes no checkpoints; "
        f"handlers that do: {', '.join(able) or 'none'}"
    )


def refuse_options(options: Mapping[str, str]) -> None:
    """Raise InvalidArgument if there is an option: none is known yet."""
    if options:
        raise InvalidArgument(f"options: {sorted(options)[0]!r} is unknown; none is known")


def _emptied(directory: Path) -> None:
    """Remove what was written; the directory was empty when we began."""
    for each in directory.iterdir():
        each.unlink()
