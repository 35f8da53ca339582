"""The ends of containers: each is told once, of a program that ran, and a restart finds what was missed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from polypod.backend.cgroups import Cgroups, Hierarchies
from polypod.backend.containers import Container, Containers, end_process, executes, pidfd_of
from polypod.plugin import (
    BackendError,
    BackendState,
    ContainerExited,
    ContainerId,
    ExitStatus,
    Launched,
    LiveProcess,
    NotFound,
    ProcessId,
    RuntimeContext,
    SandboxId,
)

BOX = ContainerId("b" * 64)
POD = SandboxId("a" * 64)


class Quick:
    """A supervisor of one process, whose program may end some moments before a call is answered."""

    def __init__(self, moments: int = 0) -> None:
        self.ended: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self.forgotten: list[str] = []
        self.gone = False
        self._moments = moments

    async def wait(self, _process_id):
        return await self.ended

    async def release(self, _process_id):
        self.ended.set_result(ExitStatus(3))
        for _ in range(self._moments):
            await asyncio.sleep(0.001)

    async def kill(self, process_id, number):
        if self.gone:
            raise NotFound(process_id)
        if not self.ended.done():
            self.ended.set_result(ExitStatus(128 + number, number))

    async def forget(self, process_id):
        self.forgotten.append(process_id)


def containers(place: Path, supervisor: Quick) -> Containers:
    context = RuntimeContext("box", {}, place, place, "/polypod-none", supervisor)
    return Containers(context, Cgroups(Hierarchies(2, {"pids": place, "memory": place}, (place,))))


def added(known: Containers, **facts) -> Container:
    container = Container(BOX, POD, "/none", **facts)
    known.add(container, Launched(ProcessId(BOX), 1, 1, -1))
    return container


async def told(known: Containers) -> list:
    """Return the events so far."""
    found = []
    stream = known.events()
    while True:
        try:
            found.append(await asyncio.wait_for(anext(stream), 0.02))
        except TimeoutError:
            return found


@pytest.mark.parametrize("moments", [0, 1, 200])
async def test_an_exit_before_the_answer_of_start_is_told_once(tmp_path: Path, moments: int):
    supervisor = Quick(moments)
    known = containers(tmp_path, supervisor)
    container = added(known, own_pids=True)
    await supervisor.release(container.process_id)
    known.mark_started(container)
    await known.gone(container)
    assert await told(known) == [ContainerExited(BOX, ExitStatus(3))]
    await known.close()


async def test_a_program_that_never_ran_has_no_exit_to_tell(tmp_path):
    known = containers(tmp_path, Quick())
    container = added(known)
    known.mark_failed(container)
    assert container.status().state is BackendState.STOPPED
    assert container.exit is not None
    assert container.exit.code == 127
    await known.end(container)  # nothing is killed, nothing is waited for
    assert await told(known) == []
    await known.close()


async def test_states_and_their_errors(tmp_path):
    supervisor = Quick()
    known = containers(tmp_path, supervisor)
    with pytest.raises(NotFound, match="'box'"):
        known.known(BOX)
    container = added(known)
    with pytest.raises(BackendError, match="does not run"):
        known.alive(BOX)
    assert known.mark_started(container).state is BackendState.RUNNING
    assert known.alive(BOX) is container
    assert known.of(POD) == [container]
    assert known.of(SandboxId("other")) == []
    await known.end(container)
    assert container.exit == ExitStatus(137, signal.SIGKILL)
    with pytest.raises(BackendError, match="does not run"):
        known.alive(BOX)
    await known.forget(container)
    assert known.get(BOX) is None
    assert supervisor.forgotten == [BOX]
    await known.close()


async def test_a_kill_reaches_the_first_process_also_before_it_was_started(tmp_path):
    supervisor = Quick()
    known = containers(tmp_path, supervisor)
    container = added(known)
    await known.kill(BOX, signal.SIGTERM, whole=True)
    await known.gone(container)
    assert container.exit == ExitStatus(143, signal.SIGTERM)
    await known.kill(ContainerId("unknown"), signal.SIGTERM, whole=False)
    await known.close()


async def test_a_signal_to_one_that_has_just_gone_is_fine(tmp_path):
    supervisor = Quick()
    known = containers(tmp_path, supervisor)
    container = added(known)
    supervisor.gone = True
    await known.signal(container, signal.SIGTERM)
    await known.close()


async def test_an_out_of_memory_kill_is_evidence_only_of_a_bad_end(tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "none/memory.events").write_text("oom 1\noom_kill 1\n")
    for code, oom in ((137, True), (0, False)):
        supervisor = Quick()
        known = containers(tmp_path, supervisor)
        container = added(known, own_pids=True, started=True)
        supervisor.ended.set_result(ExitStatus(code))
        await known.gone(container)
        assert container.oom_killed is oom
        assert await told(known) == [ContainerExited(BOX, ExitStatus(code), oom)]
        await known.close()


async def test_what_an_earlier_daemon_left(tmp_path):
    """Its labels make the container again; an exit that it had meanwhile is listed, not told."""
    known = containers(tmp_path, Quick())
    before = Container(BOX, POD, "/none", own_pids=True)
    labels = before.labels("box")
    gone = LiveProcess(ProcessId(BOX), 1, 1, labels, ExitStatus(4))
    await known.take_over(Container.of_labels(gone), gone, started=False)
    assert known.statuses()[BOX].exit == ExitStatus(4)
    assert known.known(BOX).own_pids
    assert await told(known) == []
    await known.close()


async def test_a_living_one_of_an_earlier_daemon_is_watched(tmp_path):
    supervisor = Quick()
    known = containers(tmp_path, supervisor)
    labels = Container(BOX, POD, "/none").labels("box")
    pid = os.getpid()
    text = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    found = LiveProcess(ProcessId(BOX), pid, int(text[19]), labels)
    container = Container.of_labels(found)
    await known.take_over(container, found, started=True)
    assert container.pidfd >= 0
    assert not container.is_dead()
    supervisor.ended.set_result(ExitStatus(5))
    await known.gone(container)
    assert await told(known) == [ContainerExited(BOX, ExitStatus(5))]
    await known.close()
    await known.close()
    assert container.pidfd == -1


def test_a_pid_that_is_somebody_elses_by_now_is_nobody():
    assert pidfd_of(os.getpid(), 1) == -1
    process = subprocess.Popen(["true"])
    process.wait()
    assert pidfd_of(process.pid, 1) == -1


def test_a_held_process_is_a_copy_of_our_interpreter():
    assert not executes(os.getpid())
    with subprocess.Popen(["sleep", "100"]) as other:
        assert executes(other.pid)
        other.kill()
    assert executes(other.pid)


def test_a_program_with_the_name_of_our_interpreter_is_not_it(tmp_path):
    """A container's Python has the same path in its own root as the daemon's has on the host."""
    copy = tmp_path / "python3"
    copy.write_bytes(Path(os.path.realpath(sys.executable)).read_bytes())
    copy.chmod(0o755)
    words = [
        str(copy),
        "-I",
        "-S",
        "-c",
        "import sys; print('ready', flush=True); sys.stdin.read()",
    ]
    home = {"PYTHONHOME": sys.base_prefix}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=home) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        assert executes(other.pid)
        other.kill()


async def test_an_exec_of_an_earlier_daemon_is_ended_and_forgotten():
    for gone in (False, True):
        supervisor = Quick()
        supervisor.gone = gone
        if gone:
            supervisor.ended.set_result(ExitStatus(0))
        await end_process(supervisor, ProcessId("exec"))
        assert supervisor.forgotten == ["exec"]
