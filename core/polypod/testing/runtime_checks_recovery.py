"""Contract checks: what a new daemon finds after the old one is gone."""

from __future__ import annotations

import asyncio
import signal

from polypod.plugin.runtime import BackendState
from polypod.testing.runtime_checks_lifecycle import LOOP
from polypod.testing.runtime_lab import Box, RuntimeLab, Wanted
from polypod.testing.suite import expect, soon, until


async def check_restart_finds_everything_alive(lab: RuntimeLab) -> None:
    """After a restart ``list`` has the sandboxes and the containers, in their states."""
    sandbox = await lab.sandbox()
    running = await lab.run(sandbox, LOOP)
    await running.says(b"ready")
    await lab.restart()
    expect(await lab.healthy(sandbox.id) is True, "the sandbox is not listed as healthy")
    expect(
        await lab.state(running.id) is BackendState.RUNNING, "the container does not run any more"
    )
    status = await running.status()
    expect(status.sandbox_id == sandbox.id, "the container has lost its sandbox")


async def check_restart_leaves_output_alone(lab: RuntimeLab) -> None:
    """A restart of the daemon loses no output: the streams are not the daemon's."""
    box = await lab.run(await lab.sandbox(), "echo ready; read go; seq 1 2000; exit 0", stdin=True)
    await box.says(b"ready")
    await lab.restart()
    box.feed(b"go\n")
    await box.silent()
    written = (await box.text())[0]
    wanted = b"ready\n" + b"".join(b"%d\n" % number for number in range(1, 2001))
    expect(written == wanted, f"{len(written)} of {len(wanted)} bytes came")


async def check_exit_after_restart_is_told(lab: RuntimeLab) -> None:
    """A container that survived a restart ends as any other: its exit is told, with the code."""
    box = await lab.run(await lab.sandbox(), "echo ready; read go; exit 9", stdin=True)
    await box.says(b"ready")
    await lab.restart()
    box.end_input()
    code = (await box.ended()).status.code
    expect(code == 9, f"the code is {code}")
    expect((await box.status()).state is BackendState.STOPPED, "it is not stopped")


async def check_exit_while_away_is_found(lab: RuntimeLab) -> None:
    """A container that ended while no daemon was there is found, with its exit code."""
    box = await lab.run(await lab.sandbox(), "echo ready; read go; exit 11", stdin=True)
    await box.says(b"ready")

    async def away() -> None:
        box.end_input()
        await box.silent()

    await lab.restart(while_away=away)
    await until_stopped(lab, box)
    status = await box.status()
    expect(
        status.exit is not None and status.exit.code == 11,
        f"its exit is {status.exit}; a code that nobody can know is None, never another",
    )


async def until_stopped(lab: RuntimeLab, box: Box) -> None:
    """Wait until a container is stopped in the list, or told as ended."""
    for _ in range(500):
        if await lab.state(box.id) is BackendState.STOPPED:
            return
        await asyncio.sleep(0.02)
    expect(lab.exits(box.id), "the container is neither listed as stopped nor told as ended")


async def check_restart_container_can_be_ended(lab: RuntimeLab) -> None:
    """After a restart a container can be killed and deleted."""
    box = await lab.run(await lab.sandbox(), LOOP)
    await box.says(b"ready")
    await lab.restart()
    await box.kill(signal.SIGKILL, whole=True)
    await box.ended()
    await box.silent()
    await box.delete()
    expect(await lab.state(box.id) is None, "the deleted container is listed")


async def check_restart_sandbox_takes_containers(lab: RuntimeLab) -> None:
    """After a restart a sandbox takes new containers."""
    sandbox = await lab.sandbox()
    await lab.restart()
    box = await lab.finished(sandbox, "exit 2")
    expect((await box.ended()).status.code == 2, "the code is another")


async def check_restart_sandbox_can_be_removed(lab: RuntimeLab) -> None:
    """After a restart a sandbox can be stopped and removed with all that runs in it."""
    sandbox = await lab.sandbox()
    box = await lab.run(sandbox, LOOP)
    await box.says(b"ready")
    await lab.restart()
    await soon(lab.backend.stop_sandbox(sandbox.id), "stop_sandbox")
    await box.silent()
    await box.delete()
    await soon(lab.backend.remove_sandbox(sandbox.id), "remove_sandbox")
    expect(await lab.healthy(sandbox.id) is None, "the removed sandbox is listed")


async def check_restart_exec_works(lab: RuntimeLab) -> None:
    """After a restart an exec in a running container works."""
    _ = lab.execs
    box = await lab.run(await lab.sandbox(), LOOP)
    await box.says(b"ready")
    await lab.restart()
    session, _ = await lab.exec(box, Wanted(("true",)))
    code = (await soon(session.wait(), "the exec ends")).code
    expect(code == 0, f"its code is {code}")


async def check_removed_stays_removed(lab: RuntimeLab) -> None:
    """What was deleted before a restart is not found after it."""
    sandbox = await lab.sandbox()
    box = await lab.finished(sandbox, "exit 0")
    await box.delete()
    await lab.restart()
    expect(await lab.state(box.id) is None, "the deleted container is back")


async def check_repeated_restarts(lab: RuntimeLab) -> None:
    """A daemon may be restarted again and again; the containers do not notice."""
    box = await lab.run(await lab.sandbox(), "echo ready; read go; exit 13", stdin=True)
    await box.says(b"ready")
    for _ in range(4):
        await lab.restart()
    box.end_input()
    expect((await box.ended()).status.code == 13, "the code is another")
    await until(lambda: len(lab.exits(box.id)) == 1, "the exit is told once")


async def check_close_is_idempotent(lab: RuntimeLab) -> None:
    """``close`` may be repeated, and workloads go on."""
    box = await lab.run(await lab.sandbox(), LOOP)
    await box.says(b"ready")
    await lab.backend.close()
    await lab.restart()
    expect((await box.status()).state is BackendState.RUNNING, "the container has ended")


CHECKS = tuple(value for name, value in list(globals().items()) if name.startswith("check_"))
