"""The fake supervisor takes over what was left behind, as the real one does."""

from __future__ import annotations

import asyncio

import pytest

from polypod.plan.operations import Execute, Plan
from polypod.plugin.errors import AlreadyExists, NotFound
from polypod.plugin.ids import ProcessId
from polypod.testing.fake_supervisor import FakeSupervisor

NAME = ProcessId("box")


def plan(*args: str) -> Plan:
    return Plan(0, [Execute(args=list(args), env=[], search=True)])


async def test_one_that_lives():
    supervisor = FakeSupervisor()
    pid = supervisor.bear(plan("sleep", "inf"))
    assert await supervisor.processes() == []
    await supervisor.adopt(NAME, pid, labels={"a": "b"})
    (found,) = await supervisor.processes()
    assert (found.process_id, found.pid, found.labels) == (NAME, pid, {"a": "b"})
    await supervisor.kill(NAME, 15)
    assert (await supervisor.wait(NAME)).code == 143


async def test_one_that_has_ended_is_told_once_it_has_a_name():
    supervisor = FakeSupervisor()
    pid = supervisor.bear(plan("sh", "-c", "exit 7"))
    told = []

    async def listen() -> None:
        async for each in supervisor.exits():
            told.append((each.process_id, each.status.code))

    listener = asyncio.create_task(listen())
    for _ in range(20):
        await asyncio.sleep(0)
    assert told == []
    launched = await supervisor.adopt(NAME, pid)
    assert launched.pidfd == -1
    assert (await supervisor.wait(NAME)).code == 7
    for _ in range(5):
        await asyncio.sleep(0)
    assert told == [(NAME, 7)]
    listener.cancel()


async def test_what_is_not_there_and_what_is_taken():
    supervisor = FakeSupervisor()
    with pytest.raises(NotFound):
        await supervisor.adopt(NAME, 1)
    pid = supervisor.bear(plan("true"))
    await supervisor.adopt(NAME, pid)
    with pytest.raises(NotFound):
        await supervisor.adopt(ProcessId("other"), pid)
    with pytest.raises(AlreadyExists):
        await supervisor.adopt(NAME, supervisor.bear(plan("true")))
