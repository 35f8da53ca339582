"""A program that ends before its start is answered: the exit is told all the same, once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from polypod.backend.containers import Container
from polypod.plugin.ids import ContainerId, ProcessId, SandboxId
from polypod.plugin.runtime import ContainerExited, RuntimeContext
from polypod.plugin.services import ExitStatus, Launched
from polypod_namespaces.backend import NamespacesBackend

BOX = ContainerId("b" * 64)


class Quick:
    """A supervisor whose program has ended some moments before the release is answered."""

    def __init__(self, moments: int) -> None:
        self.ended: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self._moments = moments

    async def wait(self, _process_id):
        return await self.ended

    async def release(self, _process_id):
        self.ended.set_result(ExitStatus(3))
        for _ in range(self._moments):
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("moments", [0, 1, 200])
async def test_an_exit_before_the_answer_of_start_is_told_once(tmp_path: Path, moments: int):
    context = RuntimeContext("ns", {}, tmp_path, tmp_path, "/polypod-none", Quick(moments))
    backend = NamespacesBackend(context)
    container = Container(BOX, SandboxId("a" * 64), "/none", own_pids=True)
    backend._containers.add(container, Launched(ProcessId(BOX), 1, 1, -1))
    await backend.start(BOX)
    assert await anext(backend.events()) == ContainerExited(BOX, ExitStatus(3))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(backend.events()), 0.02)
    await backend.close()
