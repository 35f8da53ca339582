"""Events: what is told, in which order, and what becomes of a reader that falls behind."""

import asyncio

import pytest

from polypod.lifecycle.feed import Feed
from polypod.lifecycle.parts import Settings
from polypod.lifecycle.views import EventKind
from polypod.plugin.errors import BackendError, ResourceExhausted, Unavailable

K = EventKind


async def taken(reader, number):
    """Return the next events, as (id, kind)."""
    stream = reader.events()
    return [(each.object_id, each.kind) for each in [await anext(stream) for _ in range(number)]]


async def test_a_life_is_told_once_in_order(bench):
    reader = bench.core.open_events()
    sandbox = await bench.core.run_sandbox(bench.sandbox_config(), "")
    container = await bench.core.create_container(sandbox, bench.container_config(), None)
    await bench.core.start_container(container)
    await bench.core.stop_container(container, 0)
    await bench.core.remove_container(container)
    await bench.core.stop_sandbox(sandbox)
    await bench.core.remove_sandbox(sandbox)
    assert await taken(reader, 8) == [
        (sandbox, K.CREATED),
        (sandbox, K.STARTED),
        (container, K.CREATED),
        (container, K.STARTED),
        (container, K.STOPPED),
        (container, K.DELETED),
        (sandbox, K.STOPPED),
        (sandbox, K.DELETED),
    ]
    assert not reader._events


async def test_what_was_undone_is_not_told(bench):
    reader = bench.core.open_events()
    bench.world.faults.errors["create_sandbox"] = [BackendError("no")]
    with pytest.raises(BackendError):
        await bench.core.run_sandbox(bench.sandbox_config(), "")
    sandbox = await bench.core.run_sandbox(bench.sandbox_config(), "")
    assert await taken(reader, 2) == [(sandbox, K.CREATED), (sandbox, K.STARTED)]


async def test_events_hold_the_state_of_their_moment(bench):
    reader = bench.core.open_events()
    sandbox = await bench.core.run_sandbox(bench.sandbox_config(), "")
    container = await bench.core.create_container(sandbox, bench.container_config(), None)
    await bench.core.start_container(container)
    stream = reader.events()
    events = [await anext(stream) for _ in range(4)]
    assert [[each.state for each in event.containers] for event in events] == [
        [],
        [],
        ["created"],
        ["running"],
    ]


async def test_a_reader_that_falls_behind_loses_its_stream_alone(bench):
    await bench.stop()
    bench.settings = Settings(close_s=0.05, events_behind=3)
    await bench.start()
    slow, quick = bench.core.open_events(), bench.core.open_events()
    stream = quick.events()
    seen = []
    for name in ("a", "b"):
        await bench.core.run_sandbox(bench.sandbox_config(name), "")
        seen += [await anext(stream), await anext(stream)]
    assert len(seen) == 4
    with pytest.raises(ResourceExhausted, match="4 events"):
        await anext(slow.events())
    assert not slow._events, "what nobody will read is kept"


async def test_a_closed_reader_is_told_nothing(bench):
    reader = bench.core.open_events()
    reader.close()
    reader.close()
    await bench.core.run_sandbox(bench.sandbox_config(), "")
    assert not reader._events
    assert not bench.core._heart.feed.readers


async def test_a_server_that_leaves_ends_the_streams(bench):
    reader = bench.core.open_events()
    waiting = asyncio.ensure_future(anext(reader.events()))
    await asyncio.sleep(0)
    bench.core.end_events()
    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(Unavailable):
        bench.core.open_events()


def test_times_never_go_back_or_repeat():
    class Clock:
        times = iter([5, 5, 3, 9])

        def now_ns(self):
            return next(self.times)

    feed = Feed(Clock(), 1)
    assert [feed.stamp() for _ in range(4)] == [5, 6, 7, 9]
