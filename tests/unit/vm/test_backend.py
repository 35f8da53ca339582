"""The backend without machines: what guests tell, in every order, and what of it is believed."""

from __future__ import annotations

import asyncio

import pytest

from polypod.plugin import (
    BackendError,
    BackendState,
    ContainerExited,
    ContainerId,
    NamespaceMode,
    RuntimeContext,
    SandboxDied,
    SandboxId,
)
from polypod.testing.fake_supervisor import FakeSupervisor

pytest.importorskip("libvirt")

from polypod_vm.backend import VmBackend
from polypod_vm.inventory import Container, exit_status, restored, usage, uuid_of
from polypod_vm.machine import Note
from polypod_vm.options import VmOptions

ONE, TWO = SandboxId("1" * 64), SandboxId("2" * 64)
BOX, OTHER = ContainerId("b" * 64), ContainerId("c" * 64)


class FakeMachine:
    """A machine that answers every call."""

    def __init__(self, sandbox_id: SandboxId) -> None:
        self.id = sandbox_id
        self.dead = ""
        self.note = Note()
        self.calls: list[str] = []
        self.refuses: Exception | None = None
        self.before_answer = lambda: None

    async def call(self, request, _streams=None):
        self.calls.append(request["op"])
        self.before_answer()
        if self.refuses is not None:
            raise self.refuses
        return {}

    def console_tail(self) -> str:
        return "Kernel panic"

    async def end(self) -> None:
        self.calls.append("end")

    def forget(self, _name: str) -> None:
        self.calls.append("forget")

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
async def backend(tmp_path):
    context = RuntimeContext("vm", {}, tmp_path, tmp_path, "/x", FakeSupervisor())
    made = VmBackend(context, VmOptions(uri="test:///default"))
    for sandbox in (ONE, TWO):
        made._machines[sandbox] = FakeMachine(sandbox)
    made._containers[BOX] = Container(BOX, ONE, NamespaceMode.POD, started=True)
    made._containers[OTHER] = Container(OTHER, TWO, NamespaceMode.POD, started=True)
    yield made
    await made.close()


def exit_of(container: str, code: int = 3, **more):
    return {
        "event": "exit",
        "process": container,
        "code": code,
        "signal": 0,
        "at": 5,
        "oom": False,
        **more,
    }


def told(backend) -> list[object]:
    events = []
    while not backend._events.empty():
        events.append(backend._events.get_nowait())
    return events


async def test_an_exit_is_told_once_with_its_code(backend):
    backend._guest_event(ONE, exit_of(BOX, oom=True))
    backend._guest_event(ONE, exit_of(BOX, 9))
    (event,) = told(backend)
    assert isinstance(event, ContainerExited)
    assert (event.status.code, event.status.finished_at_ns, event.oom_killed) == (3, 5, True)
    assert (await backend.status(BOX)).state is BackendState.STOPPED


async def test_a_guest_tells_nothing_of_another_pods_containers(backend):
    backend._guest_event(ONE, exit_of(OTHER))
    assert told(backend) == []
    assert (await backend.status(OTHER)).state is BackendState.RUNNING


async def test_an_exit_of_nobody_is_no_event(backend):
    backend._guest_event(ONE, exit_of("f" * 64))
    assert told(backend) == []


async def test_an_exit_that_comes_before_the_answer_of_start(backend):
    container = backend._containers[BOX]
    container.started = False
    backend._machines[ONE].before_answer = lambda: backend._guest_event(ONE, exit_of(BOX))
    answer = await backend.start(BOX)
    assert answer.state is BackendState.RUNNING
    assert [event.status.code for event in told(backend)] == [3]
    assert (await backend.status(BOX)).state is BackendState.STOPPED


async def test_a_program_that_cannot_be_executed_has_no_exit_event(backend):
    container = backend._containers[BOX]
    container.started = False
    backend._machines[ONE].refuses = BackendError('exec: "/nothing"')
    with pytest.raises(BackendError, match="/nothing"):
        await backend.start(BOX)
    assert told(backend) == []
    status = await backend.status(BOX)
    assert (status.state, status.exit.code) == (BackendState.STOPPED, 127)


async def test_a_second_start_is_refused(backend):
    with pytest.raises(BackendError, match="already"):
        await backend.start(BOX)


async def test_a_machine_that_ends_takes_its_own_containers_alone(backend):
    machine = backend._machines[ONE]
    machine.dead = "the VM has ended"
    backend._machine_died(ONE, "the VM has ended")
    await asyncio.gather(*backend._tasks)
    exited, died = told(backend)
    assert (exited.container_id, exited.status.code) == (BOX, None)
    assert isinstance(died, SandboxDied)
    assert died.sandbox_id == ONE
    assert "the VM has ended" in died.reason
    assert "Kernel panic" in died.reason
    assert (await backend.list()).sandboxes == {ONE: False, TWO: True}
    assert (await backend.status(OTHER)).state is BackendState.RUNNING


async def test_what_a_dead_machine_ran_can_be_killed_and_deleted(backend):
    backend._machines[ONE].dead = "gone"
    await backend.kill(BOX, 9, whole=True)
    await backend.delete(BOX)
    await backend.delete(BOX)
    assert backend._machines[ONE].calls == []


def test_a_restored_container_is_what_its_guest_says():
    row = {"kind": "container", "started": True, "exit": exit_of(BOX), "oom": True}
    found = restored(ONE, int(NamespaceMode.CONTAINER), BOX, row)
    assert (found.sandbox_id, found.pid_mode) == (ONE, NamespaceMode.CONTAINER)
    assert found.status().exit.code == 3
    assert found.status().oom_killed


def test_an_unknown_code_stays_unknown():
    assert exit_status({"code": None, "signal": 0, "at": 1}).code is None


def test_counters_that_are_no_numbers_are_left_out():
    row = {
        "timestamp_ns": 1,
        "memory_usage_bytes": "many",
        "processes": 2,
        "swap_usage_bytes": None,
    }
    found = usage({**row, "unknown": 5})
    assert (found.memory_usage_bytes, found.processes) == (None, 2)


def test_a_machine_is_identified_by_its_sandbox():
    assert uuid_of(SandboxId("0123456789abcdef" * 4)) == "01234567-89ab-cdef-0123-456789abcdef"
