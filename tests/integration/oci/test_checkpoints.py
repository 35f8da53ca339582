"""Checkpoints by runc and CRIU: as far as this host's CRIU goes, and clear words from there on."""

from __future__ import annotations

import asyncio
import shutil
import subprocess

import pytest

from polypod.plugin.errors import FailedPrecondition
from polypod.plugin.runtime import BackendState, Checkpointable
from polypod.testing.runtime_checks_lifecycle import LOOP

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_overlay,
    pytest.mark.needs_busybox,
    pytest.mark.needs_runc,
]


@pytest.fixture
def program() -> str:
    """Debian's crun has no checkpoints."""
    return "runc"


@pytest.fixture
async def sandbox(lab):
    return await lab.sandbox()


@pytest.fixture
async def box(lab, sandbox):
    made = await lab.box(sandbox, lab.script(LOOP))
    await lab.backend.create(made.spec)
    await made.start()
    return made


def cpu(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def criu_works() -> bool:
    if shutil.which("criu") is None:
        return False
    return subprocess.run(["criu", "check"], capture_output=True, check=False).returncode == 0


async def test_the_class_says_that_it_can(lab):
    assert isinstance(lab.backend, Checkpointable)


async def test_what_is_frozen_stands_still_and_goes_on(lab, box):
    status = await lab.backend.status(box.id)
    await lab.backend.freeze([box.id])
    states = []
    for _ in range(3):
        with open(f"/proc/{status.pid}/stat") as file:
            states.append(file.read().rpartition(")")[2].split()[0])
        await asyncio.sleep(0.05)
    before = cpu(status.pid)
    await asyncio.sleep(0.2)
    assert cpu(status.pid) == before
    assert set(states) <= {"D", "S"}
    await lab.backend.thaw([box.id])
    await lab.backend.thaw([box.id])
    assert (await lab.backend.status(box.id)).state is BackendState.RUNNING


async def test_one_that_cannot_be_frozen_leaves_the_others_moving(lab, sandbox, box):
    other = await lab.box(sandbox, lab.script(LOOP))
    with pytest.raises(Exception, match=str(other.id)):
        await lab.backend.freeze([box.id, other.id])
    assert not await lab.backend._calls.is_paused(box.id)


async def test_another_daemon_lets_go_on_what_a_dead_one_froze(lab, box):
    await lab.backend.freeze([box.id])
    await lab.restart()
    assert not await lab.backend._calls.is_paused(box.id)
    assert (await lab.backend.status(box.id)).state is BackendState.RUNNING


async def test_a_capture_is_whole_or_says_what_criu_said(lab, box, tmp_path):
    place = tmp_path / "captured"
    place.mkdir()
    works = criu_works()
    await lab.backend.freeze([box.id])
    if works:
        await lab.backend.capture(box.id, place)
        assert list((place / "criu").glob("core-*.img"))
    else:
        with pytest.raises(FailedPrecondition, match=r"(?s)runc checkpoint .*; CRIU"):
            await lab.backend.capture(box.id, place)
    await lab.backend.thaw([box.id])
    assert (await lab.backend.status(box.id)).state is BackendState.RUNNING
    assert not (lab.backend._calls.bundle(box.id).path / "criu-work").exists()


async def test_restoring_is_off_unless_the_handler_allows_it(lab, sandbox, box, tmp_path):
    other = await lab.box(sandbox, lab.script(LOOP))
    with pytest.raises(FailedPrecondition, match=r"options\.restore = true"):
        await lab.backend.restore(other.spec, tmp_path)
    lab.backend._calls.tool.restores = True
    with pytest.raises(FailedPrecondition, match="runc restore"):
        await lab.backend.restore(other.spec, tmp_path)
    assert other.id not in (await lab.backend.list()).containers
