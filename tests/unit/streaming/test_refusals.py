"""A4, A5, A9: who gets no stream, and clients that misbehave."""

import asyncio
import os

import pytest

from polypod.lifecycle.views import StreamChoice
from polypod.plugin.errors import Unavailable
from polypod.streaming import dialing
from polypod.streaming import server as server_module
from polypod.streaming.server import Settings, StreamingServer
from polypod.streaming.tokens import LIMIT


async def raw_request(url, *headers, method="GET"):
    """Send a request by hand; return the whole answer."""
    host, _, path = url.removeprefix("http://").partition("/")
    name, _, port = host.partition(":")
    reader, writer = await asyncio.open_connection(name, int(port))
    lines = [f"{method} /{path} HTTP/1.1", *(headers or (f"Host: {host}",)), "", ""]
    writer.write("\r\n".join(lines).encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


# Who is refused.


async def test_a4_a_url_works_once(server, plays):
    url = server.exec(plays.Command(plays.echo))
    async with dialing.command(url, plays.ALL):
        with pytest.raises(dialing.Refusal) as refused:
            async with dialing.command(url, plays.ALL):
                pass
    assert refused.value.status == 404


@pytest.mark.parametrize("change", ["/attach/", "/portforward/", "/", "/exec/x"])
async def test_a4_a_token_is_good_for_its_own_kind(server, plays, change):
    url = server.exec(plays.Command(plays.echo)).replace("/exec/", change)
    with pytest.raises(dialing.Refusal) as refused:
        async with dialing.command(url, plays.ALL):
            pass
    assert refused.value.status == 404


async def test_a4_no_token_is_404_and_the_connection_is_closed(server, plays):
    base = server.exec(plays.Command(plays.echo)).rpartition("/exec/")[0]
    assert (await raw_request(f"{base}/exec/")).startswith(b"HTTP/1.1 404 ")
    assert (await raw_request(f"{base}/")).startswith(b"HTTP/1.1 404 ")


async def test_a4_a_displaced_token_is_429(server, plays):
    urls = [server.exec(plays.Command(plays.echo)) for _ in range(LIMIT + 1)]
    with pytest.raises(dialing.Refusal) as refused:
        async with dialing.command(urls[0], plays.ALL):
            pass
    assert refused.value.status == 429


async def test_a4_a_second_request_behind_a_failed_one_is_not_read(server, plays):
    first, second = (server.exec(plays.Command(plays.echo)) for _ in range(2))
    host = first.removeprefix("http://").partition("/")[0]
    path = second.removeprefix(f"http://{host}")
    smuggled = (
        f"Host: {host}\r\n\r\nGET {path} HTTP/1.1\r\nHost: {host}\r\n"
        "Connection: Upgrade\r\nUpgrade: SPDY/3.1"
    )
    answer = await raw_request(first, smuggled)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    async with dialing.command(second, plays.ALL):
        pass


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "CONNECT", "HEAD"])
async def test_a4_other_methods_use_no_token_up(server, plays, method):
    url = server.exec(plays.Command(plays.echo))
    assert b" 405 " in (await raw_request(url, method=method)).splitlines()[0]
    async with dialing.command(url, plays.ALL):
        pass


async def test_a5_a_foreign_page_uses_no_token_up(server, plays):
    url = server.exec(plays.Command(plays.echo))
    answer = await raw_request(url, "Host: evil.example")
    assert answer.startswith(b"HTTP/1.1 403 ")
    async with dialing.command(url, plays.ALL):
        pass


async def test_a_server_that_does_not_listen_makes_no_urls(plays):
    with pytest.raises(Unavailable):
        StreamingServer(Settings("127.0.0.1", 0)).exec(plays.Command(plays.echo))


# Who misbehaves.


async def test_a9_a_client_that_says_nothing_is_closed(server, plays, monkeypatch):
    monkeypatch.setattr(server_module, "REQUEST_S", 0.1)
    answer = await raw_request(
        server.exec(plays.Command(plays.echo)), "Host: x\r\nA: b\r\n\r\n"[:9]
    )
    assert answer == b"" or b" 4" in answer.splitlines()[0]
    host, _, port = server.exec(plays.Command(plays.echo))[7:].partition("/")[0].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    assert b" 408 " in (await reader.read()).splitlines()[0]
    writer.close()
    await writer.wait_closed()


async def test_a9_too_many_that_say_nothing_keep_nobody_out(server, plays, monkeypatch):
    monkeypatch.setattr(server_module, "WAITING_LIMIT", 5)
    monkeypatch.setattr(server_module, "REQUEST_S", 0.5)
    url = server.exec(plays.Command(plays.echo))
    host, _, port = url[7:].partition("/")[0].partition(":")
    idle = [await asyncio.open_connection(host, int(port)) for _ in range(8)]
    # The oldest give way: who means it sends its request at once.
    assert [await reader.read() for reader, _writer in idle[:3]] == [b""] * 3
    async with dialing.command(url, plays.ALL):
        pass
    await asyncio.gather(*(reader.read() for reader, _writer in idle))
    for _reader, writer in idle:
        writer.close()


@pytest.mark.parametrize(
    "garbage",
    [b"\x80\x02\x00\x06\0\0\0\4\0\0\0\1", b"\x80\x03\x00\x01\x01\xff\xff\xff", os.urandom(64)],
    ids=["version", "length", "random"],
)
async def test_a9_garbage_ends_that_connection_only(server, plays, garbage):
    host, _, path = server.exec(plays.Command(plays.echo))[7:].partition("/")
    name, _, port = host.partition(":")
    reader, writer = await asyncio.open_connection(name, int(port))
    head = (
        f"POST /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"
    )
    writer.write(head.encode() + garbage)
    writer.write_eof()
    assert (await reader.read()).startswith(b"HTTP/1.1 101 ")
    writer.close()
    async with dialing.command(server.exec(plays.Command(plays.echo)), plays.ALL) as client:
        client.end_stdin()
        assert (await client.result())[0] == 0


async def flood(writer, data):
    """Send until the other side hangs up; return how often."""
    for count in range(10_000):
        writer.write(data)
        try:
            await writer.drain()
        except OSError:
            return count
    return 10_000


async def test_a9_a_flood_of_pings_that_reads_no_answers_is_cut_off(server, plays):
    host, _, path = server.forward(plays.Pod({}))[7:].partition("/")
    name, _, port = host.partition(":")
    _reader, writer = await asyncio.open_connection(name, int(port), limit=1)
    head = (
        f"POST /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"
    )
    writer.write(head.encode())
    pings = b"\x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x01" * 10_000
    sent = await flood(writer, pings)
    assert sent < 10_000
    writer.transport.abort()


async def test_a_client_that_opens_no_streams_is_given_up(server, plays, monkeypatch):
    monkeypatch.setattr("polypod.streaming.sessions.STREAMS_S", 0.1)
    command = plays.Command(plays.echo)
    async with dialing.command(server.exec(command), StreamChoice(stdin=True), spdy=True) as client:
        assert (await client.result()) == (0, "")
    assert command.programs == []


async def test_a_connection_on_which_nothing_is_said_is_closed(plays):
    server = StreamingServer(Settings("127.0.0.1", 0, idle_s=0.2))
    await server.start()
    command = plays.Command(plays.echo)
    async with dialing.command(server.exec(command), plays.ALL, spdy=True) as client:
        await client.write(b"x")
        await client.channels["stdout"].inbox.get()
        await plays.eventually(lambda: command.programs[0].abandoned, "the end")
    await server.stop()
