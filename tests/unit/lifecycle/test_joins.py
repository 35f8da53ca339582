"""Joins: work that goes on without its callers, and work that ends with the last of them."""

from __future__ import annotations

import asyncio

import pytest

from polypod.lifecycle.names import Joins
from polypod.plugin.errors import NotFound, Unavailable


class Work:
    """Something that waits until it is let go; notes how often it began and was cancelled."""

    def __init__(self):
        self.go = asyncio.Event()
        self.began = 0
        self.cancelled = 0

    async def __call__(self):
        self.began += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.began


async def started(*calls):
    """Return tasks that have all begun to wait."""
    tasks = [asyncio.create_task(each) for each in calls]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_run_goes_on_when_every_caller_has_left():
    joins, work = Joins(), Work()
    (task,) = await started(joins.run("k", work))
    task.cancel()
    await asyncio.wait({task})
    assert joins.running("k")
    work.go.set()
    assert await joins.run("k", work) == 1


async def test_share_is_one_work_and_ends_with_the_last_caller():
    joins, work = Joins(), Work()
    first, second = await started(joins.share("k", work), joins.share("k", work))
    first.cancel()
    await asyncio.wait({first})
    assert (work.began, work.cancelled) == (1, 0)
    second.cancel()
    await asyncio.wait({second})
    await asyncio.sleep(0)
    assert (work.cancelled, joins.running("k")) == (1, False)


async def test_who_comes_after_an_abandoned_work_begins_anew():
    joins, work = Joins(), Work()
    (left,) = await started(joins.share("k", work))
    left.cancel()
    (fresh,) = await started(joins.share("k", work))
    work.go.set()
    assert await fresh == 2
    assert not joins.running("k")


async def test_share_gives_everybody_the_error():
    joins = Joins()

    async def fail():
        await asyncio.sleep(0)
        raise NotFound("no")

    tasks = await started(joins.share("k", fail), joins.share("k", fail))
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in done] == [NotFound, NotFound]


async def test_close_ends_what_is_shared():
    joins, work = Joins(), Work()
    (task,) = await started(joins.share("k", work))
    await joins.close(0)
    with pytest.raises(Unavailable):
        await task
