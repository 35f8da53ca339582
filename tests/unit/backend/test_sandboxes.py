"""Sandboxes of a handler: a note and a cgroup each, an init that is watched, nothing left of a failure."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from polypod.backend import sandboxes as room
from polypod.backend.cgroups import Cgroups, Hierarchies
from polypod.backend.containers import Container, Containers
from polypod.backend.sandboxes import Sandboxes, read_note
from polypod.plugin import (
    BackendError,
    ContainerId,
    Launched,
    NotFound,
    PodMetadata,
    ProcessId,
    RuntimeContext,
    SandboxConfig,
    SandboxDied,
    SandboxId,
    SandboxNamespaces,
    SandboxSpec,
)
from polypod.testing.fake_supervisor import FakeSupervisor

POD = SandboxId("a" * 64)


@pytest.fixture(autouse=True)
def no_mounts(monkeypatch):
    """A pod here has no shared memory: it is nobody's business whether the caller may unmount."""
    monkeypatch.setattr(room, "unmount", lambda _path: None)


def opened(place: Path, supervisor=None) -> tuple[Sandboxes, Containers]:
    (place / "cgroup").mkdir(exist_ok=True)
    context = RuntimeContext("box", {}, place, place, "/ours", supervisor or FakeSupervisor())
    where = place / "cgroup"
    cgroups = Cgroups(Hierarchies(2, {"pids": where, "memory": where}, (where,)))
    containers = Containers(context, cgroups)
    return Sandboxes(context, cgroups, containers), containers


def spec(place: Path, namespaces: SandboxNamespaces | None = None) -> SandboxSpec:
    config = SandboxConfig(PodMetadata("pod", "uid", "default"))
    return SandboxSpec(POD, config, namespaces, place / POD, f"/ours/{POD}")


async def test_one_comes_and_goes(tmp_path):
    known, _ = opened(tmp_path)
    with pytest.raises(NotFound, match="'box'"):
        known.known(POD)
    await known.create(spec(tmp_path))
    assert known.known(POD).cgroup == f"/ours/{POD}"
    assert (tmp_path / "cgroup/ours" / POD).is_dir()
    assert known.health() == {POD: True}
    await known.stop(POD)
    await known.remove(POD, none_to_delete)
    assert known.health() == {}
    assert list((tmp_path / "sandboxes").iterdir()) == []
    assert not (tmp_path / "cgroup/ours" / POD).exists()
    await known.stop(POD)
    await known.remove(POD, none_to_delete)
    await known.close()


async def none_to_delete(container_id: ContainerId) -> None:
    raise AssertionError(container_id)


async def test_containers_that_are_left_go_with_it(tmp_path):
    known, containers = opened(tmp_path)
    await known.create(spec(tmp_path))
    box = Container(ContainerId("b" * 64), POD, f"/ours/{POD}/b")
    containers.add(box, Launched(ProcessId(box.id), 1, 1, -1))
    deleted = []

    async def delete(container_id: ContainerId) -> None:
        deleted.append(container_id)

    await known.remove(POD, delete)
    assert deleted == [box.id]
    await known.close()
    await containers.close()


async def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def refuse(self, path):
        (tmp_path / "cgroup" / path.strip("/")).mkdir(parents=True)
        raise BackendError(f"cgroup {path}: no space")

    monkeypatch.setattr(Cgroups, "create", refuse)
    known, _ = opened(tmp_path)
    with pytest.raises(BackendError, match="no space"):
        await known.create(spec(tmp_path))
    assert known.health() == {}
    assert list((tmp_path / "sandboxes").iterdir()) == []
    assert not (tmp_path / "cgroup/ours" / POD).exists()


async def test_notes_are_read_back(tmp_path):
    first, _ = opened(tmp_path)
    await first.create(spec(tmp_path))
    (tmp_path / "sandboxes" / ("c" * 64)).write_text('{"cgr')
    second, _ = opened(tmp_path)
    await second.restore()
    assert second.health() == {POD: True, "c" * 64: False}
    assert second.known(POD).cgroup == f"/ours/{POD}"
    await second.remove(SandboxId("c" * 64), none_to_delete)  # half a note: it can be removed
    assert second.health() == {POD: True}


async def test_the_end_of_an_init_is_told_unless_it_was_asked_for(tmp_path):
    for asked in (False, True):
        place = tmp_path / str(asked)
        place.mkdir()
        known, containers = opened(place)
        with subprocess.Popen(["sleep", "100"]) as init:
            pids = os.open("/proc/self/ns/pid", os.O_RDONLY)
            await known.create(
                spec(place, SandboxNamespaces(POD, {"pid": pids}, init_pid=init.pid))
            )
            os.close(pids)
            assert known.health() == {POD: True}
            if asked:
                await known.stop(POD)
            init.kill()
        try:
            event = await asyncio.wait_for(anext(containers.events()), 0.05 if asked else 10)
        except TimeoutError:
            assert asked
        else:
            assert event == SandboxDied(POD, "the init of its process namespace was killed")
        assert known.health() == {POD: asked}
        await known.close()


async def test_an_init_that_is_gone_when_the_daemon_comes_back(tmp_path):
    (tmp_path / "sandboxes").mkdir()
    (tmp_path / "sandboxes" / POD).write_text('{"cgroup": "/ours/x", "shm": "/x", "init": true}')
    known, _ = opened(tmp_path)
    await known.restore()
    assert known.health() == {POD: False}


@pytest.mark.parametrize("text", [None, "", "{", "[]", "7"])
def test_what_is_no_note_says_nothing(tmp_path, text):
    if text is not None:
        (tmp_path / "note").write_text(text)
    assert read_note(tmp_path / "note") == {}
