"""The guest's side: sources of a plan become descriptors, exits wait for what was written before."""

from __future__ import annotations

import os
import socket

import pytest

from polypod.plan import operations as op
from polypod.plan.operations import Plan
from polypod_vm_child.guest_launch import Opened, Refused, open_streams, resolve
from polypod_vm_child.guest_process import Farewell, Process


def plan() -> Plan:
    return Plan(
        0,
        [
            op.JoinCgroups(sources=["cgroup:own"]),
            op.JoinNamespaces(
                items=[["ipc", "sandbox:ipc"], ["uts", "sandbox:uts"]], kinds=[], pidfd=""
            ),
            op.AttachRoot(source="disk:1"),
            op.AttachMount(source="bind:0", target="/etc/hosts", is_directory=False),
            op.UseStdio(stdin="", stdout="stream:stdout", stderr="stream:stdout", uid=0),
            op.Execute(args=["stream:stdout"], env=["A=disk:1"], search=True),
        ],
        "sandbox:pid",
    )


@pytest.fixture
def opened():
    made = Opened()
    yield made
    made.close()


def descriptor() -> int:
    return os.open("/dev/null", os.O_RDONLY)


def test_sources_become_numbers_of_descriptors(opened):
    ours = {}
    for source in ("cgroup:own", "disk:1", "bind:0", "stream:stdout"):
        ours[source] = descriptor()
        opened.add(source, ours[source])
    lent = {"sandbox:ipc": 900, "sandbox:uts": 901, "sandbox:pid": 902}
    made = resolve(plan(), opened, lent.__getitem__)
    named = {source: f"fd:{opened.fds.index(fd)}" for source, fd in {**ours, **lent}.items()}
    operations = made.operations
    assert operations[0].sources == [named["cgroup:own"]]
    assert operations[1].items == [["ipc", named["sandbox:ipc"]], ["uts", named["sandbox:uts"]]]
    assert operations[1].pidfd == ""
    assert operations[2].source == named["disk:1"]
    assert operations[3].source == named["bind:0"]
    assert (operations[4].stdin, operations[4].stdout) == ("", named["stream:stdout"])
    assert operations[4].stderr == operations[4].stdout
    assert made.pid_namespace == named["sandbox:pid"]


def test_what_a_program_is_given_is_no_source(opened):
    for source in ("cgroup:own", "disk:1", "bind:0", "stream:stdout"):
        opened.add(source, descriptor())
    made = resolve(plan(), opened, lambda _source: 900)
    assert made.execute.args == ["stream:stdout"]
    assert made.execute.env == ["A=disk:1"]


def test_a_source_that_is_not_there_is_refused(opened):
    def refuse(source: str) -> int:
        raise Refused("InvalidArgument", source)

    with pytest.raises(Refused, match="cgroup:own"):
        resolve(plan(), opened, refuse)


def test_descriptors_of_a_launch_are_closed_with_it():
    opened = Opened()
    fd = descriptor()
    opened.add("disk:1", fd)
    opened.close()
    opened.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_streams_are_pipes_in_their_directions(opened):
    ours = open_streams({"stdin": 2, "stdout": 4, "stderr": 6}, opened)
    assert [(stream, way) for stream, way, _fd in ours] == [(2, "in"), (4, "out"), (6, "out")]
    theirs = {
        name: opened.fds[int(opened.index(f"stream:{name}", int)[3:])]
        for name in ("stdin", "stdout")
    }
    os.write(ours[0][2], b"to the program")
    assert os.read(theirs["stdin"], 99) == b"to the program"
    os.write(theirs["stdout"], b"from it")
    assert os.read(ours[1][2], 99) == b"from it"
    for _stream, _way, fd in ours:
        os.close(fd)


def test_a_terminal_is_a_socket_to_send_it_over(opened):
    ((stream, way, fd),) = open_streams({"console": 8}, opened)
    assert (stream, way) == (8, "console")
    with socket.socket(fileno=fd) as mine:
        theirs = opened.fds[int(opened.index("stream:console", int)[3:])]
        with socket.socket(fileno=os.dup(theirs)) as other:
            socket.send_fds(other, [b"pty"], [0])
        _data, fds, _flags, _address = socket.recv_fds(mine, 64, 1)
    assert len(fds) == 1
    os.close(fds[0])


class Waiting:
    """A stream that has not sent all yet."""

    def __init__(self) -> None:
        self.callbacks = []

    def when_sent(self, callback):
        self.callbacks.append(callback)


def test_an_exit_waits_for_every_stream_and_is_told_once():
    told = []
    streams = [Waiting(), Waiting()]
    farewell = Farewell(streams, lambda: told.append(1))
    streams[0].callbacks[0]()
    assert told == []
    streams[1].callbacks[0]()
    farewell.now()
    assert told == [1]


def test_an_exit_without_streams_is_told_at_once():
    told = []
    Farewell([], lambda: told.append(1))
    assert told == [1]


def test_an_exit_does_not_wait_for_ever():
    told = []
    stream = Waiting()
    Farewell([stream], lambda: told.append(1)).now()
    stream.callbacks[0]()
    assert told == [1]


def test_a_process_is_described_for_a_new_daemon():
    process = Process("container", "/pod/x", own_pids=False)
    process.pid, process.started = 7, True
    assert process.describe() == {
        "kind": "container",
        "pid": 7,
        "started": True,
        "exit": None,
        "oom": False,
    }
