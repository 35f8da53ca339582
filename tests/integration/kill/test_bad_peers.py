"""Peers that send nonsense, do not read, or vanish: nobody else notices, nothing leaks."""

import array
import asyncio
import json
import os
import select
import signal
import socket

import pytest

from polypod.plan import channel
from polypod.plan import operations as op
from polypod.plan.operations import Plan
from polypod.plugin.errors import InvalidArgument, Unimplemented

pytestmark = pytest.mark.needs_root

ROLES = ("keeper", "supervisor", "logger")
TRUE = Plan(0, [op.Execute(args=["true"], env=["PATH=/bin"], search=True)])


def raw(place, role):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(str(place.state / f"{role}.sock"))
    sock.settimeout(20)
    return sock


async def nobody_reads(pipe):
    """Returns when the reading end is closed everywhere."""
    poll = select.poll()
    poll.register(pipe, 0)
    async with asyncio.timeout(20):
        while not poll.poll(0):
            await asyncio.sleep(0.01)


def flood(sock):
    for number in range(100_000):
        channel.send(sock, {"id": number, "op": "pids"})


def count_fds(pids):
    return {role: len(os.listdir(f"/proc/{pid}/fd")) for role, pid in pids.items()}


async def works(host, pids):
    """All three answer, and they are the ones from before."""
    assert await host.pids() == pids
    made = await host.supervisor.launch("works", TRUE, fds=[])
    os.close(made.pidfd)
    assert (await host.supervisor.wait("works")).code == 0
    await host.supervisor.forget("works")
    await host.logger.request("status")
    # The keeper is told to forget, not asked.
    while (await host.keeper.request("get", prefix="process/works"))[0]["entries"]:
        await asyncio.sleep(0.01)


async def no_more_descriptors(pids, before):
    async with asyncio.timeout(20):
        while any(count > before[role] for role, count in count_fds(pids).items()):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "packet",
    [
        b"\0",
        b"{",
        b"[]",
        b"1",
        b'{"op":' * 9000,
        b"\xff\xfe{}",
        b'{"op":"x","x":"' + b"y" * (channel.MAX_BYTES + 10) + b'"}',
    ],
    ids=["nul", "cut", "list", "number", "deep", "not-utf8", "too-large"],
)
async def test_what_is_no_message_ends_its_connection_alone(place, role, packet):
    host = await place.open()
    pids = await host.pids()
    await works(host, pids)
    before = count_fds(pids)
    with raw(place, role) as sock:
        read_end, write_end = os.pipe()
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [read_end] * 50))
        sock.sendmsg([packet], [rights])
        # The end of the connection; whoever holds the pipe would keep it from breaking.
        assert sock.recv(100) == b""
        os.close(read_end)
        await nobody_reads(write_end)
        os.close(write_end)
    await works(host, pids)
    await no_more_descriptors(pids, before)


VALUES = (
    None,
    0,
    -1,
    1 << 70,
    1.5,
    True,
    "",
    ".",
    "..",
    "a/b",
    "a\0b",
    "x" * 1000,
    "é",
    [],
    {},
    [[]],
    {"a": {}},
)
FIELDS = {
    "keeper": {
        "put": ("key", "meta", "spare"),
        "drop": ("key",),
        "get": ("prefix", "after"),
        "exits": ("after",),
        "forget": ("process",),
        "nonsense": (),
    },
    "supervisor": {
        "make_namespaces": ("sandbox", "kinds", "hostname", "sysctls"),
        "namespaces": ("sandbox",),
        "list_namespaces": ("after",),
        "drop_namespaces": ("sandbox",),
        "launch": ("process", "labels", "hold"),
        "release": ("process",),
        "abort": ("process",),
        "kill": ("process", "signal"),
        "connect_tcp": ("sandbox", "host", "port"),
        "processes": ("after",),
        "forget": ("process",),
        "nonsense": (),
    },
    "logger": {
        "sync": ("container", "known"),
        "reopen": ("container",),
        "drained": ("container",),
        "close": ("container",),
        "attach": ("container", "streams"),
        "resize": ("container", "width", "height"),
        "nonsense": (),
    },
}
GOOD = {
    "key": "test/x",
    "meta": {},
    "sandbox": "s",
    "kinds": ["uts"],
    "process": "p",
    "labels": {},
    "container": "c",
    "streams": [],
    "host": "127.0.0.1",
    "port": 1,
    "signal": 0,
    "width": 1,
    "height": 1,
}


