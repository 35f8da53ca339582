"""runc and crun where the contract suite does not look: failures, deaths, what is left."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from integration.oci.conftest import left_in

from polypod.plugin.errors import BackendError, InvalidArgument, PolypodError, Unsupported
from polypod.plugin.ids import ExecId, new_id
from polypod.plugin.oci import Namespace, OciMount, Process
from polypod.plugin.requests import Resources
from polypod.plugin.runtime import BackendState, ExecSpec, Feature, Narrowed
from polypod.plugin.services import Stdio
from polypod.spec.namespaces import container_namespace
from polypod.testing.runtime_checks_lifecycle import LOOP
from polypod.testing.runtime_lab import Wanted

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay, pytest.mark.needs_busybox]


def with_mount(spec, mount: OciMount):
    return replace(spec, config=replace(spec.config, mounts=(*spec.config.mounts, mount)))


def in_pids(spec, path: str):
    """Return a container in another pid namespace; a new one without a path."""
    kept = [each for each in spec.config.linux.namespaces if each.type != "pid"]
    linux = replace(spec.config.linux, namespaces=(*kept, Namespace("pid", path)))
    return replace(spec, config=replace(spec.config, linux=linux))


async def run_box(lab, sandbox, script: str, path: str | None = None):
    """Run a script in the pid namespace of a path."""
    box = await lab.box(sandbox, lab.script(script))
    if path is not None:
        box.spec = in_pids(box.spec, path)
    await lab.backend.create(box.spec)
    await box.start()
    return box


async def gone(pid: int) -> None:
    async with asyncio.timeout(20):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.01)


# Failures


async def test_an_error_has_the_runtimes_name_and_words(lab, program, tmp_path):
    sandbox = await lab.sandbox()
    box = await lab.box(sandbox, lab.script(LOOP))
    missing = OciMount("/volume", "bind", f"{tmp_path}/gone", ("rbind",))
    with pytest.raises(BackendError, match=rf"^{program} create ended with 1: .*gone") as refusal:
        await lab.backend.create(with_mount(box.spec, missing))
    assert "{" not in str(refusal.value)
    assert left_in(tmp_path) == [f"{sandbox.directory}/shm"]
    assert [each.process_id for each in await lab.subject._host.supervisor.processes()] == []


async def test_a_mount_that_cannot_propagate_is_refused(lab, tmp_path):
    box = await lab.box(await lab.sandbox(), lab.script(LOOP))
    mount = OciMount("/volume", "bind", str(tmp_path), ("rbind", "rslave"))
    with pytest.raises(InvalidArgument, match="/volume"):
        await lab.backend.create(with_mount(box.spec, mount))


async def test_bytes_that_json_cannot_hold_are_refused_and_nothing_is_left(lab, tmp_path):
    sandbox = await lab.sandbox()
    box = await lab.box(sandbox, replace(lab.script(LOOP), env=("RAW=\udcff",)))
    with pytest.raises(Unsupported, match="UTF-8"):
        await lab.backend.create(box.spec)
    assert left_in(tmp_path) == [f"{sandbox.directory}/shm"]


async def test_a_create_that_is_cancelled_leaves_nothing(lab, host, tmp_path):
    sandbox = await lab.sandbox()
    for delay_s in (0.0, 0.005, 0.02, 0.04):
        box = await lab.box(sandbox, lab.script(LOOP))
        creating = asyncio.create_task(lab.backend.create(box.spec))
        await asyncio.sleep(delay_s)
        creating.cancel()
        try:
            await creating
        except asyncio.CancelledError:
            assert await lab.state(box.id) is None
        else:
            await box.delete()
        box.release()
        await box.silent()
    assert [each for each in left_in(tmp_path) if not each.endswith("/shm")] == []
    assert list(await host.supervisor.processes()) == []


async def test_a_limit_that_is_impossible_changes_nothing(lab):
    box = await lab.run(await lab.sandbox(), replace(lab.script(LOOP), memory_limit_bytes=64 << 20))
    with pytest.raises(PolypodError):
        await lab.backend.update(box.id, Resources(cpuset_cpus="4000"))
    assert (await box.status()).state is BackendState.RUNNING


# Deaths


async def test_what_was_only_half_made_is_removed_by_the_next_daemon(lab, host, tmp_path):
    box = await lab.create(await lab.sandbox(), LOOP)
    pid = (await box.status()).pid

    async def unadopt() -> None:
        """Leave what a daemon leaves that dies between the runtime's answer and the adoption."""
        await host.supervisor.forget(box.id)

    await lab.restart(while_away=unadopt)
    assert await lab.state(box.id) is None
    await gone(pid)
    assert [each for each in left_in(tmp_path) if not each.endswith("/shm")] == []


async def test_a_created_container_is_created_after_a_restart_and_can_be_started(lab):
    box = await lab.create(await lab.sandbox(), "exit 6")
    await lab.restart()
    assert await lab.state(box.id) is BackendState.CREATED
    await box.start()
    assert (await box.ended()).status.code == 6


