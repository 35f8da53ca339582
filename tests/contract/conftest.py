"""Keeper, supervisor and logger once per file: each check is a daemon that comes, and leaves nothing in them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from polypod.processes.host import ProcessHost


@contextlib.contextmanager
def three_processes(state: Path) -> Iterator[Path]:
    """Keeper, supervisor and logger on a directory; they end with the context."""

    async def visit(*, end: bool) -> None:
        host = await ProcessHost.open(state)
        await host.shutdown() if end else host.close()

    asyncio.run(visit(end=False))
    yield state
    asyncio.run(visit(end=True))


@contextlib.asynccontextmanager
async def visited(processes: Path) -> AsyncIterator[ProcessHost]:
    """A connection to them; a process or a namespace that a check leaves there fails it."""
    opened = await ProcessHost.open(processes)
    yield opened
    left = [each.process_id for each in await opened.supervisor.processes()]
    pinned = await opened.supervisor.list_namespaces()
    opened.close()
    assert (left, pinned) == ([], [])


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The three, for a whole file."""
    with three_processes(tmp_path_factory.mktemp("processes")) as state:
        yield state


@pytest.fixture(scope="module")
def more_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Three others beside them, for checks that run two at a time."""
    with three_processes(tmp_path_factory.mktemp("more")) as state:
        yield state


@pytest.fixture
async def host(processes: Path) -> AsyncIterator[ProcessHost]:
    """A connection to the three."""
    async with visited(processes) as opened:
        yield opened


@pytest.fixture
async def other_host(more_processes: Path) -> AsyncIterator[ProcessHost]:
    """A connection to the three others."""
    async with visited(more_processes) as opened:
        yield opened