@pytest.mark.parametrize("role", ROLES)
async def test_wrong_fields_are_refused_or_harmless(place, role):
    """Every field of every operation, with values of every kind, and with descriptors nobody wants."""
    host = await place.open()
    pids = await host.pids()
    await works(host, pids)
    before = count_fds(pids)
    null = os.open("/dev/null", os.O_RDONLY)
    with raw(place, role) as sock:
        for operation, fields in FIELDS[role].items():
            good = {name: GOOD[name] for name in fields if name in GOOD}
            for field in fields or ("op",):
                for value in VALUES:
                    message = {"id": 1, "op": operation, **good, field: value}
                    for fds in ((), (null,), (null,) * 200):
                        channel.send(sock, message, list(fds))
                        answer, received = channel.receive(sock)
                        channel.close_all(received)
                        assert ("ok" in answer) != ("error" in answer), message
        for key in ("s", "test/x"):
            channel.send(sock, {"id": 1, "op": "drop", "key": key})
            channel.receive(sock)
    os.close(null)
    for name in ("s", *("x" * 1000,)):
        if role == "supervisor" and len(name) < 100:
            await host.supervisor.drop_namespaces(name)
    keeper, _ = await host.keeper.request("get", prefix="")
    for row in keeper["entries"]:
        await host.keeper.request("drop", key=row["key"])
    await works(host, pids)
    await no_more_descriptors(pids, before)


@pytest.mark.parametrize(
    "meta", [{}, {"pid": 1}, {"pid": "1", "start_time": 1}, {"pid": True, "start_time": 1}]
)
async def test_keeper_takes_no_process_without_its_facts(place, meta):
    host = await place.open()
    with pytest.raises(InvalidArgument):
        await host.keeper.request("put", key="process/p", meta=meta)
    assert (await host.keeper.request("get", prefix="process/"))[0]["entries"] == []


@pytest.mark.parametrize(
    "plan",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        json.dumps({"flags": 0, "pid_namespace": "", "operations": []}).encode(),
        json.dumps({"flags": 0, "pid_namespace": "", "operations": [["execute", {}]]}).encode(),
        json.dumps({"flags": 0, "pid_namespace": "", "operations": [["unknown", {}]]}).encode(),
        json.dumps({"flags": "x", "pid_namespace": "", "operations": []}).encode(),
        b"[" * 100_000,
    ],
)
async def test_what_is_no_plan_is_refused(place, plan):
    from polypod.processes.supervisor import _sealed

    host = await place.open()
    pids = await host.pids()
    memfd = _sealed(plan)
    with pytest.raises(InvalidArgument, match="launch plan"):
        await host._supervisor.request("launch", [memfd], process="p", labels={})
    os.close(memfd)
    await works(host, pids)


async def test_plan_that_could_still_be_changed_is_refused(place):
    host = await place.open()
    memfd = os.memfd_create("plan")
    os.write(memfd, json.dumps(TRUE.to_wire()).encode())
    with pytest.raises(InvalidArgument, match="sealed"):
        await host._supervisor.request("launch", [memfd], process="p", labels={})
    os.close(memfd)


@pytest.mark.parametrize("role", ["keeper", "supervisor"])
async def test_a_peer_that_does_not_read_loses_nothing_and_holds_up_nobody(place, role):
    host = await place.open()
    pids = await host.pids()
    request = {"keeper": "pids", "supervisor": "processes"}[role]
    with raw(place, role) as sock:
        # Far more answers than its buffer takes, far fewer than are queued.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for number in range(900):
            channel.send(sock, {"id": number, "op": request})
        await works(host, pids)
        for number in range(900):
            answer, _ = channel.receive(sock)
            assert answer["id"] == number
            assert "ok" in answer


async def test_a_watcher_that_never_reads_is_given_up(place):
    host = await place.open()
    pids = await host.pids()
    with raw(place, "keeper") as sock:
        sock.setblocking(True)
        channel.send(sock, {"id": 1, "op": "watch"})
        with pytest.raises(OSError, match=r"Broken pipe"):
            flood(sock)
        await works(host, pids)


async def test_clients_that_vanish_leave_nothing(place):
    host = await place.open()
    pids = await host.pids()
    await works(host, pids)
    before = count_fds(pids)
    for role in ROLES:
        for _ in range(100):
            with raw(place, role) as sock:
                channel.send(sock, {"id": 1, "op": "get", "prefix": ""})
    await works(host, pids)
    await no_more_descriptors(pids, before)


async def test_requests_beyond_the_socket_buffer_wait_in_line(place):
    """The supervisor stands still: nobody is told to try again, nothing is lost."""
    host = await place.open()
    pids = await host.pids()
    os.kill(pids["supervisor"], signal.SIGSTOP)
    try:
        asked = [
            asyncio.create_task(host.supervisor.launch(f"p{number}", TRUE, fds=[0] * 10))
            for number in range(500)
        ]
        await asyncio.sleep(0.2)
        assert not any(task.done() for task in asked)
    finally:
        os.kill(pids["supervisor"], signal.SIGCONT)
    for made in await asyncio.gather(*asked):
        os.close(made.pidfd)
    codes = [(await host.supervisor.wait(f"p{number}")).code for number in range(500)]
    assert codes == [0] * 500


async def test_unknown_operations_are_told_apart(place):
    host = await place.open()
    for connection in (host.keeper, host._supervisor, host.logger):
        with pytest.raises(Unimplemented, match="no operation 'nonsense'"):
            await connection.request("nonsense")
