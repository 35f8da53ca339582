"""A pull while its layer is unpacked: told of progress, and ended at once when nobody waits."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from support.images import image_of, layer_of

pytestmark = pytest.mark.needs_root

MANY = layer_of({f"d{number % 100}/f{number}": b"x" * 20 for number in range(60_000)})


def _worker(store):
    """Return the pid of the process that unpacks, 0 for none."""
    server = store._inventory._unpackers._server
    if server is None:
        return 0
    pid = server._process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else 0


async def test_a_cancelled_pull_ends_its_unpacking_at_once(stores, store, liar):
    """The process is stopped: only a kill can end it."""
    liar.add("demo/many", "1", image_of([MANY]))
    pull = asyncio.create_task(store.pull(f"{liar.address}/demo/many:1"))
    while not _worker(store):
        await asyncio.sleep(0.002)
    os.kill(_worker(store), signal.SIGSTOP)
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    assert await stores.settled([]) == []
    assert await store.list() == ()


async def test_unpacking_tells_how_far_it_is(store, liar):
    liar.add("demo/many", "1", image_of([MANY]))
    steps = []
    await store.pull(f"{liar.address}/demo/many:1", progress=steps.append)
    told = [each.done_bytes for each in steps if each.stage == "unpacking"]
    assert len(told) > 10
    assert told == sorted(told)
    assert 0 < told[-1] <= next(each.total_bytes for each in steps if each.stage == "unpacking")
