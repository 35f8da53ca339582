"""The server with real sockets and played programs: every protocol, refusals, clients that misbehave."""

import asyncio
import gc
import os

import pytest

from polypod.lifecycle.views import StreamChoice
from polypod.plugin.errors import BackendError
from polypod.streaming import dialing
from polypod.streaming.protocols import SPDY_COMMAND, WEBSOCKET_COMMAND
from polypod.streaming.server import Settings, StreamingServer

VERSIONS = [
    *(pytest.param(True, each.name, id=f"spdy {each.name or 'v1'}") for each in SPDY_COMMAND),
    *(pytest.param(False, each.name, id=f"ws {each.name or 'v1'}") for each in WEBSOCKET_COMMAND),
]
BOTH = pytest.mark.parametrize("spdy", [True, False], ids=["spdy", "websocket"])


def open_fds():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


# Exec and attach.


@pytest.mark.parametrize(("spdy", "protocol"), VERSIONS)
async def test_a_program_in_every_version(server, plays, spdy, protocol):
    async def program(self):
        data = b""
        while len(data) < 5:
            data += await self.read()
        await self.write(data.upper())
        await self.write(b"oops", "stderr")
        return 3

    url = server.exec(plays.Command(program))
    async with dialing.command(url, plays.ALL, spdy=spdy, protocol=protocol) as client:
        await client.write(b"hello")
        stdout, stderr, code = await client.output()
    assert (stdout, stderr) == (b"HELLO", b"oops")
    json_status = protocol.startswith(("v4", "v5"))
    assert code == (3 if json_status else 1)


@pytest.mark.parametrize(
    ("spdy", "protocol"),
    [(True, None), (True, "v2.channel.k8s.io"), (False, "v5.channel.k8s.io")],
)
async def test_the_end_of_stdin_reaches_the_program(server, plays, spdy, protocol):
    async with dialing.command(
        server.exec(plays.Command(plays.echo)), plays.ALL, spdy=spdy, protocol=protocol
    ) as client:
        await client.write(b"12345")
        client.end_stdin()
        assert await client.output() == (b"12345", b"5", 0)


@BOTH
async def test_a_program_that_cannot_be_started(server, plays, spdy):
    command = plays.Command(None, error=BackendError("no such program"))
    async with dialing.command(server.exec(command), plays.ALL, spdy=spdy) as client:
        code, message = await client.result()
    assert code == 1
    assert "no such program" in message


@BOTH
async def test_only_the_wanted_streams(server, plays, spdy):
    async def program(self):
        await self.write(b"out")
        return 0

    choice = StreamChoice(stdout=True)
    command = plays.Command(program, choice)
    async with dialing.command(server.exec(command), choice, spdy=spdy) as client:
        assert sorted(client.channels) == ["error", "stdout"]
        assert await client.output() == (b"out", b"", 0)


@BOTH
async def test_sizes_of_a_terminal(server, plays, spdy):
    async def program(self):
        await plays.eventually(lambda: len(self.sizes) == 3, "three sizes")
        return 0

    choice = StreamChoice(stdin=True, stdout=True, tty=True)
    command = plays.Command(program, choice)
    async with dialing.command(server.exec(command), choice, spdy=spdy) as client:
        for size in (b'{"Width":80,"Height":24}', b'{"Width":81,', b'"Height":25}', b"{}"):
            await client.channels["resize"].write(size)
        await client.channels["resize"].write(b'{"Width":82,"Height":26}')
        assert (await client.result())[0] == 0
    assert command.programs[0].sizes == [(80, 24), (81, 25), (82, 26)]


@BOTH
async def test_a_background_child_that_keeps_the_output_holds_nobody(server, plays, spdy):
    kept = []

    async def program(self):
        await self.write(b"x" * 60_000)
        kept.append(os.dup(self.theirs["stdout"]))
        return 0

    async with dialing.command(server.exec(plays.Command(program)), plays.ALL, spdy=spdy) as client:
        stdout, _stderr, code = await client.output()
    os.close(kept[0])
    assert (len(stdout), code) == (60_000, 0)


@BOTH
async def test_a3_an_exec_dies_with_its_client(server, plays, spdy):
    async def program(self):
        await asyncio.sleep(1000)

    command = plays.Command(program)
    async with dialing.command(server.exec(command), plays.ALL, spdy=spdy):
        await plays.eventually(lambda: command.programs, "the program")
    await plays.eventually(lambda: command.programs[0].closed, "its end")
    assert command.programs[0].abandoned


