"""The supervisor through the daemon's client, with real processes."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from polypod.plan import operations as op
from polypod.plan.operations import Plan
from polypod.plugin.errors import AlreadyExists, BackendError, InvalidArgument, NotFound
from tests.integration.kill.daemon import FullPipe, container, launch

from .conftest import Output

pytestmark = pytest.mark.needs_root

NEWNS, NEWPID, NEWUTS = 0x20000, 0x20000000, 0x4000000


def execute(*args, search=True):
    return op.Execute(args=list(args), env=["PATH=/bin:/usr/bin"], search=search)


def shell(script):
    return execute("sh", "-c", script)


def says(script, *first, flags=0, pids=""):
    """A plan whose shell writes to fd:0."""
    streams = op.UseStdio(stdin="", stdout="fd:0", stderr="fd:0", uid=-1)
    return Plan(flags, [*first, streams, op.CloseDescriptors(), shell(script)], pids)


async def run(host, plan, output, fds=(), name="p"):
    made = await host.supervisor.launch(name, plan, fds=[output.write_end, *fds])
    os.close(made.pidfd)
    status = await host.supervisor.wait(name)
    await host.supervisor.forget(name)
    return status, output.text()


async def test_launch_tells_pid_and_start_time(host):
    made = await host.supervisor.launch("p", Plan(0, [execute("sleep", "1000")]), fds=[])
    stat = Path(f"/proc/{made.pid}/stat").read_text()
    assert int(stat.rpartition(")")[2].split()[19]) == made.start_time
    signal.pidfd_send_signal(made.pidfd, signal.SIGKILL)
    os.close(made.pidfd)
    status = await host.supervisor.wait("p")
    assert (status.code, status.signal) == (137, 9)


@pytest.mark.parametrize(
    ("script", "code", "number"),
    [
        ("exit 0", 0, 0),
        ("exit 3", 3, 0),
        ("exit 255", 255, 0),
        ("kill -TERM $$", 143, 15),
        ("kill -KILL $$", 137, 9),
        ("kill -SEGV $$", 139, 11),
    ],
)
async def test_exit_codes_and_signals(host, script, code, number):
    made = await host.supervisor.launch("p", Plan(0, [shell(script)]), fds=[])
    os.close(made.pidfd)
    status = await host.supervisor.wait("p")
    assert (status.code, status.signal) == (code, number)


async def test_only_the_standard_streams_are_open(host, output):
    spare = [os.open("/", os.O_RDONLY) for _ in range(20)]
    _, text = await run(host, says("ls /proc/self/fd | tr '\\n' ' '"), output, spare)
    for fd in spare:
        os.close(fd)
    # 3 is the directory that ls itself reads.
    assert text.split() == ["0", "1", "2", "3"]


async def test_signals_are_as_the_kernel_has_them(host, output):
    _, text = await run(host, says("grep -E '^Sig(Blk|Ign)' /proc/self/status"), output)
    assert [line.split()[1] for line in text.splitlines()] == ["0" * 16] * 2


@pytest.mark.parametrize(
    ("plan", "words", "cause"),
    [
        (Plan(0, [execute("/nowhere")]), 'exec: "/nowhere": no such file', FileNotFoundError),
        (Plan(0, [execute("nothing")]), "executable file not found in $PATH", FileNotFoundError),
        (Plan(0, [execute("/etc/passwd")]), "permission denied", PermissionError),
        (
            Plan(0, [op.ChangeDirectory(path="/nowhere"), execute("true")]),
            "operation 0: change to working directory /nowhere",
            FileNotFoundError,
        ),
        (
            Plan(0, [op.StartSession(), op.JoinCgroups(sources=["fd:7"]), execute("true")]),
            "operation 1: join cgroups: source 'fd:7'",
            OSError,
        ),
        (
            Plan(
                NEWNS,
                [op.MountNew(fstype="no", target="/", options=[], attributes=0), execute("a")],
            ),
            "mount no on /",
            OSError,
        ),
    ],
)
async def test_failures_name_the_operation_and_leave_nothing(host, plan, words, cause):
    with pytest.raises(BackendError, match=words.replace("$", "\\$").replace("[", "\\[")) as caught:
        await host.supervisor.launch("p", plan, fds=[])
    assert isinstance(caught.value.__cause__, cause)
    assert await host.supervisor.processes() == []
    # The name can be used again at once, and nothing of the first one is told.
    made = await host.supervisor.launch("p", Plan(0, [shell("exit 5")]), fds=[])
    os.close(made.pidfd)
    assert (await host.supervisor.wait("p")).code == 5


async def test_a_name_is_taken_until_it_is_forgotten(host, place):
    made = await host.supervisor.launch("p", Plan(0, [execute("true")]), fds=[])
    os.close(made.pidfd)
    await host.supervisor.wait("p")
    other = await place.open()
    for client in (host, other):
        with pytest.raises(AlreadyExists):
            await client.supervisor.launch("p", Plan(0, [execute("true")]), fds=[])
    assert (await other.supervisor.wait("p")).code == 0
    await host.supervisor.forget("p")
    with pytest.raises(NotFound):
        await host.supervisor.wait("p")


async def test_held_process_waits_and_is_released(host):
    plan = Plan(0, [op.StartSession(), shell("exit 4")])
    made = await host.supervisor.launch("p", plan, fds=[], hold=True)
    os.close(made.pidfd)
    (found,) = await host.supervisor.processes()
    assert (found.pid, found.exit) == (made.pid, None)
    assert "python" in os.readlink(f"/proc/{made.pid}/exe")
    await host.supervisor.release("p")
    assert (await host.supervisor.wait("p")).code == 4
    with pytest.raises(NotFound):
        await host.supervisor.release("p")


async def test_held_process_that_cannot_be_set_up_fails_at_once(host):
    plan = Plan(0, [op.ChangeDirectory(path="/nowhere"), execute("true")])
    with pytest.raises(BackendError, match="/nowhere"):
        await host.supervisor.launch("p", plan, fds=[], hold=True)


async def test_release_tells_that_the_program_is_missing(host):
    made = await host.supervisor.launch("p", Plan(0, [execute("nothing")]), fds=[], hold=True)
    os.close(made.pidfd)
    with pytest.raises(BackendError, match="executable file not found"):
        await host.supervisor.release("p")


async def test_held_process_can_be_killed(host):
    made = await host.supervisor.launch("p", Plan(0, [execute("true")]), fds=[], hold=True)
    os.close(made.pidfd)
    await host.supervisor.kill("p", signal.SIGKILL)
    assert (await host.supervisor.wait("p")).signal == 9
    with pytest.raises(NotFound):
        await host.supervisor.kill("p", signal.SIGKILL)


async def test_execute_runs_in_the_mounts_of_the_host(host, output):
    plan = Plan(
        0,
        [
            op.UseStdio(stdin="", stdout="fd:0", stderr="", uid=-1),
            shell("readlink /proc/self/ns/mnt"),
        ],
    )
    made = await host.supervisor.execute("p", plan, fds=[output.write_end])
    os.close(made.pidfd)
    assert output.text().strip() == os.readlink("/proc/self/ns/mnt")


async def test_namespaces_are_made_once_and_pinned(host, output, place):
    kinds = frozenset({"network", "ipc", "uts", "pid"})
    sysctls = {"net.ipv4.ip_unprivileged_port_start": "7", "kernel.shm_rmid_forced": "1"}
    made = await host.supervisor.make_namespaces("s", kinds, hostname="name", sysctls=sysctls)
    again = await (await place.open()).supervisor.make_namespaces("s", kinds)
    for kind, fd in made.fds.items():
        assert os.path.samestat(os.fstat(fd), os.fstat(again.fds[kind]))
        own = os.stat(f"/proc/self/ns/{'net' if kind == 'network' else kind}")
        assert not os.path.samestat(os.fstat(fd), own)
    assert Path(f"/proc/{made.init_pid}/comm").read_text() == "polypod-init\n"
    join = op.JoinNamespaces(
        items=[["network", "fd:1"], ["ipc", "fd:2"], ["uts", "fd:3"]], kinds=[], pidfd=""
    )
    files = "/proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced"
    fds = [made.fds[kind] for kind in ("network", "ipc", "uts", "pid")]
    _, text = await run(host, says(f"hostname; cat {files}", join, pids="fd:4"), output, fds)
    assert text.split() == ["name", "7", "1"]
    assert list(await host.supervisor.list_namespaces()) == ["s"]
    await host.supervisor.drop_namespaces("s")
    await host.supervisor.drop_namespaces("s")
    assert await host.supervisor.namespaces("s") is None
    for fd in [*made.fds.values(), *again.fds.values(), made.netlink, again.netlink]:
        os.close(fd)


async def test_failed_namespaces_leave_nothing_and_we_are_back_home(host, output):
    before = os.readlink("/proc/self/ns/uts")
    with pytest.raises(BackendError, match=r"sysctl net\.no=1") as caught:
        await host.supervisor.make_namespaces(
            "s", frozenset({"network", "uts"}), hostname="x", sysctls={"net.no": "1"}
        )
    assert isinstance(caught.value.__cause__, OSError)
    assert await host.supervisor.namespaces("s") is None
    _, text = await run(host, says("readlink /proc/self/ns/uts"), output)
    assert text.strip() == before


async def test_pid_namespace_by_nsfs_and_by_pidfd(host):
    """A process is born in a pid namespace: of a sandbox, or of a process that runs (exec)."""
    made = await host.supervisor.make_namespaces("s", frozenset({"pid"}))
    pidfd = os.pidfd_open(made.init_pid)
    for source in (made.fds["pid"], pidfd):
        output = Output()
        script = "readlink /proc/$PPID/ns/pid >/dev/null; echo $$; exec readlink /proc/self/ns/pid"
        # Our /proc shows host's pids, so $$ alone tells where we are.
        _, text = await run(host, says(script, pids="fd:1"), output, [source])
        pid = int(text.split()[0])
        assert pid < 100
        output.close()
    # We came back: the next one is born at home.
    output = Output()
    _, text = await run(host, says("echo $$"), output)
    assert int(text) > 100
    output.close()
    os.close(pidfd)
    for fd in made.fds.values():
        os.close(fd)


@pytest.mark.needs_busybox
async def test_exec_joins_a_container_by_its_pidfd(host, place, output):
    await launch(host, "c", ["sleep", "1000"], place.root, own_pids=True)
    (found,) = await host.supervisor.processes()
    pidfd = os.pidfd_open(found.pid)
    join = op.JoinNamespaces(items=[], kinds=["mount", "pid"], pidfd="fd:1")
    script = "ls /; cat /proc/1/comm; readlink /proc/self/ns/pid"
    _, text = await run(host, says(script, join, pids="fd:1"), output, [pidfd])
    assert text.split()[:4] == ["bin", "dev", "proc", "sleep"]
    assert text.split()[4] == os.readlink(f"/proc/{found.pid}/ns/pid")
    os.close(pidfd)


async def test_tcp_connects_from_inside_a_sandbox(host):
    made = await host.supervisor.make_namespaces("s", frozenset({"network"}))
    with pytest.raises(BackendError) as caught:
        await host.supervisor.connect_tcp("s", "127.0.0.1", 80)
    # Its loopback is down: nothing of the host's can be reached by mistake.
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(NotFound):
        await host.supervisor.connect_tcp("other", "127.0.0.1", 80)
    for address in (("127.0.0.1", 0), ("localhost", 80), ("::1%lo", 80), ("1.2.3", 80)):
        with pytest.raises(InvalidArgument):
            await host.supervisor.connect_tcp("s", *address)
    for fd in [*made.fds.values(), made.netlink]:
        os.close(fd)


async def test_tcp_reaches_what_listens_inside(host):
    made = await host.supervisor.make_namespaces("s", frozenset({"network"}))
    up = "import socket, fcntl, struct; s = socket.socket(); r = struct.pack('16sh', b'lo', 1)"
    serve = (
        f"{up}; fcntl.ioctl(s, 0x8914, r); l = socket.create_server(('127.0.0.1', 80)); "
        "print('ready', flush=True); c = l.accept()[0]; c.sendall(b'inside'); c.recv(1)"
    )
    output = Output()
    join = op.JoinNamespaces(items=[["network", "fd:1"]], kinds=[], pidfd="")
    streams = op.UseStdio(stdin="", stdout="fd:0", stderr="fd:0", uid=-1)
    program = op.Execute(args=[sys.executable, "-c", serve], env=[], search=False)
    fds = [output.write_end, made.fds["network"]]
    launched = await host.supervisor.launch("p", Plan(0, [join, streams, program]), fds=fds)
    assert await asyncio.to_thread(os.read, output.read_end, 100) == b"ready\n"
    fd = await host.supervisor.connect_tcp("s", "127.0.0.1", 80)
    with socket.socket(fileno=fd) as sock:
        sock.setblocking(True)
        assert await asyncio.to_thread(sock.recv, 100) == b"inside"
    await host.supervisor.wait("p")
    output.close()
    for fd in [*made.fds.values(), made.netlink, launched.pidfd]:
        os.close(fd)


async def test_netlink_socket_lives_in_the_sandbox(host):
    made = await host.supervisor.make_namespaces("s", frozenset({"network"}))
    with socket.socket(fileno=made.netlink) as sock:
        # RTM_GETLINK, dump: a fresh namespace has its loopback alone.
        request = bytes.fromhex(
            "20000000 1200 0103 01000000 00000000 00000000000000000000000000000000"
        )
        sock.send(request)
        assert b"lo\0" in sock.recv(65536)
    for fd in made.fds.values():
        os.close(fd)


async def test_two_hundred_descriptors_fit_and_more_are_refused(host, output):
    many = [os.dup(output.write_end) for _ in range(199)]
    plan = Plan(0, [op.UseStdio(stdin="", stdout="fd:198", stderr="", uid=-1), shell("echo here")])
    with pytest.raises(InvalidArgument, match="200"):
        await host.supervisor.launch("p", plan, fds=[*many, output.write_end])
    made = await host.supervisor.launch("p", plan, fds=many)
    os.close(made.pidfd)
    for fd in many:
        os.close(fd)
    assert output.text() == "here\n"


async def test_two_hundred_launches_at_once(host, place):
    plans = [Plan(NEWNS, [shell(f"exit {number % 200}")]) for number in range(200)]
    made = await asyncio.gather(
        *(host.supervisor.launch(f"p{n}", plan, fds=[]) for n, plan in enumerate(plans))
    )
    for each in made:
        os.close(each.pidfd)
    statuses = await asyncio.gather(*(host.supervisor.wait(f"p{n}") for n in range(200)))
    assert [status.code for status in statuses] == [number % 200 for number in range(200)]
    # More than one page.
    assert len(await host.supervisor.processes()) == 200
    await asyncio.gather(*(host.supervisor.forget(f"p{n}") for n in range(200)))
    assert await host.supervisor.processes() == []
    # The keeper is told, not asked.
    while list((place.state / "processes").iterdir()) + list((place.state / "exits").iterdir()):
        await asyncio.sleep(0.01)


async def test_labels_come_back_and_are_bounded(host, place):
    labels = {"pod": "ä" * 4000, "x": ""}
    made = await host.supervisor.launch("p", Plan(0, [execute("true")]), fds=[], labels=labels)
    os.close(made.pidfd)
    (found,) = await (await place.open()).supervisor.processes()
    assert found.labels == labels
    with pytest.raises(InvalidArgument, match="labels"):
        await host.supervisor.launch(
            "q", Plan(0, [execute("true")]), fds=[], labels={"x": "y" * 20_000}
        )


async def test_cancelled_launch_leaves_nothing(host):
    """The plan hangs in its first step."""
    pipe = FullPipe()
    plan = Plan(0, [op.JoinCgroups(sources=["fd:0"]), execute("true")])
    task = asyncio.create_task(host.supervisor.launch("p", plan, fds=[pipe.write_end]))
    while not await host.supervisor.processes():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while await host.supervisor.processes():
        await asyncio.sleep(0.01)
    pipe.close()


async def hanging(host, pipe, name="p"):
    """Launch what hangs before it executes; return the task that waits for the answer, and the pid."""
    plan = Plan(0, [op.JoinCgroups(sources=["fd:0"]), execute("true")])
    task = asyncio.create_task(host.supervisor.launch(name, plan, fds=[pipe.write_end]))
    while not (found := await host.supervisor.processes()):
        await asyncio.sleep(0.01)
    return task, found[0].pid


async def gone(pid):
    while Path(f"/proc/{pid}").exists():
        await asyncio.sleep(0.01)


async def test_who_waits_for_a_launch_is_told_when_it_is_forgotten(host):
    pipe = FullPipe()
    task, pid = await hanging(host, pipe)
    await host.supervisor.forget("p")
    with pytest.raises(BackendError, match="process p: forgotten before it executed"):
        await asyncio.wait_for(task, 20)
    pipe.close()
    await gone(pid)
    assert await host.supervisor.processes() == []


async def test_a_held_process_that_is_forgotten_is_ended(host):
    descriptors = Path(f"/proc/{(await host.pids())['supervisor']}/fd")
    before = len(list(descriptors.iterdir()))
    made = await host.supervisor.launch("p", Plan(0, [shell("exit 5")]), fds=[], hold=True)
    await host.supervisor.forget("p")
    await gone(made.pid)
    os.close(made.pidfd)
    with pytest.raises(NotFound):
        await host.supervisor.release("p")
    assert len(list(descriptors.iterdir())) == before


async def test_a_launch_that_has_just_executed_is_answered_before_it_is_forgotten(host):
    """The supervisor finds the request first, and behind it that the process executed and has ended."""
    pipe = FullPipe()
    task, pid = await hanging(host, pipe)
    supervisor = (await host.pids())["supervisor"]
    os.kill(supervisor, signal.SIGSTOP)
    try:
        forgotten = asyncio.create_task(host.supervisor.forget("p"))
        await asyncio.sleep(0.1)
        pipe.drain()
        await gone(pid)
    finally:
        os.kill(supervisor, signal.SIGCONT)
    made = await asyncio.wait_for(task, 20)
    assert made.pid == pid
    os.close(made.pidfd)
    await forgotten
    pipe.close()
    assert await host.supervisor.processes() == []


@pytest.mark.needs_busybox
async def test_terminal_of_a_container_is_logged(host, place):
    log = place.logs / "t.log"
    stdio = await host.logs.open("t", log, base=place.logs, tty=True, stdin=True, stdin_once=False)
    await launch(
        host,
        "t",
        ["sh", "-c", "stty -onlcr; stty size; read a; echo got $a"],
        place.root,
        stdio=stdio,
    )
    streams = await host.logs.attach("t", stdin=True, stdout=False, stderr=False)
    os.write(streams.stdin, b"this\n")
    assert (await host.supervisor.wait("t")).code == 0
    await host.logs.drained("t")
    os.close(streams.stdin)
    assert log.read_text().splitlines()[-1].endswith(" F got this")


async def test_plan_of_a_container_shows_only_its_root(host, place, output):
    plan = container(["sh", "-c", "ls /; ls /proc/self/fd"], stdout="fd:1", own_pids=True)
    from polypod.supervisor.kernel import mounts

    tree = mounts.open_tree(mounts.AT_FDCWD, str(place.root), mounts.OPEN_TREE_CLONE)
    made = await host.supervisor.launch("p", plan, fds=[tree, output.write_end])
    os.close(made.pidfd)
    os.close(tree)
    assert output.text().split() == ["bin", "dev", "proc", "0", "1", "2", "3"]
