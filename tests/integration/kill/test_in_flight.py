"""Deaths in the middle of one launch, held processes that outlive everybody, ends with survivors."""

import asyncio
import contextlib
import os
import select
import signal

import pytest

from polypod.plan import operations as op
from polypod.plan.operations import Plan
from polypod.plugin.errors import Unavailable
from polypod.processes.host import is_running

from .daemon import FullPipe

pytestmark = pytest.mark.needs_root

TRUE = op.Execute(args=["true"], env=["PATH=/bin"], search=True)


def shell(script):
    return op.Execute(args=["sh", "-c", script], env=["PATH=/bin:/usr/bin"], search=True)


@pytest.fixture
def full_pipe():
    made = FullPipe()
    yield made
    made.close()


async def gone(pidfd):
    """Returns when a process is gone."""
    async with asyncio.timeout(20):
        while not select.select([pidfd], [], [], 0)[0]:
            await asyncio.sleep(0.01)
    os.close(pidfd)


async def settled(host):
    """Returns when all three answer: from then on each of them guards what the others have."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(Unavailable):
                pids = await host.pids()
                await host.supervisor.list_namespaces()
                answer, _ = await host.logger.request("status")
                if (
                    set(pids) == {"keeper", "supervisor", "logger"}
                    and answer["pid"] == pids["logger"]
                ):
                    return
            await asyncio.sleep(0.02)


async def until_known(host, name):
    while True:
        for each in await host.supervisor.processes():
            if each.process_id == name:
                return each
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "victims", [("supervisor",), ("keeper",), ("supervisor", "keeper"), ("logger", "keeper")]
)
async def test_death_in_the_middle_of_a_launch(place, full_pipe, victims):
    """The launch fails or succeeds as it is told; what was told to have failed never executes."""
    host = await place.open()
    read_end, write_end = os.pipe()
    steps = [
        op.JoinCgroups(sources=["fd:0"]),
        op.UseStdio(stdin="", stdout="fd:1", stderr="", uid=-1),
        shell("echo executed; exit 7"),
    ]
    launching = asyncio.create_task(
        host.supervisor.launch("p", Plan(0, steps), fds=[full_pipe.write_end, write_end])
    )
    found = await until_known(host, "p")
    child = os.pidfd_open(found.pid)
    pids = await host.pids()
    for role in victims:
        os.kill(pids[role], signal.SIGKILL)
    await asyncio.sleep(0.1)
    full_pipe.drain()
    os.close(write_end)
    if "supervisor" in victims:
        with pytest.raises(Unavailable):
            await launching
        executed = b""
    else:
        # The supervisor lives: it sees the launch through before it leaves.
        made = await launching
        os.close(made.pidfd)
        assert (await host.supervisor.wait("p")).code == 7
        executed = b"executed\n"
    await gone(child)
    assert os.read(read_end, 100) == executed
    os.close(read_end)
    if not executed:
        assert await host.supervisor.processes() == []
    # The name is free again, and nothing of the first one is told under it.
    if executed:
        await host.supervisor.forget("p")
    made = await host.supervisor.launch("p", Plan(0, [shell("exit 5")]), fds=[])
    os.close(made.pidfd)
    assert (await host.supervisor.wait("p")).code == 5


@pytest.mark.parametrize(
    "victims",
    [("supervisor",), ("keeper",), ("daemon",), ("keeper", "logger"), ("supervisor", "logger")],
)
async def test_held_process_outlives_them(place, victims):
    """The OCI state "created": it waits as long as one of those that know its gate lives."""
    host = await place.open()
    made = await host.supervisor.launch("p", Plan(0, [shell("exit 6")]), fds=[], hold=True)
    os.close(made.pidfd)
    await settled(host)
    pids = await host.pids()
    for role in victims:
        if role == "daemon":
            host.close()
        else:
            os.kill(pids[role], signal.SIGKILL)
    host = await place.open()
    assert (await until_known(host, "p")).pid == made.pid
    await host.supervisor.release("p")
    assert (await host.supervisor.wait("p")).code == 6


async def test_held_process_does_not_execute_when_all_who_know_its_gate_die(place):
    host = await place.open()
    made = await host.supervisor.launch("p", Plan(0, [TRUE]), fds=[], hold=True)
    await settled(host)
    await kill_all(place, host)
    await gone(made.pidfd)
    host = await place.open()
    status = await host.supervisor.wait("p")
    assert status.code in (126, None)


async def kill_all(place, host):
    pids = await host.pids()
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    host.close()


async def test_all_three_dead_at_once(place):
    """What holds then: quiet processes run on, under their pids, and their ends are told, or unknown.

    What cannot: the log pipes have no reader any more, namespaces live as long as a process in them.
    """
    host = await place.open()
    made = {}
    for name, script in {
        "dies": "sleep 0.3; exit 3",
        "waits": "sleep 3; exit 4",
        "stays": "exec sleep 1000",
    }.items():
        made[name] = await host.supervisor.launch(name, Plan(0, [shell(script)]), fds=[])
    pinned = await host.supervisor.make_namespaces("s", frozenset({"uts"}))
    await kill_all(place, host)
    await gone(made["dies"].pidfd)
    host = await place.open()
    found = {each.process_id: each for each in await host.supervisor.processes()}
    assert {name: each.pid for name, each in found.items()} == {
        name: each.pid for name, each in made.items()
    }
    # An init that is quicker than the next keeper has reaped it: nobody knows the code then.
    assert (await host.supervisor.wait("dies")).code in (3, None)
    assert (await host.supervisor.wait("waits")).code == 4
    await host.supervisor.kill("stays", signal.SIGTERM)
    assert (await host.supervisor.wait("stays")).code == 143
    assert await host.supervisor.namespaces("s") is None
    for each in (made["waits"].pidfd, made["stays"].pidfd, *pinned.fds.values()):
        os.close(each)


async def test_namespaces_outlive_every_pair(place):
    host = await place.open()
    made = await host.supervisor.make_namespaces(
        "s", frozenset({"network", "uts", "pid"}), hostname="x"
    )
    for victims in (("supervisor",), ("keeper",), ("supervisor", "keeper"), ("keeper", "logger")):
        pids = await host.pids()
        for role in victims:
            os.kill(pids[role], signal.SIGKILL)
        await settled(host)
        found = await host.supervisor.namespaces("s")
        assert found.init_pid == made.init_pid
        for kind, fd in found.fds.items():
            assert os.path.samestat(os.fstat(fd), os.fstat(made.fds[kind]))
        for fd in [*found.fds.values(), found.netlink]:
            os.close(fd)
    await host.supervisor.drop_namespaces("s")
    for fd in [*made.fds.values(), made.netlink]:
        os.close(fd)


async def test_a_launch_that_hangs_does_not_hold_up_a_change_of_keepers(place, full_pipe):
    """It fails as if the supervisor had been killed; others are served by the next one."""
    host = await place.open()
    steps = [op.JoinCgroups(sources=["fd:0"]), TRUE]
    launching = asyncio.create_task(
        host.supervisor.launch("hangs", Plan(0, steps), fds=[full_pipe.write_end])
    )
    child = os.pidfd_open((await until_known(host, "hangs")).pid)
    os.kill((await host.pids())["keeper"], signal.SIGKILL)
    with pytest.raises(Unavailable):
        await launching
    await gone(child)
    await settled(host)
    assert await host.supervisor.processes() == []


async def test_launches_are_served_through_a_change_of_keepers(place):
    """A keeper's death is noticed by none that had not begun."""
    host = await place.open()
    await settled(host)
    os.kill((await host.pids())["keeper"], signal.SIGKILL)
    for number in range(100):
        made = await host.supervisor.launch(f"p{number}", Plan(0, [shell("exit 5")]), fds=[])
        os.close(made.pidfd)
    codes = [(await host.supervisor.wait(f"p{number}")).code for number in range(100)]
    assert codes == [5] * 100


