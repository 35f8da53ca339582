"""What a runtime's program leaves behind is taken over: alive, ended already, and across deaths of ours."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from polypod.plan.operations import Execute, Plan, StartSession, UseStdio
from polypod.plugin.errors import AlreadyExists, NotFound
from polypod.plugin.ids import ProcessId
from polypod.plugin.services import ExitStatus
from polypod.processes.host import ProcessHost

pytestmark = [pytest.mark.needs_root]

NAME = ProcessId("box")
# A shell may reap a child that ends before it does: this one ends as an orphan. ``$$`` is the shell.
ORPHANED = "while kill -0 $$ 2>/dev/null; do sleep 0.01; done"
LABELS = {"handler": "runc", "kind": "container"}


@pytest.fixture
async def host(tmp_path):
    made = await ProcessHost.open(tmp_path / "state")
    yield made
    await made.shutdown()


async def leave_behind(host: ProcessHost, directory: Path, script: str) -> int:
    """Run a program that starts another one, tells its pid in a file and ends, as runtimes do."""
    line = f"( {script} ) & echo $! > {directory}/pid"
    args = ["/bin/sh", "-c", line]
    plan = Plan(
        0,
        [
            StartSession(),
            UseStdio(stdin="", stdout="", stderr="", uid=-1),
            Execute(args=args, env=["PATH=/bin:/usr/bin"], search=False),
        ],
    )
    launched = await host.supervisor.execute(ProcessId("tool"), plan, fds=[])
    os.close(launched.pidfd)
    assert (await host.supervisor.wait(ProcessId("tool"))).code == 0
    await host.supervisor.forget(ProcessId("tool"))
    return int((directory / "pid").read_text())


async def adopt(host: ProcessHost, pid: int) -> int:
    launched = await host.supervisor.adopt(NAME, pid, labels=LABELS)
    assert launched.pid == pid
    return launched.pidfd


def assert_end(status: ExitStatus, code: int, number: int = 0) -> None:
    assert (status.code, status.signal) == (code, number)
    assert status.finished_at_ns > 0


async def gone(pid: int) -> None:
    async with asyncio.timeout(20):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.01)


async def test_one_that_lives_is_taken_over(host, tmp_path):
    pid = await leave_behind(host, tmp_path, "sleep 1000")
    pidfd = await adopt(host, pid)
    (found,) = await host.supervisor.processes()
    assert (found.process_id, found.pid, found.labels, found.exit) == (NAME, pid, LABELS, None)
    await host.supervisor.kill(NAME, signal.SIGTERM)
    assert_end(await host.supervisor.wait(NAME), 143, 15)
    os.close(pidfd)


async def test_one_that_has_ended_is_found_with_its_code(host, tmp_path):
    pid = await leave_behind(host, tmp_path, f"{ORPHANED}; exit 7")
    await gone(pid)
    assert await adopt(host, pid) == -1
    assert_end(await host.supervisor.wait(NAME), 7)
    (found,) = await host.supervisor.processes()
    assert found.exit is not None
    assert_end(found.exit, 7)
    await host.supervisor.forget(NAME)
    with pytest.raises(NotFound):
        await host.supervisor.adopt(NAME, pid)
    assert await host.supervisor.processes() == []


async def test_the_end_is_told_once(host, tmp_path):
    pid = await leave_behind(host, tmp_path, f"{ORPHANED}; exit 3")
    told = []

    async def listen():
        async for each in host.supervisor.exits():
            told.append((each.process_id, each.status.code))

    listener = asyncio.create_task(listen())
    await gone(pid)
    await adopt(host, pid)
    await host.supervisor.wait(NAME)
    await asyncio.sleep(0.1)
    listener.cancel()
    assert [each for each in told if each[0] == NAME] == [(NAME, 3)]


async def test_a_pid_of_nobody_is_refused(host):
    with pytest.raises(NotFound, match="no child 4194304"):
        await host.supervisor.adopt(NAME, 4194304)
    assert await host.supervisor.processes() == []


async def test_an_id_is_taken_once(host, tmp_path):
    pid = await leave_behind(host, tmp_path, "sleep 1000")
    os.close(await adopt(host, pid))
    with pytest.raises(AlreadyExists):
        await host.supervisor.adopt(NAME, pid)
    await host.supervisor.kill(NAME, signal.SIGKILL)
    await host.supervisor.wait(NAME)


@pytest.mark.parametrize("victims", [("supervisor",), ("keeper",), ("supervisor", "keeper")])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_deaths_of_ours_lose_nothing(host, tmp_path, victims, when):
    script = f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; exit 9"
    pid = await leave_behind(host, tmp_path, script)
    pids = await host.pids()
    if when == "after":
        os.close(await adopt(host, pid))
    for role in victims:
        os.kill(pids[role], signal.SIGKILL)
    if when == "before":
        os.close(await adopt(host, pid))
    (tmp_path / "go").touch()
    assert_end(await host.supervisor.wait(NAME), 9)
    (found,) = await host.supervisor.processes()
    assert found.exit is not None
    assert_end(found.exit, 9)


async def test_another_daemon_finds_it(host, tmp_path):
    pid = await leave_behind(
        host, tmp_path, f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; exit 5"
    )
    os.close(await adopt(host, pid))
    later = await ProcessHost.open(tmp_path / "state")
    try:
        (found,) = await later.supervisor.processes()
        assert (found.process_id, found.pid, found.labels) == (NAME, pid, LABELS)
        (tmp_path / "go").touch()
        assert_end(await later.supervisor.wait(NAME), 5)
    finally:
        later.close()
