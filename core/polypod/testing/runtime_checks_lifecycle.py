"""Contract checks: the states of sandboxes and containers, and calls in the wrong order."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import replace

from polypod.plugin.errors import BackendError, NotFound
from polypod.plugin.ids import ContainerId, SandboxId, new_id
from polypod.plugin.requests import Resources
from polypod.plugin.runtime import BackendState
from polypod.testing.runtime_lab import RuntimeLab, Wanted
from polypod.testing.suite import expect, refused, soon, until

LOOP = "echo ready; while :; do sleep 0.05; done"
"""Runs until it is killed."""


async def check_sandbox_is_listed_healthy(lab: RuntimeLab) -> None:
    """A sandbox that was created is in the list, and healthy."""
    sandbox = await lab.sandbox()
    expect(await lab.healthy(sandbox.id) is True, "the new sandbox is not listed as healthy")


async def check_sandbox_is_gone_after_remove(lab: RuntimeLab) -> None:
    """A sandbox that was stopped and removed is not in the list."""
    sandbox = await lab.sandbox()
    await soon(lab.backend.stop_sandbox(sandbox.id), "stop_sandbox")
    await soon(lab.backend.remove_sandbox(sandbox.id), "remove_sandbox")
    expect(await lab.healthy(sandbox.id) is None, "the removed sandbox is still listed")


async def check_stop_sandbox_is_idempotent(lab: RuntimeLab) -> None:
    """``stop_sandbox`` may be repeated."""
    sandbox = await lab.sandbox()
    for _ in range(3):
        await soon(lab.backend.stop_sandbox(sandbox.id), "stop_sandbox")


async def check_remove_sandbox_is_idempotent(lab: RuntimeLab) -> None:
    """``remove_sandbox`` may be repeated."""
    sandbox = await lab.sandbox()
    await soon(lab.backend.stop_sandbox(sandbox.id), "stop_sandbox")
    for _ in range(3):
        await soon(lab.backend.remove_sandbox(sandbox.id), "remove_sandbox")


async def check_unknown_sandbox_is_stopped_and_removed(lab: RuntimeLab) -> None:
    """``stop_sandbox`` and ``remove_sandbox`` of something unknown succeed."""
    await soon(lab.backend.stop_sandbox(SandboxId(new_id())), "stop_sandbox of an unknown id")
    await soon(lab.backend.remove_sandbox(SandboxId(new_id())), "remove_sandbox of an unknown id")


async def check_stop_sandbox_ends_its_containers(lab: RuntimeLab) -> None:
    """``stop_sandbox`` ends everything that still runs in it, and each exit is told."""
    sandbox = await lab.sandbox()
    boxes = [await lab.run(sandbox, LOOP) for _ in range(2)]
    await soon(lab.backend.stop_sandbox(sandbox.id), "stop_sandbox")
    for box in boxes:
        await box.silent()
        await box.ended()
        expect(
            await lab.state(box.id) in {BackendState.STOPPED, None},
            "a container of a stopped sandbox is listed as running",
        )


async def check_other_sandboxes_are_left_alone(lab: RuntimeLab) -> None:
    """Stopping and removing a sandbox does nothing to another one."""
    first, second = await lab.sandbox(), await lab.sandbox()
    box = await lab.run(second, LOOP)
    await soon(lab.backend.stop_sandbox(first.id), "stop_sandbox")
    await soon(lab.backend.remove_sandbox(first.id), "remove_sandbox")
    expect(await lab.healthy(second.id) is True, "the other sandbox is not healthy any more")
    expect((await box.status()).state is BackendState.RUNNING, "the other's container has ended")


async def check_created_container_does_not_run(lab: RuntimeLab) -> None:
    """``create`` prepares a container up to, not including, the user's program."""
    sandbox = await lab.sandbox()
    box = await lab.create(sandbox, "echo started")
    expect((await box.status()).state is BackendState.CREATED, "its state is not created")
    expect(await lab.state(box.id) is BackendState.CREATED, "it is not listed as created")
    await asyncio.sleep(0.05)
    expect(await box.text() == (b"", b""), "the program ran before start")


async def check_created_container_can_be_deleted(lab: RuntimeLab) -> None:
    """A container that was never started can be killed and deleted, and nothing is left of it."""
    sandbox = await lab.sandbox()
    box = await lab.create(sandbox, LOOP)
    await box.kill(signal.SIGKILL, whole=True)
    await box.delete()
    box.release()
    expect(await lab.state(box.id) is None, "the deleted container is still listed")
    await box.silent()
    expect((await box.text())[0] == b"", "its program ran")


