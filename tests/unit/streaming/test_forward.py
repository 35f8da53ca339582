"""Port-forward through real sockets: pairs of streams, half-closes, ports where nobody listens."""

import asyncio

import pytest

from polypod.streaming import dialing
from polypod.streaming.errors import Gone

TUNNEL = pytest.mark.parametrize("tunnel", [False, True], ids=["spdy", "websocket tunnel"])


@TUNNEL
async def test_many_connections_through_one_forward(server, plays, tunnel):
    pod = plays.Pod({80: plays.echo_socket})
    async with dialing.forward(server.forward(pod), tunnel=tunnel) as client:

        async def one(number):
            data, error = await client.connect(80)
            text = b"%d." % number * 5000
            await data.write(text)
            data.end()
            got = b""
            while piece := await data.inbox.get():
                got += piece
            return got == text and await error.inbox.get() == b""

        assert all(await asyncio.gather(*(one(number) for number in range(100))))
    assert len(pod.connections) == 100
    await pod.idle()


@TUNNEL
async def test_a_port_where_nobody_listens_fails_alone(server, plays, tunnel):
    pod = plays.Pod({80: plays.echo_socket})
    async with dialing.forward(server.forward(pod), tunnel=tunnel) as client:
        good, _error = await client.connect(80)
        bad, error = await client.connect(81)
        assert b"81" in await error.inbox.get()
        assert await bad.inbox.get() == b""
        await good.write(b"still here")
        assert await good.inbox.get() == b"still here"
    await pod.idle()


async def test_a_forward_is_bound_to_its_ports(server, plays):
    pod = plays.Pod({80: plays.echo_socket, 81: plays.echo_socket}, ports=(80,))
    async with dialing.forward(server.forward(pod)) as client:
        _data, error = await client.connect(81)
        assert b"not asked for" in await error.inbox.get()
    assert pod.connections == []


@TUNNEL
async def test_half_close_from_the_pod(server, plays, tunnel):
    got = []

    async def serve(sock):
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, b"bye")
        sock.shutdown(1)
        while data := await loop.sock_recv(sock, 100):
            got.append(data)

    pod = plays.Pod({80: serve})
    async with dialing.forward(server.forward(pod), tunnel=tunnel) as client:
        data, error = await client.connect(80)
        assert await data.inbox.get() == b"bye"
        assert await data.inbox.get() == b""
        await data.write(b"and you")
        data.end()
        assert await error.inbox.get() == b""
    await pod.idle()
    assert got == [b"and you"]


@TUNNEL
async def test_a_reset_closes_the_socket(server, plays, tunnel):
    pod = plays.Pod({80: plays.echo_socket})
    async with dialing.forward(server.forward(pod), tunnel=tunnel) as client:
        data, _error = await client.connect(80)
        await data.write(b"x")
        await data.inbox.get()
        data.reset()
        await pod.idle()


@TUNNEL
async def test_a3_connections_end_with_the_client(server, plays, tunnel):
    pod = plays.Pod({80: plays.echo_socket})
    async with dialing.forward(server.forward(pod), tunnel=tunnel) as client:
        for _ in range(20):
            await client.connect(80)
        await plays.eventually(lambda: len(pod.connections) == 20, "the connections")
    await pod.idle()


async def test_streams_that_are_none_of_a_forward_are_refused(server, plays):
    pod = plays.Pod({80: plays.echo_socket})
    async with dialing.forward(server.forward(pod)) as client:
        for headers in (
            {"streamtype": "stdin", "port": "80", "requestid": "1"},
            {"streamtype": "data", "port": "0", "requestid": "1"},
            {"streamtype": "data", "port": "99999", "requestid": "1"},
            {"streamtype": "data", "port": "x", "requestid": "1"},
            {"streamtype": "data"},
        ):
            with pytest.raises(Gone):
                await client._link.open(headers)
        first = await client._link.open({"streamtype": "error", "port": "80", "requestid": "7"})
        assert first.number
        for headers in (
            {"streamtype": "error", "port": "80", "requestid": "7"},
            {"streamtype": "data", "port": "81", "requestid": "7"},
        ):
            with pytest.raises(Gone):
                await client._link.open(headers)


async def test_a_stream_without_its_other_half_is_reset(server, plays, monkeypatch):
    monkeypatch.setattr("polypod.streaming.forwards.PAIR_S", 0.1)
    async with dialing.forward(server.forward(plays.Pod({}))) as client:
        half = await client._link.open({"streamtype": "error", "port": "80", "requestid": "1"})
        await plays.eventually(lambda: half.is_reset, "the reset")


async def test_old_clients_give_no_request_id(server, plays):
    async with dialing.forward(server.forward(plays.Pod({80: plays.echo_socket}))) as client:
        await client._link.open({"streamtype": "error", "port": "80"})
        data = await client._link.open({"streamtype": "data", "port": "80"})
        await data.write(b"hello")
        assert await data.inbox.get() == b"hello"


@pytest.mark.parametrize("protocol", ["v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""])
async def test_the_older_websocket_form(server, plays, protocol):
    """Channels 2n and 2n + 1 for the nth port, each begins with its number."""
    pod = plays.Pod({80: plays.echo_socket}, ports=(80, 81))
    async with dialing.forward_channels(server.forward(pod), 2, protocol=protocol) as channels:
        for number, port in enumerate((80, 80, 81, 81)):
            assert await channels[number].inbox.get() == port.to_bytes(2, "little")
        assert b"Connection refused" in await channels[3].inbox.get()
        await channels[0].write(b"hello")
        assert await channels[0].inbox.get() == b"hello"
    await pod.idle()
