"""Exec, Attach and PortForward in the heart: what is checked at once, what when the client has come."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from dataclasses import dataclass, replace

import pytest

from polypod.lifecycle.views import StreamChoice
from polypod.plugin.errors import (
    BackendError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unsupported,
)
from polypod.plugin.requests import NamespaceMode, NamespaceOptions, SandboxSecurity

ALL = StreamChoice(stdin=True, stdout=True, stderr=True)
TERMINAL = StreamChoice(stdin=True, stdout=True, tty=True)
HOST_NETWORK = SandboxSecurity(namespaces=NamespaceOptions(network=NamespaceMode.NODE))


class Runs:
    """The backend's side of execs: keeps duplicates of what each process would hold."""

    def __init__(self, bench, *, console=True):
        self.specs, self.held, self.sessions = [], {}, []
        self._bench, self._console = bench, console
        self._real = bench.backend.exec
        bench.backend.exec = self.exec

    async def exec(self, spec, /):
        session = await self._real(spec)
        self.specs.append(spec)
        self.sessions.append(session)
        for name in ("stdin", "stdout", "stderr"):
            fd = getattr(spec.stdio, name)
            if fd is not None:
                self.held[name] = os.dup(fd)
        if spec.stdio.console is not None and self._console:
            master, slave = os.openpty()
            with socket.socket(fileno=os.dup(spec.stdio.console)) as sock:
                socket.send_fds(sock, [b"pty"], [master])
            os.close(master)
            self.held["terminal"] = slave
        return session

    def close(self):
        while self.held:
            os.close(self.held.popitem()[1])


@pytest.fixture
def runs(bench):
    made = Runs(bench)
    yield made
    made.close()


async def container(bench, **config):
    sandbox = await bench.pod()
    made = await bench.core.create_container(sandbox, bench.container_config(**config), None)
    await bench.core.start_container(made)
    return made


@pytest.mark.parametrize(
    "choice",
    [StreamChoice(), StreamChoice(tty=True), StreamChoice(stdout=True, stderr=True, tty=True)],
    ids=["no stream", "a terminal alone", "a terminal with stderr"],
)
async def test_choices_that_make_no_sense(bench, choice):
    box = await container(bench, stdin=True)
    with pytest.raises(InvalidArgument):
        await bench.core.exec_url(box, ["sh"], choice)
    with pytest.raises(InvalidArgument):
        await bench.core.attach_url(box, choice)


async def test_an_exec_needs_a_command_and_a_running_container(bench):
    with pytest.raises(NotFound):
        await bench.core.exec_url("f" * 64, ["sh"], ALL)
    box = await container(bench)
    with pytest.raises(InvalidArgument, match="empty"):
        await bench.core.exec_url(box, [], ALL)
    bench.world.end(box, 0)
    await asyncio.sleep(0.05)
    for call in (bench.core.exec_url(box, ["sh"], ALL), bench.core.attach_url(box, ALL)):
        with pytest.raises(FailedPrecondition, match="not running"):
            await call


async def test_an_attach_must_be_what_the_container_was_made_with(bench):
    box = await container(bench)
    with pytest.raises(InvalidArgument, match="no terminal"):
        await bench.core.attach_url(box, TERMINAL)
    with pytest.raises(InvalidArgument, match="without stdin"):
        await bench.core.attach_url(box, ALL)
    box = await bench.core.create_container(
        bench.core._heart.containers.require(box).record.sandbox_id,
        bench.container_config("tty", tty=True),
        None,
    )
    await bench.core.start_container(box)
    with pytest.raises(InvalidArgument, match="made with a terminal"):
        await bench.core.attach_url(box, StreamChoice(stdout=True))


async def test_a_backend_that_has_no_terminals_or_no_execs(bench):
    sandbox = await bench.core.run_sandbox(bench.sandbox_config("bare"), "bare")
    box = await bench.core.create_container(sandbox, bench.container_config(), None)
    await bench.core.start_container(box)
    with pytest.raises(Unsupported, match="tty"):
        await bench.core.exec_url(box, ["sh"], TERMINAL)
    assert await bench.core.exec_url(box, ["sh"], ALL)
    bench.core._heart.sandboxes.require(sandbox).handler = replace(
        bench.core._heart.handler("bare"), backend=object()
    )
    with pytest.raises(Unsupported, match="cannot run further"):
        await bench.core.exec_url(box, ["sh"], ALL)


async def test_nothing_runs_before_the_client_has_come(bench, runs):
    box = await container(bench)
    url = await bench.core.exec_url(box, ["sh", "-c", "x"], ALL)
    assert runs.specs == []
    opened = await bench.urls.commands[url].open()
    assert runs.specs[0].process.args == ("sh", "-c", "x")
    assert runs.specs[0].container_id == box
    opened.close()


