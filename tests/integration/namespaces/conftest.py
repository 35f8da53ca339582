"""Busybox once for the run, a bench for each test, a decoy on the host."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.containment import Bench, Pod
from support.containment_parts import Decoy
from support.namespaces import busybox_root

from polypod.backend.cgroups import Cgroups, discover
from polypod.processes.host import ProcessHost


@pytest.fixture(scope="session")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox_root(tmp_path_factory.mktemp("busybox"))


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keeper, supervisor and logger of a whole file; each test is a daemon that comes and goes."""
    state = tmp_path_factory.mktemp("processes")

    async def visit(end: bool) -> None:
        host = await ProcessHost.open(state)
        await host.shutdown() if end else host.close()

    asyncio.run(visit(False))
    yield state
    asyncio.run(visit(True))


@pytest.fixture
async def bench(tmp_path: Path, busybox: Path, processes: Path) -> AsyncIterator[Bench]:
    parent = f"/polypod-test-{secrets.token_hex(4)}"
    host = await ProcessHost.open(processes)
    made = await Bench.open(tmp_path, busybox, host, parent)
    yield made
    await made.close()
    left = [each.process_id for each in await host.supervisor.processes()]
    pinned = await host.supervisor.list_namespaces()
    host.close()
    Cgroups(discover()).remove(parent)
    assert (left, pinned) == ([], [])


@pytest.fixture
async def pod(bench: Bench) -> Pod:
    return await bench.pod()


@pytest.fixture
def decoy(tmp_path: Path) -> Decoy:
    return Decoy(tmp_path / "decoy")