async def check_start_runs_the_program(lab: RuntimeLab) -> None:
    """``start`` returns once the program executes; the container is running then."""
    sandbox = await lab.sandbox()
    box = await lab.create(sandbox, LOOP)
    answer = await box.start()
    expect(answer.id == box.id, "start answered for another container")
    expect(answer.sandbox_id == sandbox.id, "start answered for another sandbox")
    expect(answer.state is BackendState.RUNNING, f"start answered {answer.state}")
    expect(await lab.state(box.id) is BackendState.RUNNING, "it is not listed as running")
    await box.says(b"ready")


async def check_exit_code_zero(lab: RuntimeLab) -> None:
    """A program that ends well has exit code 0, no signal, and is stopped."""
    box = await lab.finished(await lab.sandbox(), "exit 0")
    exited = await box.ended()
    expect(exited.status.code == 0, f"the code is {exited.status.code}")
    expect(exited.status.signal == 0, f"the signal is {exited.status.signal}")
    expect(not exited.oom_killed, "it is called OOM-killed")
    status = await box.status()
    expect(status.state is BackendState.STOPPED, f"its state is {status.state}")


async def check_exit_code_is_kept(lab: RuntimeLab) -> None:
    """The exit code is the program's, in the event and in the status."""
    sandbox = await lab.sandbox()
    for code in (1, 42, 255):
        box = await lab.finished(sandbox, f"exit {code}")
        told = (await box.ended()).status.code
        expect(told == code, f"exit {code} was told as {told}")
        status = await box.status()
        expect(
            status.exit is not None and status.exit.code == code,
            f"exit {code} is {status.exit} in the status",
        )


async def check_exit_is_told_once(lab: RuntimeLab) -> None:
    """Each exit is told once."""
    box = await lab.finished(await lab.sandbox(), "exit 3")
    await box.kill(signal.SIGKILL, whole=True)
    await asyncio.sleep(0.1)
    expect(len(lab.exits(box.id)) == 1, f"the exit was told {len(lab.exits(box.id))} times")


async def check_exit_has_its_time(lab: RuntimeLab) -> None:
    """The time of the exit is when the program ended, in nanoseconds since the epoch."""
    began = time.time_ns()
    box = await lab.finished(await lab.sandbox(), "exit 0")
    ended = (await box.ended()).status.finished_at_ns
    expect(
        began - 1_000_000_000 <= ended <= time.time_ns() + 1_000_000_000,
        f"finished_at_ns is {ended}; the container ran after {began}",
    )


async def check_missing_program_fails_the_start(lab: RuntimeLab) -> None:
    """A program that does not exist fails ``create`` or ``start`` with its name, and leaves nothing."""
    sandbox = await lab.sandbox()
    box = await lab.box(sandbox, Wanted(("/no/such/program",)))

    async def both() -> None:
        await lab.backend.create(box.spec)
        await lab.backend.start(box.id)

    error = await refused(both(), "a container without program", BackendError)
    expect("/no/such/program" in str(error), f"the error does not name the program: {error}")
    box.release()
    await box.delete()
    expect(await lab.state(box.id) is None, "the failed container is still listed")
    await box.silent()


async def check_program_is_found_on_its_path(lab: RuntimeLab) -> None:
    """A program without a slash is looked up on the PATH of the container's environment."""
    box = await lab.finished(await lab.sandbox(), Wanted(("true",)))
    expect((await box.ended()).status.code == 0, "true did not end with 0")


async def check_second_start_is_refused(lab: RuntimeLab) -> None:
    """A running container cannot be started again, and goes on."""
    box = await lab.run(await lab.sandbox(), LOOP)
    await refused(box.start(), "the second start")
    expect(
        (await box.status()).state is BackendState.RUNNING, "the container does not run any more"
    )


async def check_unknown_container_is_not_started(lab: RuntimeLab) -> None:
    """``start`` of something unknown is refused."""
    await refused(lab.backend.start(ContainerId(new_id())), "start of an unknown id")


async def check_second_create_is_refused(lab: RuntimeLab) -> None:
    """A container's id cannot be used twice; the first one is unharmed."""
    sandbox = await lab.sandbox()
    box = await lab.run(sandbox, LOOP)
    second = await lab.box(sandbox, lab.script("exit 9"))
    await refused(lab.backend.create(replace(second.spec, id=box.id)), "the second create")
    expect((await box.status()).state is BackendState.RUNNING, "the first container has ended")


async def check_create_needs_its_sandbox(lab: RuntimeLab) -> None:
    """A container in a sandbox that the backend does not know is refused, and nothing is left."""
    sandbox = await lab.sandbox_spec()
    box = await lab.box(sandbox, lab.script("exit 0"))
    await refused(lab.backend.create(box.spec), "create in an unknown sandbox")
    expect(await lab.state(box.id) is None, "the refused container is listed")


