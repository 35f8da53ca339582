"""Contract checks: extra processes in a running container."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace

from polypod.plugin.ids import ContainerId, ExecId, new_id
from polypod.plugin.oci import OciConfig, Process
from polypod.plugin.runtime import BackendState, ExecSpec
from polypod.plugin.services import Stdio
from polypod.testing.fake_logs import FakeCaptured
from polypod.testing.runtime_checks_lifecycle import LOOP
from polypod.testing.runtime_lab import Box, RuntimeLab, Wanted
from polypod.testing.suite import expect, refused, soon, until


async def _running(lab: RuntimeLab) -> Box:
    _ = lab.execs  # not applicable to a backend without
    box = await lab.run(await lab.sandbox(), LOOP)
    await box.says(b"ready")
    return box


async def _silent(output: FakeCaptured) -> None:
    await until(lambda: output.ended, "every process of the exec is gone")


async def check_exec_output_and_code(lab: RuntimeLab) -> None:
    """An exec has its own output, on two streams, and its own exit code."""
    box = await _running(lab)
    session, output = await lab.exec(box, "echo out; echo err >&2; exit 4")
    status = await soon(session.wait(), "the exec ends")
    await _silent(output)
    expect(status.code == 4, f"its code is {status.code}")
    written = await output.collect()
    expect(written == (b"out\n", b"err\n"), f"it wrote {written!r}")


async def check_exec_zero(lab: RuntimeLab) -> None:
    """An exec that ends well has code 0."""
    session, _ = await lab.exec(await _running(lab), Wanted(("true",)))
    code = (await soon(session.wait(), "the exec ends")).code
    expect(code == 0, f"its code is {code}")


async def check_exec_environment_and_directory(lab: RuntimeLab) -> None:
    """An exec has the environment and the working directory of its own process config."""
    box = await _running(lab)
    wanted = Wanted(("env",), env=("ROLE=probe",), cwd="/tmp")  # noqa: S108 - in the container
    session, output = await lab.exec(box, wanted)
    await soon(session.wait(), "the exec ends")
    expect(b"ROLE=probe\n" in (await output.collect())[0], "its environment did not arrive")
    session, output = await lab.exec(box, replace(lab.script("pwd"), cwd="/tmp"))  # noqa: S108
    await soon(session.wait(), "the exec ends")
    written = (await output.collect())[0]
    expect(written == b"/tmp\n", f"pwd wrote {written!r}")


async def check_exec_shares_the_hostname(lab: RuntimeLab) -> None:
    """An exec is inside: it sees what the container's first process sees."""
    box = await lab.run(await lab.sandbox(), f"hostname; {LOOP}")
    _ = lab.execs
    await box.says(b"ready")
    session, output = await lab.exec(box, Wanted(("hostname",)))
    await soon(session.wait(), "the exec ends")
    inside = (await box.text())[0].splitlines()[0]
    expect((await output.collect())[0].strip() == inside, "it has another hostname")


async def check_exec_of_missing_program_is_refused(lab: RuntimeLab) -> None:
    """An exec of a program that does not exist is refused with its name; the container goes on."""
    box = await _running(lab)
    error = await refused(lab.exec(box, Wanted(("/no/such/program",))), "exec of nothing")
    expect("/no/such/program" in str(error), f"the error does not name the program: {error}")
    expect((await box.status()).state is BackendState.RUNNING, "the container has ended")


async def check_exec_needs_a_running_container(lab: RuntimeLab) -> None:
    """An exec in a container that is stopped, or unknown, is refused."""
    _ = lab.execs
    sandbox = await lab.sandbox()
    stopped = await lab.finished(sandbox, "exit 0")
    await refused(lab.exec(stopped, Wanted(("true",))), "exec in a stopped container")
    process = Process(("true",))
    spec = ExecSpec(ExecId(new_id()), ContainerId(new_id()), process, Stdio(), OciConfig(process))
    await refused(lab.execs.exec(spec), "exec in an unknown container")


async def check_exec_needs_a_started_container(lab: RuntimeLab) -> None:
    """An exec in a container that was created and not started is refused."""
    _ = lab.execs
    created = await lab.create(await lab.sandbox(), LOOP)
    await refused(lab.exec(created, Wanted(("true",))), "exec in a created container")


async def check_exec_kill_leaves_the_container(lab: RuntimeLab) -> None:
    """Killing an exec ends it, and does nothing to the container."""
    box = await _running(lab)
    session, output = await lab.exec(box, "echo ready; sleep 1000")
    await session.kill(signal.SIGKILL)
    code = (await soon(session.wait(), "the exec ends")).code
    expect(code == 137, f"its code is {code}")
    await _silent(output)
    expect((await box.status()).state is BackendState.RUNNING, "the container has ended")
    expect(not lab.exits(box.id), "an exit of the container was told")


async def check_exec_kill_reaches_what_it_started(lab: RuntimeLab) -> None:
    """Killing an exec ends everything that it left behind."""
    box = await _running(lab)
    session, output = await lab.exec(box, "sleep 1000 & sleep 1000 & echo ready; wait")

    async def ready() -> bool:
        return b"ready" in (await output.collect())[0]

    for _ in range(500):
        if await ready():
            break
        await asyncio.sleep(0.01)
    await session.kill(signal.SIGKILL)
    await soon(session.wait(), "the exec ends")
    await _silent(output)


async def check_exec_ends_with_the_container(lab: RuntimeLab) -> None:
    """When the container is killed as a whole, its execs end too."""
    box = await _running(lab)
    session, output = await lab.exec(box, "sleep 1000")
    await box.kill(signal.SIGKILL, whole=True)
    await box.ended()
    status = await soon(session.wait(), "the exec ends")
    expect(status.code != 0, "the exec is told as ended well")
    await _silent(output)


async def check_exec_is_not_the_containers_exit(lab: RuntimeLab) -> None:
    """The end of an exec is told to its session alone, never as an exit of the container."""
    box = await _running(lab)
    session, _ = await lab.exec(box, "exit 1")
    await soon(session.wait(), "the exec ends")
    await asyncio.sleep(0.1)
    expect(not lab.exits(box.id), "the exec's exit was told as the container's")


async def check_exec_wait_can_be_repeated(lab: RuntimeLab) -> None:
    """A session's end can be asked for again, and by two at once."""
    session, _ = await lab.exec(await _running(lab), "exit 8")
    both = await soon(asyncio.gather(session.wait(), session.wait()), "the exec ends")
    again = await soon(session.wait(), "the exec ends")
    codes = {each.code for each in (*both, again)}
    expect(codes == {8}, f"the codes are {codes}")


async def check_exec_kill_of_ended_is_no_error(lab: RuntimeLab) -> None:
    """Killing an exec that has ended already is no error."""
    session, _ = await lab.exec(await _running(lab), Wanted(("true",)))
    await soon(session.wait(), "the exec ends")
    await soon(session.kill(signal.SIGKILL), "kill of an ended exec")


async def check_execs_are_concurrent(lab: RuntimeLab) -> None:
    """Several execs of one container run at the same time, each with its own output and code."""
    box = await _running(lab)

    async def one(number: int) -> None:
        session, output = await lab.exec(box, f"sleep 0.1; echo {number}; exit {number}")
        status = await soon(session.wait(), "the exec ends")
        await _silent(output)
        expect(status.code == number, f"exec {number} has the code {status.code}")
        written = (await output.collect())[0]
        expect(written == b"%d\n" % number, f"exec {number} wrote {written!r}")

    await asyncio.gather(*(one(number) for number in range(1, 6)))


CHECKS = tuple(value for name, value in list(globals().items()) if name.startswith("check_"))