async def test_exit_before_the_keeper_has_heard_of_the_process(place):
    host = await place.open()
    pids = await host.pids()
    os.kill(pids["keeper"], signal.SIGSTOP)
    try:
        made = await host.supervisor.launch("p", Plan(0, [shell("exit 9")]), fds=[])
        await gone(made.pidfd)
    finally:
        os.kill(pids["keeper"], signal.SIGCONT)
    assert (await host.supervisor.wait("p")).code == 9


async def test_no_second_keeper(place):
    host = await place.open()
    before = await host.pids()
    from polypod.processes.host import _start_keeper

    for _ in range(3):
        await asyncio.to_thread(_start_keeper, place.state)
    async with asyncio.timeout(20):
        while len(place.ours()) != 3:
            await asyncio.sleep(0.02)
    assert await host.pids() == before


async def test_supervisor_that_dies_again_and_again_comes_back(place):
    host = await place.open()
    for number in range(5):
        pid = (await host.pids())["supervisor"]
        os.kill(pid, signal.SIGKILL)
        made = await host.supervisor.make_namespaces(f"s{number}", frozenset({"uts"}))
        for fd in made.fds.values():
            os.close(fd)
        async with asyncio.timeout(20):
            while (await host.pids()).get("supervisor", pid) == pid:
                await asyncio.sleep(0.02)
    assert len(await host.supervisor.list_namespaces()) == 5


@pytest.mark.parametrize("stopped", [(), ("logger",), ("supervisor",), ("supervisor", "logger")])
async def test_shutdown_with_survivors_does_not_hang(place, stopped):
    """One that hangs with its disk is ended, too; what was launched runs on, alone."""
    host = await place.open()
    plan = Plan(0, [op.Execute(args=["sleep", "1000"], env=["PATH=/bin"], search=True)])
    made = await host.supervisor.launch("p", plan, fds=[])
    pids = await host.pids()
    for role in stopped:
        os.kill(pids[role], signal.SIGSTOP)
    await host.shutdown()
    place.hosts.clear()
    async with asyncio.timeout(20):
        while place.ours():
            await asyncio.sleep(0.02)
    assert not is_running(place.state)
    assert list(place.state.glob("*.sock")) == []
    assert not select.select([made.pidfd], [], [], 0)[0]
    # Found again by a later keeper, and its end is told.
    host = await place.open()
    assert (await until_known(host, "p")).pid == made.pid
    signal.pidfd_send_signal(made.pidfd, signal.SIGTERM)
    os.close(made.pidfd)
    assert (await host.supervisor.wait("p")).code == 143


async def test_what_they_say_is_in_a_bounded_file(place):
    host = await place.open()
    log = place.state / "processes.log"
    log.write_bytes(b"x" * (1024 * 1024 + 1))
    pid = (await host.pids())["supervisor"]
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        while f"supervisor[{pid}] ended by signal 9" not in log.read_text():
            await asyncio.sleep(0.02)
    assert log.stat().st_size < 10_000
    assert (place.state / "processes.log.1").stat().st_size > 1024 * 1024