async def test_an_execs_streams_lead_to_the_process(bench, runs):
    box = await container(bench)
    opened = await bench.urls.commands[await bench.core.exec_url(box, ["sh"], ALL)].open()
    os.write(opened.ends["stdin"], b"in")
    assert os.read(runs.held["stdin"], 9) == b"in"
    for name in ("stdout", "stderr"):
        os.write(runs.held[name], name.encode())
        assert os.read(opened.ends[name], 9) == name.encode()
    opened.close_stdin()
    opened.close_stdin()
    assert os.read(runs.held["stdin"], 9) == b""
    runs.sessions[0].code = 5
    runs.sessions[0].done.set()
    assert await opened.ended() == 5
    opened.close()
    opened.close()
    with pytest.raises(BrokenPipeError):
        os.write(runs.held["stdout"], b"x")


async def test_streams_that_are_not_wanted_are_not_there(bench, runs):
    box = await container(bench)
    choice = StreamChoice(stdout=True)
    opened = await bench.urls.commands[await bench.core.exec_url(box, ["sh"], choice)].open()
    assert sorted(opened.ends) == sorted(runs.held) == ["stdout"]
    opened.close()


async def test_an_exec_with_a_terminal(bench, runs):
    box = await container(bench)
    url = await bench.core.exec_url(box, ["sh"], TERMINAL)
    opened = await bench.urls.commands[url].open((80, 24))
    process = runs.specs[0].process
    assert process.terminal
    assert process.console_size == (24, 80)
    assert "TERM=xterm" in process.env
    assert opened.ends["stdin"] == opened.ends["stdout"]
    os.write(runs.held["terminal"], b"hello")
    assert os.read(opened.ends["stdout"], 9) == b"hello"
    opened.close_stdin()
    os.write(runs.held["terminal"], b"still")
    assert os.read(opened.ends["stdout"], 9) == b"still"
    opened.close()


async def test_a_terminal_that_does_not_come_kills_the_exec(bench):
    runs = Runs(bench, console=False)
    box = await container(bench)
    url = await bench.core.exec_url(box, ["sh"], TERMINAL)
    with pytest.raises(BackendError, match="terminal did not come"):
        await bench.urls.commands[url].open()
    assert runs.sessions[0].killed == [signal.SIGKILL]


async def test_an_exec_that_is_abandoned_is_killed(bench, runs):
    box = await container(bench)
    opened = await bench.urls.commands[await bench.core.exec_url(box, ["sh"], ALL)].open()
    await opened.abandon()
    assert runs.sessions[0].killed == [signal.SIGKILL]
    opened.close()


async def test_an_exec_whose_client_leaves_while_it_starts_is_killed(bench):
    held, sessions, real = asyncio.Event(), [], bench.backend.exec

    async def exec_(spec, /):
        await held.wait()
        sessions.append(await real(spec))
        return sessions[-1]

    bench.backend.exec = exec_
    box = await container(bench)
    opening = asyncio.ensure_future(
        bench.urls.commands[await bench.core.exec_url(box, ["sh"], ALL)].open()
    )
    await asyncio.sleep(0.01)
    opening.cancel()
    await asyncio.sleep(0.01)
    assert not opening.done()
    held.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert sessions[0].killed == [signal.SIGKILL]


async def test_a_failed_exec_leaves_no_descriptor(bench, runs):
    box = await container(bench)
    command = bench.urls.commands[await bench.core.exec_url(box, ["sh"], ALL)]
    before = os.listdir("/proc/self/fd")
    bench.world.faults.errors["exec"].append(BackendError("no such program"))
    with pytest.raises(BackendError, match="no such program"):
        await command.open()
    assert os.listdir("/proc/self/fd") == before


async def test_a_container_that_ended_before_the_client_came(bench):
    box = await container(bench, stdin=True)
    urls = [await bench.core.exec_url(box, ["sh"], ALL), await bench.core.attach_url(box, ALL)]
    bench.world.end(box, 0)
    await asyncio.sleep(0.05)
    for url in urls:
        with pytest.raises(FailedPrecondition, match="not running"):
            await bench.urls.commands[url].open()


# Attach.


@dataclass
class Attached:
    stdin: int | None
    stdout: int | None
    stderr: int | None


@pytest.fixture
def logs(bench, monkeypatch):
    """The logger's side of attaches: pipes whose other ends are here, and sizes."""

    class Ends:
        def __init__(self):
            self.far, self.sizes, self.refuses = {}, [], False

        async def attach(self, container_id, /, *, stdin, stdout, stderr):
            far_in, near_in = os.pipe()
            near_out, far_out = os.pipe()
            self.far = {"stdin": far_in, "stdout": far_out}
            return Attached(near_in, near_out, None)

        async def resize(self, container_id, /, *, width, height):
            if self.refuses:
                raise Unavailable("no")
            self.sizes.append((width, height))

    ends = Ends()
    monkeypatch.setattr(type(bench.core._heart.parts.logs), "attach", ends.attach, raising=False)
    monkeypatch.setattr(type(bench.core._heart.parts.logs), "resize", ends.resize, raising=False)
    yield ends
    for fd in ends.far.values():
        os.close(fd)


