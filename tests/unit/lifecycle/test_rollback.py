from __future__ import annotations

import asyncio

import pytest

from polypod.lifecycle.clock import SystemClock
from polypod.lifecycle.rollback import Rollback


def stack(deadline_s=5.0):
    return Rollback("test", SystemClock(), deadline_s=deadline_s)


async def failing(undo):
    async with undo:
        raise KeyError


async def test_rollback_undoes_newest_first_and_goes_on_after_a_failure():
    done = []

    def fail():
        done.append("fails")
        raise ValueError("no")

    undo = stack()
    undo.push("first", lambda: done.append("first"))
    undo.push("fails", fail)
    undo.push("last", lambda: done.append("last"))
    with pytest.raises(KeyError):
        await failing(undo)
    assert done == ["last", "fails", "first"]
    assert [name for name, _ in undo.failures] == ["fails"]


async def test_rollback_does_nothing_after_commit():
    done = []
    async with stack() as undo:
        undo.push("x", lambda: done.append("x"))
        undo.commit()
    assert done == []


async def test_rollback_survives_cancellation_however_often():
    done, begun, go = [], asyncio.Event(), asyncio.Event()

    async def slow():
        begun.set()
        await go.wait()
        done.append("slow")

    async def work():
        async with stack() as undo:
            undo.push("old", lambda: done.append("old"))
            undo.push("slow", slow)
            await asyncio.Event().wait()

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    for _ in range(3):
        task.cancel()
        await begun.wait()
        await asyncio.sleep(0)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["slow", "old"]


async def test_rollback_step_that_hangs_costs_its_deadline_alone():
    done = []
    undo = stack(deadline_s=0.01)
    undo.push("old", lambda: done.append("old"))
    undo.push("hangs", asyncio.Event().wait)
    with pytest.raises(KeyError):
        await failing(undo)
    assert done == ["old"]
    assert [name for name, _ in undo.failures] == ["hangs"]
