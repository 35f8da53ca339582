"""Keeper, supervisor and logger once per file: each check is a daemon that comes, and leaves nothing in them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from polypod.processes.host import ProcessHost


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The three, for a whole file."""
    state = tmp_path_factory.mktemp("processes")

    async def visit(*, end: bool) -> None:
        host = await ProcessHost.open(state)
        await host.shutdown() if end else host.close()

    asyncio.run(visit(end=False))
    yield state
    asyncio.run(visit(end=True))


@pytest.fixture
async def host(processes: Path) -> AsyncIterator[ProcessHost]:
    """A connection to them; a process or a namespace that a check leaves there fails it."""
    opened = await ProcessHost.open(processes)
    yield opened
    left = [each.process_id for each in await opened.supervisor.processes()]
    pinned = await opened.supervisor.list_namespaces()
    opened.close()
    assert (left, pinned) == ([], [])
