"""A bench for one runtime: sandboxes and containers as core would ask for them."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from support.namespaces import busybox_root
from support.oci import OciSubject

from polypod.backend.cgroups import Cgroups, discover
from polypod.processes.host import ProcessHost
from polypod.testing.runtime_lab import RuntimeLab


@pytest.fixture(scope="session")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox_root(tmp_path_factory.mktemp("busybox"))


@pytest.fixture(
    params=[
        pytest.param("runc", marks=pytest.mark.needs_runc),
        pytest.param("crun", marks=pytest.mark.needs_crun),
    ]
)
def program(request) -> str:
    return request.param


@pytest.fixture
async def host(tmp_path):
    made = await ProcessHost.open(tmp_path / "processes")
    yield made
    await made.shutdown()


@pytest.fixture
async def lab(tmp_path, busybox, host, program):
    parent = f"/polypod-test-{secrets.token_hex(4)}"
    made = RuntimeLab(OciSubject(tmp_path, busybox, host, parent, program))
    await made.open()
    yield made
    await made.close()
    assert left_in(tmp_path) == []
    Cgroups(discover().with_unified()).end(parent)


def left_in(place: Path) -> list[str]:
    """Return the bundles and mounts that are there below a test's directory."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    bundles = [str(path) for path in (place / "state/bundles").glob("*")]
    return bundles + [each for each in mounts if each.startswith(f"{place}/")]
