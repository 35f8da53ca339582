"""RestorePod: a pod whose containers are created, and go on from a checkpoint when they are started.

Everything comes from the request (reliability E20): the checkpoint gives the state of programs and the
changes in root file systems, and tells which image and which runtime type they are for. On an error
everything is removed again.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from polypod.lifecycle import checkpoint_files as files
from polypod.lifecycle.checkpoints import CHECKPOINT, checkpointable, refuse_options
from polypod.lifecycle.creating import Creating
from polypod.lifecycle.heart import Heart
from polypod.lifecycle.objects import Container
from polypod.lifecycle.parts import Handler
from polypod.lifecycle.sandboxes import Sandboxes
from polypod.lifecycle.steps import step
from polypod.lifecycle.teardown import Teardown
from polypod.lifecycle.trees import remove_tree
from polypod.plugin.errors import AlreadyExists, FailedPrecondition, InvalidArgument, Unsupported
from polypod.plugin.ids import ContainerId, SandboxId
from polypod.plugin.images import Changes
from polypod.plugin.requests import ContainerConfig, SandboxConfig

_THREADS = 2
_ROOMS = "restores"
"""Where checkpoints are unpacked, below the server's state."""
_Asked = tuple[str, SandboxConfig, str, tuple[ContainerConfig, ...]]


class Restoring:
    """Makes pods from checkpoints."""

    def __init__(
        self, heart: Heart, sandboxes: Sandboxes, creating: Creating, teardown: Teardown
    ) -> None:
        self._heart = heart
        self._sandboxes = sandboxes
        self._creating = creating
        self._teardown = teardown
        self._paths = ThreadPoolExecutor(_THREADS, "restores")

    def close(self) -> None:
        """Let the threads go."""
        self._paths.shutdown(wait=False, cancel_futures=True)

    async def pod(
        self,
        checkpoint: str,
        config: SandboxConfig,
        handler: str,
        containers: Sequence[ContainerConfig],
        options: Mapping[str, str],
    ) -> tuple[SandboxId, dict[str, ContainerId]]:
        """Restore a pod; returns its id, and the containers' by name, all CREATED.

        Raises:
            InvalidArgument: an unknown option; names that are not exactly the checkpoint's; a file of the
                checkpoint that is none of ours.
            NotFound: no checkpoint, no handler, no image.
            AlreadyExists: there is a sandbox of this name.
            FailedPrecondition: the checkpoint is of another image or another runtime type.
            Unsupported: the handler restores nothing.

        Spec:
            kubernetes/cri-api api.proto, RuntimeService.RestorePod.
        """
        refuse_options(options)
        asked = (checkpoint, config, handler, tuple(containers))
        key = ("restore", config.metadata)
        work = self._heart.joins.run(key, lambda: self._restored(*asked))
        done, sandbox_id, made = await work
        if done != asked:
            raise AlreadyExists(
                f"another request restores {config.metadata.namespace}/{config.metadata.name} "
                "at the same time: one of them is enough"
            )
        return sandbox_id, made

    def clean(self) -> None:
        """Remove what an earlier daemon had unpacked and not used when it died."""
        remove_tree(self._heart.parts.state / _ROOMS)

    async def _restored(
        self,
        checkpoint: str,
        config: SandboxConfig,
        handler: str,
        containers: tuple[ContainerConfig, ...],
    ) -> tuple[_Asked, SandboxId, dict[str, ContainerId]]:
        """Restore a pod; a call that is repeated meanwhile joins this one."""
        chosen = self._heart.handler(handler)
        checkpointable(self._heart, chosen)
        if self._heart.sandbox_names.holder(config.metadata) is not None:
            raise AlreadyExists(
                f"a sandbox named {config.metadata.namespace}/{config.metadata.name} exists: "
                "remove it, or restore under another name or uid"
            )
        archives = await self._run(files.read_pod, checkpoint)
        _check_names(checkpoint, archives, containers)
        with ExitStack() as stack:
            room = self._heart.parts.state / _ROOMS / secrets.token_hex(8)
            stack.callback(remove_tree, room)
            await self._run(_make, room)
            summaries = {
                name: await self._run(files.unpack, archive, room / str(number))
                for number, (name, archive) in enumerate(archives.items())
            }
            unpacked = {name: room / str(number) for number, name in enumerate(archives)}
            _check_types(summaries, chosen)
            sandbox_id, made = await self._made(config, handler, containers, summaries, unpacked)
        return (checkpoint, config, handler, containers), sandbox_id, made

    async def _made(
        self,
        config: SandboxConfig,
        handler: str,
        containers: Sequence[ContainerConfig],
        summaries: Mapping[str, files.Summary],
        unpacked: Mapping[str, Path],
    ) -> tuple[SandboxId, dict[str, ContainerId]]:
        sandbox_id = await self._sandboxes.run(config, handler)
        made: dict[str, ContainerId] = {}
        try:
            for each in containers:
                name = each.metadata.name
                made[name] = await self._creating.create(sandbox_id, each)
                container = self._heart.containers.require(made[name])
                what = f"container {made[name]}"
                with step(container.explain, what, "take the checkpoint"):
                    await self._take(container, summaries[name], unpacked[name])
        except BaseException:
            await asyncio.shield(self._teardown.remove(sandbox_id))
            raise
        return sandbox_id, made

    async def _take(self, container: Container, summary: files.Summary, unpacked: Path) -> None:
        """Put a checkpoint's files where StartContainer finds them, and what was changed into the root."""
        if summary.image_id != container.record.image_id:
            raise FailedPrecondition(
                f"the checkpoint is of image {summary.image_id}, the request names "
                f"{container.record.image_id}"
            )
        changes = unpacked / files.CHANGES
        store = self._heart.handler_of(container.sandbox).image_store
        if await self._run(changes.exists):
            if not isinstance(store, Changes):
                raise Unsupported("the handler's image store cannot take changes of a root")
            await store.apply_changes(container.record.id, changes)
        await self._run((unpacked / files.BACKEND).rename, container.directory / CHECKPOINT)
        self._heart.commit_container(container, restores=True)

    async def _run(self, work: Any, *arguments: Any) -> Any:  # noqa: ANN401 - the work's own
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._paths, partial(work, *arguments))


def _check_names(
    checkpoint: str, archives: Mapping[str, Path], containers: Sequence[ContainerConfig]
) -> None:
    wanted = [each.metadata.name for each in containers]
    if len(set(wanted)) < len(wanted) or set(wanted) != set(archives):
        raise InvalidArgument(
            f"checkpoint {checkpoint!r} has containers {sorted(archives)}, "
            f"the request names {sorted(wanted)}: they must be the same"
        )


def _check_types(summaries: Mapping[str, files.Summary], handler: Handler) -> None:
    for name, summary in summaries.items():
        if summary.name != name:
            raise InvalidArgument(f"the archive of container {name!r} says {summary.name!r}")
        if summary.runtime_type != handler.type.name:
            raise FailedPrecondition(
                f"container {name!r} was captured by runtime type {summary.runtime_type!r}, handler "
                f"{handler.name!r} is of type {handler.type.name!r}"
            )


def _make(room: Path) -> None:
    room.mkdir(mode=0o700, parents=True)
