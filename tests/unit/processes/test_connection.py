"""A connection against a peer that the test plays."""

import asyncio
import os

import pytest

from polypod.plan import channel
from polypod.plugin.errors import BackendError, InvalidArgument, NotFound, Unavailable
from polypod.processes.connection import Connection


class FakePeer:
    """Answers by hand."""

    def __init__(self, path):
        self.listener = channel.listen(str(path))
        self.listener.setblocking(False)

    async def accept(self):
        sock, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        sock.setblocking(False)
        return sock

    async def receive(self, sock):
        while True:
            try:
                return channel.receive(sock)
            except BlockingIOError:
                await asyncio.sleep(0.005)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "peer.sock"


@pytest.fixture
async def peer(path):
    made = FakePeer(path)
    yield made
    made.listener.close()


@pytest.fixture
async def connection(path):
    made = Connection(path, "peer")
    yield made
    made.close()


async def test_answers_find_their_requests_in_any_order(peer, connection):
    asked = [asyncio.create_task(connection.request(f"op{number}")) for number in range(3)]
    sock = await peer.accept()
    messages = [(await peer.receive(sock))[0] for _ in range(3)]
    for message in reversed(messages):
        channel.send(sock, {"id": message["id"], "ok": {"was": message["op"]}})
    assert [(await task)[0]["was"] for task in asked] == ["op0", "op1", "op2"]
    sock.close()


@pytest.mark.parametrize(
    ("error", "kind", "errno"),
    [
        ({"kind": "NotFound", "message": "x", "errno": 0}, NotFound, None),
        ({"kind": "BackendError", "message": "x", "errno": 13}, BackendError, 13),
        ({"kind": "Nonsense", "message": "x"}, BackendError, None),
    ],
)
async def test_errors_keep_kind_text_and_errno(peer, connection, error, kind, errno):
    asked = asyncio.create_task(connection.request("op"))
    sock = await peer.accept()
    message, _ = await peer.receive(sock)
    channel.send(sock, {"id": message["id"], "error": error})
    with pytest.raises(kind, match="x") as caught:
        await asked
    assert getattr(caught.value.__cause__, "errno", None) == errno
    sock.close()


async def test_requests_in_flight_fail_when_the_peer_goes_and_later_ones_find_it_again(
    peer, connection
):
    asked = asyncio.create_task(connection.request("op"))
    sock = await peer.accept()
    await peer.receive(sock)
    sock.close()
    with pytest.raises(Unavailable, match="went away"):
        await asked
    again = asyncio.create_task(connection.request("again"))
    sock = await peer.accept()
    message, _ = await peer.receive(sock)
    channel.send(sock, {"id": message["id"], "ok": {}})
    await again
    sock.close()


async def test_descriptors_of_an_answer_that_nobody_waits_for_are_closed(peer, connection):
    asked = asyncio.create_task(connection.request("op"))
    sock = await peer.accept()
    message, _ = await peer.receive(sock)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    read_end, write_end = os.pipe()
    channel.send(sock, {"id": message["id"], "ok": {}}, [read_end])
    os.close(read_end)
    async with asyncio.timeout(20):
        while True:
            try:
                os.write(write_end, b"x")
            except BrokenPipeError:
                break
            await asyncio.sleep(0.005)
    os.close(write_end)
    sock.close()


async def test_what_does_not_fit_waits_and_keeps_its_order_and_descriptors(peer, connection):
    count = 400
    read_end, write_end = os.pipe()
    asked = [
        asyncio.create_task(connection.request("op", [write_end], text="x" * 5000, number=number))
        for number in range(count)
    ]
    sock = await peer.accept()
    await asyncio.sleep(0.05)
    os.close(write_end)
    for number in range(count):
        message, fds = await peer.receive(sock)
        assert message["number"] == number
        os.write(fds[0], b"x")
        channel.close_all(fds)
        channel.send(sock, {"id": message["id"], "ok": {}})
    await asyncio.gather(*asked)
    assert len(os.read(read_end, 65536)) == count
    os.close(read_end)
    sock.close()


async def test_events_are_told_and_their_descriptors_closed(peer, path):
    told = []
    connection = Connection(path, "peer", on_event=told.append)
    opening = asyncio.create_task(connection.open())
    sock = await peer.accept()
    await opening
    channel.send(sock, {"event": "exit", "process": "p"}, [0])
    async with asyncio.timeout(20):
        while not told:
            await asyncio.sleep(0.005)
    assert told == [{"event": "exit", "process": "p"}]
    connection.close()
    sock.close()


async def test_too_large_a_request_is_the_callers_fault(peer, connection):
    opening = asyncio.create_task(connection.open())
    sock = await peer.accept()
    await opening
    with pytest.raises(InvalidArgument, match="memfd"):
        await connection.request("op", text="x" * channel.MAX_BYTES)
    sock.close()


async def test_closed_connection_says_so(peer, connection):
    connection.close()
    with pytest.raises(Unavailable, match="closed"):
        await connection.request("op")