async def check_status_of_unknown_is_not_found(lab: RuntimeLab) -> None:
    """``status`` of something unknown raises NotFound."""
    await refused(lab.backend.status(ContainerId(new_id())), "status of an unknown id", NotFound)


async def check_delete_is_idempotent(lab: RuntimeLab) -> None:
    """``delete`` may be repeated, and of something unknown it succeeds."""
    box = await lab.finished(await lab.sandbox(), "exit 0")
    for _ in range(3):
        await box.delete()
    await soon(lab.backend.delete(ContainerId(new_id())), "delete of an unknown id")


async def check_deleted_container_is_gone(lab: RuntimeLab) -> None:
    """A deleted container is neither listed nor known."""
    box = await lab.finished(await lab.sandbox(), "exit 0")
    await box.delete()
    expect(await lab.state(box.id) is None, "the deleted container is listed")
    await refused(box.status(), "status of a deleted container", NotFound)


async def check_delete_of_running_leaves_no_stray(lab: RuntimeLab) -> None:
    """``delete`` of a running container is refused, or ends it: a process nobody knows must not stay."""
    box = await lab.run(await lab.sandbox(), LOOP)
    try:
        await lab.backend.delete(box.id)
    except Exception:  # noqa: BLE001 - to refuse is allowed
        expect(await lab.state(box.id) is BackendState.RUNNING, "refused, and yet not running")
        return
    await box.silent()


async def check_id_can_be_used_again_after_delete(lab: RuntimeLab) -> None:
    """A start that failed may be repeated under the same id after ``delete``."""
    sandbox = await lab.sandbox()
    box = await lab.finished(sandbox, "exit 1")
    await box.delete()
    again = await lab.box(sandbox, lab.script("exit 5"))
    again.spec = replace(again.spec, id=box.id)
    lab.events.clear()
    await soon(lab.backend.create(again.spec), "create")
    await soon(lab.backend.start(box.id), "start")
    again.release()
    expect((await box.ended()).status.code == 5, "the second container has the first one's code")
    await box.delete()


async def check_update_of_unknown_is_refused(lab: RuntimeLab) -> None:
    """``update`` of something unknown is refused."""
    update = lab.backend.update(ContainerId(new_id()), Resources(memory_limit_in_bytes=1 << 26))
    await refused(update, "update of an unknown id")


async def check_update_keeps_the_container_running(lab: RuntimeLab) -> None:
    """``update`` changes limits of a running container, which goes on."""
    sandbox = await lab.sandbox()
    box = await lab.run(sandbox, replace(lab.script(LOOP), memory_limit_bytes=128 << 20))
    await box.says(b"ready")
    limits = Resources(memory_limit_in_bytes=256 << 20, cpu_shares=512)
    await soon(lab.backend.update(box.id, limits), "update")
    expect((await box.status()).state is BackendState.RUNNING, "the container has ended")


async def check_concurrent_containers_are_independent(lab: RuntimeLab) -> None:
    """Containers made at the same time each get their own output and their own exit code."""
    sandbox = await lab.sandbox()

    async def one(number: int) -> None:
        box = await lab.finished(sandbox, f"echo number {number}; exit {number}")
        await box.silent()
        expect((await box.ended()).status.code == number, f"container {number} has another's code")
        written = (await box.text())[0]
        expect(written == b"number %d\n" % number, f"container {number} wrote {written!r}")

    await asyncio.gather(*(one(number) for number in range(1, 9)))


async def check_concurrent_sandboxes(lab: RuntimeLab) -> None:
    """Sandboxes can be made and removed at the same time."""

    async def one() -> None:
        sandbox = await lab.sandbox()
        box = await lab.finished(sandbox, "exit 0")
        expect((await box.ended()).status.code == 0, "the program did not end with 0")
        await box.delete()
        await soon(lab.backend.stop_sandbox(sandbox.id), "stop_sandbox")
        await soon(lab.backend.remove_sandbox(sandbox.id), "remove_sandbox")

    await asyncio.gather(*(one() for _ in range(4)))


async def check_exits_of_a_burst_are_all_told(lab: RuntimeLab) -> None:
    """No exit is lost when many containers end at once."""
    sandbox = await lab.sandbox()
    boxes = [await lab.run(sandbox, "read go; exit 6", stdin=True) for _ in range(6)]
    for box in boxes:
        box.end_input()
    for box in boxes:
        expect((await box.ended()).status.code == 6, "an exit came with another code")
    await until(lambda: all(len(lab.exits(box.id)) == 1 for box in boxes), "one exit for each")


CHECKS = tuple(value for name, value in list(globals().items()) if name.startswith("check_"))
