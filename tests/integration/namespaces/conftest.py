"""Busybox once for the run, a bench for each test, a decoy on the host."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.containment import Bench, Decoy, Pod
from support.namespaces import busybox_root

from polypod.processes.host import ProcessHost
from polypod_namespaces.cgroups import Cgroups, discover


@pytest.fixture(scope="session")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox_root(tmp_path_factory.mktemp("busybox"))


@pytest.fixture
async def bench(tmp_path: Path, busybox: Path) -> AsyncIterator[Bench]:
    parent = f"/polypod-test-{secrets.token_hex(4)}"
    host = await ProcessHost.open(tmp_path / "processes")
    made = await Bench.open(tmp_path, busybox, host, parent)
    yield made
    await made.close()
    Cgroups(discover()).remove(parent)


@pytest.fixture
async def pod(bench: Bench) -> Pod:
    return await bench.pod()


@pytest.fixture
def decoy(tmp_path: Path) -> Decoy:
    return Decoy(tmp_path / "decoy")