async def test_an_attach_joins_the_streams_and_only_leaves(bench, logs):
    box = await container(bench, stdin=True)
    opened = await bench.urls.commands[await bench.core.attach_url(box, ALL)].open()
    assert sorted(opened.ends) == ["stdin", "stdout"]
    os.write(opened.ends["stdin"], b"in")
    assert os.read(logs.far["stdin"], 9) == b"in"
    ending = asyncio.ensure_future(opened.ended())
    await opened.abandon()
    assert not ending.done()
    bench.world.end(box, 7)
    assert await ending == 0
    opened.close_stdin()
    assert os.read(logs.far["stdin"], 9) == b""
    opened.close()


async def test_an_attach_sets_the_first_size(bench, logs):
    box = await container(bench, stdin=True, tty=True)
    command = bench.urls.commands[await bench.core.attach_url(box, TERMINAL)]
    opened = await command.open((80, 24))
    await opened.resize(width=81, height=25)
    assert logs.sizes == [(80, 24), (81, 25)]
    opened.close()


async def test_an_attach_whose_size_cannot_be_set_leaves_no_descriptor(bench, logs):
    box = await container(bench, stdin=True, tty=True)
    command = bench.urls.commands[await bench.core.attach_url(box, TERMINAL)]
    logs.refuses = True
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Unavailable):
        await command.open((80, 24))
    assert len(os.listdir("/proc/self/fd")) == before + len(logs.far)


# Port-forward.


@pytest.fixture
def inside(bench, monkeypatch):
    """What listens inside sandboxes: (host, port)."""
    asked = []

    async def connect_tcp(_self, sandbox_id, host, port, /):
        asked.append((sandbox_id, host, port))
        if (host, port) not in ((("127.0.0.1", 80), ("::1", 81))):
            raise BackendError(f"{host}: refused")
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours.detach()

    monkeypatch.setattr(
        type(bench.core._heart.parts.supervisor), "connect_tcp", connect_tcp, raising=False
    )
    return asked


async def test_a_forward_tries_ipv4_then_ipv6(bench, inside):
    pod = await bench.pod()
    target = bench.urls.forwards[await bench.core.forward_url(pod, [])]
    for port, hosts in ((80, ["127.0.0.1"]), (81, ["127.0.0.1", "::1"])):
        inside.clear()
        with await target.connect(port) as sock:
            assert not sock.getblocking()
        assert inside == [(pod, host, port) for host in hosts]
    with pytest.raises(BackendError, match=r"port 82: 127.0.0.1: refused"):
        await target.connect(82)


async def test_a_forward_keeps_the_ports_that_were_named(bench):
    pod = await bench.pod()
    assert bench.urls.forwards[await bench.core.forward_url(pod, [80, 81])].ports == (80, 81)


async def test_a_forward_into_the_hosts_network_is_a_connect_of_ours(bench, inside):
    pod = await bench.core.run_sandbox(bench.sandbox_config(security=HOST_NETWORK), "")
    target = bench.urls.forwards[await bench.core.forward_url(pod, [])]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = await target.connect(listener.getsockname()[1])
        with sock:
            assert sock.getpeername() == listener.getsockname()
    with pytest.raises(BackendError, match="port 1: "):
        await target.connect(1)
    assert inside == []


async def test_a_backend_with_a_localhost_of_its_own_makes_the_connection(bench, inside):
    asked = []

    async def forward(sandbox_id, port, /):
        asked.append((sandbox_id, port))
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours.detach()

    bench.backend.forward = forward
    pod = await bench.pod()
    target = bench.urls.forwards[await bench.core.forward_url(pod, [])]
    with await target.connect(80) as sock:
        assert not sock.getblocking()
    assert (asked, inside) == ([(pod, 80)], [])


async def test_a_forward_needs_a_sandbox_that_is_ready(bench, inside):
    with pytest.raises(NotFound):
        await bench.core.forward_url("f" * 64, [])
    pod = await bench.pod()
    target = bench.urls.forwards[await bench.core.forward_url(pod, [])]
    await bench.core.stop_sandbox(pod)
    with pytest.raises(FailedPrecondition, match="not ready"):
        await target.connect(80)
    with pytest.raises(FailedPrecondition, match="not ready"):
        await bench.core.forward_url(pod, [])
    assert inside == []


async def test_before_recovery_nothing_is_answered(bench):
    await bench.core.close()
    for call in (
        bench.core.exec_url("a", ["sh"], ALL),
        bench.core.attach_url("a", ALL),
        bench.core.forward_url("a", []),
    ):
        with pytest.raises(Unavailable):
            await call