@BOTH
async def test_a3_also_while_it_reads_nothing_of_what_the_client_has_sent(
    server, plays, spdy, monkeypatch
):
    monkeypatch.setattr("polypod.streaming.channels.PATIENCE_S", 1)

    async def program(self):
        await asyncio.sleep(1000)

    command = plays.Command(program)
    async with dialing.command(server.exec(command), plays.ALL, spdy=spdy) as client:
        # More than pipe and inbox take, less than what would stay in the client's own socket.
        await client.write(bytes(300_000))
    await plays.eventually(lambda: command.programs[0].abandoned, "its end")


@BOTH
async def test_an_attach_ends_with_its_streams_and_only_leaves(server, plays, spdy):
    async def program(self):
        await self.write(b"hello")
        self.close_theirs()
        await asyncio.sleep(1000)

    command = plays.Command(program, attach=True)
    async with dialing.command(server.attach(command), plays.ALL, spdy=spdy) as client:
        assert await client.output() == (b"hello", b"", 0)
    await command.programs[0].abandon()


@BOTH
async def test_an_attach_to_stdin_alone_ends_with_it(server, plays, spdy):
    async def program(self):
        self.got = await self.read()
        await asyncio.sleep(1000)

    choice = StreamChoice(stdin=True)
    command = plays.Command(program, choice, attach=True)
    async with dialing.command(server.attach(command), choice, spdy=spdy) as client:
        await client.write(b"hello")
        client.end_stdin()
        assert (await client.result())[0] == 0
    assert command.programs[0].got == b"hello"
    await command.programs[0].abandon()


# Much.


@BOTH
async def test_large_streams_in_both_directions(server, plays, spdy):
    size = 20_000_000
    async with dialing.command(
        server.exec(plays.Command(plays.echo)), plays.ALL, spdy=spdy
    ) as client:

        async def send():
            for _ in range(size // 100_000):
                await client.write(bytes(100_000))
            client.end_stdin()

        sending = asyncio.ensure_future(send())
        stdout, stderr, code = await client.output()
        await sending
    assert (len(stdout), stderr, code) == (size, b"%d" % size, 0)


@BOTH
async def test_a_client_that_does_not_read_holds_the_program_back(server, plays, spdy):
    written = 0

    async def program(self):
        nonlocal written
        for _ in range(1000):
            await self.write(bytes(100_000))
            written += 100_000
        return 0

    command = plays.Command(program)
    async with dialing.command(server.exec(command), plays.ALL, spdy=spdy) as client:
        before = -1
        while before != written:
            before = written
            await asyncio.sleep(0.3)
        # Sockets, pipes and inboxes are full; more is nowhere.
        assert written < 20_000_000
        stdout, _stderr, code = await client.output()
    assert (len(stdout), code) == (100_000_000, 0)


@BOTH
async def test_many_clients_at_once(server, plays, spdy):
    async def one(number):
        url = server.exec(plays.Command(plays.echo))
        async with dialing.command(url, plays.ALL, spdy=spdy) as client:
            text = b"%d" % number * 1000
            await client.write(text)
            client.end_stdin()
            stdout, _stderr, code = await client.output()
            return stdout == text and code == 0

    assert all(await asyncio.gather(*(one(number) for number in range(100))))


# The end.


async def test_a3_nothing_is_left_of_500_of_each(server, plays):
    async def talks(program):
        await program.read()
        return 0

    async def fails(_program):
        raise BackendError("it broke")

    async def one(number):
        if number % 4 == 0:
            url, kind = server.exec(plays.Command(talks)), dialing.command
        elif number % 4 == 1:
            url, kind = server.exec(plays.Command(fails)), dialing.command
        elif number % 4 == 2:
            url, kind = server.attach(plays.Command(plays.echo, attach=True)), dialing.command
        else:
            async with dialing.forward(
                server.forward(plays.Pod({80: plays.echo_socket}))
            ) as client:
                await client.connect(80 + number % 8 // 4)
            return
        async with kind(url, plays.ALL, spdy=bool(number % 8 // 4)) as client:
            if number % 3:
                await client.write(b"x")

    await one(0)
    tasks, fds = len(asyncio.all_tasks()), open_fds()
    for _ in range(20):
        await asyncio.gather(*(one(number) for number in range(100)))
    await plays.eventually(lambda: len(asyncio.all_tasks()) <= tasks, "all tasks have ended")
    await plays.eventually(lambda: open_fds() <= fds, "all descriptors are closed")


async def test_a_stopped_server_ends_its_clients(plays):
    async def program(self):
        await asyncio.sleep(1000)

    server = StreamingServer(Settings("127.0.0.1", 0))
    await server.start()
    command = plays.Command(program)
    async with dialing.command(server.exec(command), plays.ALL) as client:
        await plays.eventually(lambda: command.programs, "the program")
        await server.stop()
        assert await client.read("stdout") == b""
    assert command.programs[0].abandoned
    await server.stop()