async def test_an_exec_of_a_lost_daemon_is_ended(lab, host):
    box = await lab.run(await lab.sandbox(), LOOP)
    _session, output = await lab.exec(box, "echo ready; sleep 1000")
    await lab.restart()
    async with asyncio.timeout(20):
        while not output.ended:
            await asyncio.sleep(0.01)
    assert [each.process_id for each in await host.supervisor.processes()] == [box.id]
    assert (await box.status()).state is BackendState.RUNNING


@pytest.mark.parametrize("victims", [("supervisor",), ("keeper",), ("keeper", "supervisor")])
async def test_deaths_of_keeper_and_supervisor_lose_no_code(lab, host, victims):
    box = await lab.run(await lab.sandbox(), "echo ready; read go; exit 9", stdin=True)
    await box.says(b"ready")
    pids = await host.pids()
    for role in victims:
        os.kill(pids[role], signal.SIGKILL)
    box.end_input()
    assert (await box.ended()).status.code == 9
    await host.supervisor.processes()  # answers again before the clean-up asks for more


async def test_the_first_process_killed_from_outside_is_told(lab):
    box = await lab.run(await lab.sandbox(), LOOP)
    os.kill((await box.status()).pid, signal.SIGKILL)
    status = (await box.ended()).status
    assert (status.code, status.signal) == (137, 9)


async def test_a_dead_init_is_told(lab):
    sandbox = await lab.sandbox()
    assert sandbox.namespaces is not None
    os.kill(sandbox.namespaces.init_pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        while await lab.healthy(sandbox.id):
            await asyncio.sleep(0.01)
    assert [each.sandbox_id for each in lab.events] == [sandbox.id]


async def test_one_that_the_runtime_cannot_delete_goes_all_the_same(lab, tmp_path):
    box = await lab.run(await lab.sandbox(), LOOP)
    for name in ("state.json", "status"):
        for path in (tmp_path / "state/runtime" / box.id).glob(name):
            path.write_text("broken")
    await box.delete()
    await box.silent()
    assert await lab.state(box.id) is None
    assert not (tmp_path / "state/runtime" / box.id).exists()
    assert not (lab.backend._cgroups.tracking / box.spec.cgroup.strip("/")).exists()


# Namespaces, execs, features


async def test_another_containers_processes_can_be_joined(lab):
    sandbox = await lab.sandbox()
    target = await run_box(lab, sandbox, "echo ready; sleep 1000", "")
    await target.says(b"ready")
    joined = await run_box(lab, sandbox, "ps; exit 4", container_namespace(target.id))
    assert (await joined.ended()).status.code == 4
    assert b"sleep 1000" in (await joined.text())[0]


async def test_a_container_with_pids_of_its_own_ends_whole_with_its_first_process(lab):
    box = await run_box(lab, await lab.sandbox(), "sleep 1000 & echo $$; exit 2", "")
    assert (await box.ended()).status.code == 2
    await box.silent()
    assert (await box.text())[0] == b"1\n"


async def test_the_cgroup_of_an_exec_goes_with_it(lab):
    box = await lab.run(await lab.sandbox(), LOOP)
    session, _ = await lab.exec(box, "exit 0")
    await session.wait()
    pids = lab.backend._cgroups.tracking / box.spec.cgroup.strip("/")
    async with asyncio.timeout(20):  # nobody waits for that: an exec is answered before
        while list(pids.glob("exec-*")):
            await asyncio.sleep(0.01)


async def test_an_exec_has_a_terminal_that_can_be_resized(lab):
    import socket

    box = await lab.run(await lab.sandbox(), LOOP)
    words = ("sh", "-c", "read go; stty size; exit 3")
    process = Process(words, (f"PATH={lab.subject.path}",), terminal=True)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stdio = Stdio(console=theirs.fileno())
        spec = ExecSpec(ExecId(new_id()), box.id, process, stdio, box.spec.config)
        session = await lab.execs.exec(spec)
        _data, fds, _flags, _peer = socket.recv_fds(ours, 100, 2)
    (master,) = fds
    try:
        await session.resize(width=123, height=45)
        os.write(master, b"go\n")
        assert (await session.wait()).code == 3
        assert b"45 123" in os.read(master, 4096)
    finally:
        os.close(master)


async def test_features_are_those_of_the_binary(lab, program):
    assert isinstance(lab.backend, Narrowed)
    # crun 1.8 has no command that tells them, so only what runtime-spec 1.0 obliges it to counts.
    told = {"runc": True, "crun": False}[program]
    assert (Feature.RECURSIVE_READ_ONLY in lab.backend.features) is told
    assert Feature.SECCOMP in lab.backend.features


async def test_a_command_that_fails_in_the_background_is_seen(lab):
    wanted = Wanted(("sh", "-c", "exit 1"))
    box = await lab.finished(await lab.sandbox(), wanted)
    assert (await box.ended()).status.code == 1
    await lab.backend.kill(box.id, signal.SIGTERM)
