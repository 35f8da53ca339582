"""Exec, Attach and PortForward as kubectl's users see them: over SPDY and WebSocket, on every handler.

Spec:
    kubernetes/cri-api api.proto, Exec, Attach, PortForward; reliability A3, A4, A6.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path

import pytest
from conformance.pods import Pods, eventually, log_text
from conformance.subjects import Subject
from support.server import Server

from polypod.client import CriClient, pb
from polypod.lifecycle.views import StreamChoice
from polypod.plugin.runtime import Feature
from polypod.streaming import dialing

ALL = StreamChoice(stdin=True, stdout=True, stderr=True)
OUTPUT = StreamChoice(stdout=True, stderr=True)
TERMINAL = StreamChoice(stdin=True, stdout=True, tty=True)
HOST_NETWORK = pb.LinuxSandboxSecurityContext(
    namespace_options=pb.NamespaceOption(network=pb.NODE, pid=pb.CONTAINER)
)
BOTH = pytest.mark.parametrize("spdy", [True, False], ids=["spdy", "websocket"])
LIMIT_S = 60


def _flags(choice: StreamChoice) -> dict[str, bool]:
    return {name: getattr(choice, name) for name in ("stdin", "stdout", "stderr", "tty")}


class Streams:
    """Opens streams on one server."""

    def __init__(self, cri: CriClient, *, spdy: bool) -> None:
        self.cri = cri
        self._spdy = spdy

    @contextlib.asynccontextmanager
    async def exec(self, container_id: str, script: str, choice: StreamChoice = ALL):
        """Talk to ``sh -c SCRIPT``."""
        url = await self.cri.exec_url(container_id, ["sh", "-c", script], **_flags(choice))
        async with asyncio.timeout(LIMIT_S), dialing.command(url, choice, spdy=self._spdy) as it:
            yield it

    @contextlib.asynccontextmanager
    async def attach(self, container_id: str, choice: StreamChoice = ALL):
        """Talk to a container."""
        url = await self.cri.attach_url(container_id, **_flags(choice))
        async with asyncio.timeout(LIMIT_S), dialing.command(url, choice, spdy=self._spdy) as it:
            yield it

    @contextlib.asynccontextmanager
    async def forward(self, sandbox_id: str, *ports: int):
        """Talk to ports: SPDY, or SPDY in a WebSocket."""
        url = await self.cri.forward_url(sandbox_id, ports)
        async with asyncio.timeout(LIMIT_S), dialing.forward(url, tunnel=not self._spdy) as it:
            yield it


@pytest.fixture(params=[True, False], ids=["spdy", "websocket"])
def streams(request: pytest.FixtureRequest, cri: CriClient) -> Streams:
    """Streams in both protocols."""
    return Streams(cri, spdy=request.param)


async def until(client: dialing.RemoteCommandClient, text: bytes, name: str = "stdout") -> bytes:
    """Read a stream until it has said something."""
    said = b""
    while text not in said:
        piece = await client.channels[name].inbox.get()
        assert piece, f"{name} ended without {text!r}: {said!r}"
        said += piece
    return said


# Exec.


async def test_exec_has_three_streams_and_an_exit_code(streams: Streams, pods: Pods) -> None:
    box = await (await pods.run()).start()
    script = "read line; echo got $line; echo bad >&2; exit 7"
    async with streams.exec(box, script) as it:
        await it.write(b"this\n")
        assert await it.output() == (b"got this\n", b"bad\n", 7)


async def test_exec_sees_the_end_of_its_stdin(streams: Streams, pods: Pods) -> None:
    box = await (await pods.run()).start()
    async with streams.exec(box, "cat; echo end") as it:
        await it.write(b"a\nb\n")
        it.end_stdin()
        assert await it.output() == (b"a\nb\nend\n", b"", 0)


async def test_exec_without_stdin_finds_it_empty(streams: Streams, pods: Pods) -> None:
    box = await (await pods.run()).start()
    async with streams.exec(box, "cat; echo end", OUTPUT) as it:
        assert await it.output() == (b"end\n", b"", 0)


async def test_exec_of_no_program_fails_with_its_name(streams: Streams, pods: Pods) -> None:
    box = await (await pods.run()).start()
    url = await streams.cri.exec_url(box, ["/no/such/program"], stdout=True)
    async with dialing.command(url, StreamChoice(stdout=True), spdy=streams._spdy) as it:
        code, message = await it.result()
    assert code != 0
    assert "/no/such/program" in message


async def test_exec_is_not_in_the_containers_log(streams: Streams, pods: Pods) -> None:
    pod = await pods.run()
    box = await pod.start("echo first; sleep 1000")
    async with streams.exec(box, "echo secret", OUTPUT) as it:
        await it.output()
    status = (await streams.cri.container_status(box)).status
    assert "secret" not in log_text(status.log_path)


async def test_exec_with_a_terminal(streams: Streams, pods: Pods, handler: Subject) -> None:
    handler.needs(Feature.TTY)
    box = await (await pods.run()).start()
    async with streams.exec(box, "tty; read line; echo got $line", TERMINAL) as it:
        await it.channels["resize"].write(b'{"Width":80,"Height":24}')
        said = await until(it, b"/dev/")
        await it.write(b"this\n")
        said += await it.read("stdout")
        assert (await it.result())[0] == 0
    assert b"got this" in said


async def test_sizes_of_a_terminal(streams: Streams, pods: Pods, handler: Subject) -> None:
    handler.needs(Feature.TTY)
    handler.needs_kernel()
    box = await (await pods.run()).start()
    script = "stty size; while [ \"$(stty size)\" = '24 80' ]; do sleep 0.1; done; stty size"
    async with streams.exec(box, script, TERMINAL) as it:
        await it.channels["resize"].write(b'{"Width":80,"Height":24}')
        await until(it, b"24 80")
        await it.channels["resize"].write(b'{"Width":132,"Height":50}')
        await until(it, b"50 132")
        assert (await it.result())[0] == 0


async def test_large_streams(streams: Streams, pods: Pods, handler: Subject) -> None:
    handler.needs_kernel()
    box = await (await pods.run()).start()
    size = 30_000_000
    async with streams.exec(box, f"head -c {size} /dev/zero; wc -c >&2") as it:

        async def send() -> None:
            for _ in range(size // 100_000):
                await it.write(bytes(100_000))
            it.end_stdin()

        sending = asyncio.ensure_future(send())
        stdout, stderr, code = await it.output()
        await sending
    assert (len(stdout), stderr.strip(), code) == (size, b"%d" % size, 0)


async def test_many_execs_at_once(streams: Streams, pods: Pods) -> None:
    box = await (await pods.run()).start()

    async def one(number: int) -> bool:
        async with streams.exec(box, "read line; echo got $line") as it:
            await it.write(b"%d\n" % number)
            return await it.output() == (b"got %d\n" % number, b"", 0)

    assert all(await asyncio.gather(*(one(number) for number in range(20))))


async def test_a_background_child_does_not_hold_the_exec(streams: Streams, pods: Pods) -> None:
    box = await (await pods.run()).start()
    async with streams.exec(box, "echo out; sleep 1000 & exit 3", OUTPUT) as it:
        assert await it.output() == (b"out\n", b"", 3)


async def test_an_exec_dies_with_its_client_and_the_container_lives(
    streams: Streams, pods: Pods, handler: Subject
) -> None:
    handler.needs_kernel()
    pod = await pods.run()
    box = await pod.start()
    async with streams.exec(box, "echo $$; sleep 987654 & sleep 987654", OUTPUT) as it:
        await until(it, b"\n")

    async def gone() -> bool:
        return "987654" not in await pod.sh(box, "ps -o args | grep -v grep")

    await eventually(gone, "the exec and its child are gone")
    status = (await streams.cri.container_status(box)).status
    assert status.state == pb.CONTAINER_RUNNING


async def test_an_exec_ends_with_its_container(streams: Streams, pods: Pods) -> None:
    box = await (await pods.run()).start()
    async with streams.exec(box, "echo up; sleep 1000", OUTPUT) as it:
        await until(it, b"up")
        await streams.cri.stop_container(box, 0)
        assert (await it.result())[0] != 0


async def test_a_container_that_ended_meanwhile(streams: Streams, pods: Pods) -> None:
    box = await (await pods.run()).start()
    url = await streams.cri.exec_url(box, ["sh", "-c", "echo no"], stdout=True)
    await streams.cri.stop_container(box, 0)
    async with dialing.command(url, StreamChoice(stdout=True), spdy=streams._spdy) as it:
        code, message = await it.result()
    assert code != 0
    assert "not running" in message


# Attach.


async def test_attach_sees_what_comes_and_it_is_logged_too(streams: Streams, pods: Pods) -> None:
    script = "while read line; do echo out $line; echo err $line >&2; done"
    box = await (await pods.run()).start(script, stdin=True)
    async with streams.attach(box) as it:
        await it.write(b"1\n")
        await until(it, b"out 1\n")
        await until(it, b"err 1\n", "stderr")
    async with streams.attach(box) as it:
        await it.write(b"2\n")
        assert await until(it, b"out 2\n") == b"out 2\n"
    status = (await streams.cri.container_status(box)).status
    assert status.state == pb.CONTAINER_RUNNING
    assert log_text(status.log_path) == "out 1\nout 2\n"


async def test_attach_ends_with_the_container(streams: Streams, pods: Pods) -> None:
    box = await (await pods.run()).start("read line; echo bye; exit 4", stdin=True)
    async with streams.attach(box) as it:
        await it.write(b"now\n")
        assert await it.output() == (b"bye\n", b"", 0)


async def test_stdin_once_ends_with_its_first_client(streams: Streams, pods: Pods) -> None:
    pod = await pods.run()
    box = await pod.start("cat; echo end", stdin=True, stdin_once=True)
    async with streams.attach(box) as it:
        await it.write(b"all\n")
        it.end_stdin()
        assert (await it.output())[0] == b"all\nend\n"
    assert (await pod.ended(box)).code == 0


async def test_stdin_stays_open_for_the_next_client(streams: Streams, pods: Pods) -> None:
    box = await (await pods.run()).start("cat", stdin=True)
    for text in (b"one\n", b"two\n"):
        async with streams.attach(box) as it:
            await it.write(text)
            it.end_stdin()
            await until(it, text)
    status = (await streams.cri.container_status(box)).status
    assert status.state == pb.CONTAINER_RUNNING


async def test_two_clients_see_the_same(streams: Streams, pods: Pods) -> None:
    box = await (await pods.run()).start("while read line; do echo $line; done", stdin=True)
    async with streams.attach(box) as one, streams.attach(box, OUTPUT) as two:
        await one.write(b"hello\n")
        assert await until(one, b"hello\n") == await until(two, b"hello\n")


async def test_attach_to_a_terminal(streams: Streams, pods: Pods, handler: Subject) -> None:
    handler.needs(Feature.TTY)
    script = "while read line; do echo got $line; done"
    box = await (await pods.run()).start(script, stdin=True, tty=True)
    async with streams.attach(box, TERMINAL) as it:
        await it.channels["resize"].write(b'{"Width":80,"Height":24}')
        await it.write(b"this\n")
        await until(it, b"got this")


# Port-forward.

SERVE = "while true; do echo hello | nc -l -p 8080 127.0.0.1; done"


async def _answer(client: dialing.ForwardClient, port: int) -> tuple[bytes, bytes]:
    data, error = await client.connect(port)
    said = b""
    while piece := await data.inbox.get():
        said += piece
    data.end()
    return said, await error.inbox.get()


async def _served(client: dialing.ForwardClient, port: int) -> bytes:
    """Ask until somebody listens."""

    async def said() -> bytes:
        return (await _answer(client, port))[0]

    return await eventually(said, f"an answer on port {port}")


async def test_forward_leads_to_localhost_of_the_pod(
    streams: Streams, pods: Pods, handler: Subject
) -> None:
    handler.needs_kernel()
    handler.needs_network()
    pod = await pods.run()
    await pod.start("httpd -f -p 127.0.0.1:8080 -h /etc")
    async with streams.forward(pod.id) as client:

        async def page() -> bytes:
            data, _error = await client.connect(8080)
            await data.write(b"GET /passwd HTTP/1.0\r\n\r\n")
            said = b""
            while piece := await data.inbox.get():
                said += piece
            return said

        assert b" 200 " in await eventually(page, "the page")
        pages = await asyncio.gather(*(page() for _ in range(20)))
        assert all(b" 200 " in each for each in pages)


async def test_forward_falls_back_to_ipv6(streams: Streams, pods: Pods, handler: Subject) -> None:
    handler.needs_kernel()
    handler.needs_network()
    pod = await pods.run()
    await pod.start("httpd -f -p [::1]:8080 -h /etc")
    async with streams.forward(pod.id) as client:

        async def page() -> bytes:
            data, _error = await client.connect(8080)
            await data.write(b"GET /passwd HTTP/1.0\r\n\r\n")
            return await data.inbox.get()

        assert b" 200 " in await eventually(page, "the page")


async def test_forward_to_a_port_where_nobody_listens(streams: Streams, pods: Pods) -> None:
    pod = await pods.run()
    await pod.start()
    async with streams.forward(pod.id) as client:
        said, failed = await _answer(client, 9)
        assert said == b""
        assert b"9" in failed


async def test_a6_forward_does_not_lead_to_the_node(
    streams: Streams, pods: Pods, handler: Subject
) -> None:
    pod = await pods.run()
    with socket.create_server(("127.0.0.1", 0)) as node:
        async with streams.forward(pod.id) as client:
            said, failed = await _answer(client, node.getsockname()[1])
    assert said == b""
    assert failed != b""


async def test_forward_of_a_host_network_pod_leads_to_the_host(
    streams: Streams, pods: Pods, handler: Subject
) -> None:
    handler.needs(Feature.HOST_NETWORK)
    handler.needs_kernel()
    pod = await pods.run(security=HOST_NETWORK)
    server = await asyncio.start_server(_greet, "127.0.0.1", 0)
    async with server, streams.forward(pod.id) as client:
        said, failed = await _answer(client, server.sockets[0].getsockname()[1])
    assert (said, failed) == (b"hello", b"")


async def _greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello")
    await writer.drain()
    writer.close()


async def test_forward_of_a_stopped_pod_is_refused(cri: CriClient, pods: Pods) -> None:
    pod = await pods.run()
    url = await cri.forward_url(pod.id)
    await cri.stop_sandbox(pod.id)
    async with dialing.forward(url) as client:
        assert b"not ready" in (await _answer(client, 80))[1]


# URLs.


async def test_a4_a_url_is_for_one_client(cri: CriClient, pods: Pods) -> None:
    box = await (await pods.run()).start()
    url = await cri.exec_url(box, ["sh", "-c", "echo once"], stdout=True)
    choice = StreamChoice(stdout=True)
    async with dialing.command(url, choice) as it:
        assert (await it.output())[0] == b"once\n"
    with pytest.raises(dialing.Refusal) as refused:
        async with dialing.command(url, choice):
            pass
    assert refused.value.status == 404


async def test_a_url_that_nobody_uses_costs_nothing(cri: CriClient, pods: Pods) -> None:
    pod = await pods.run()
    box = await pod.start(stdin=True)
    for _ in range(100):
        await cri.exec_url(box, ["sh", "-c", "echo run > /tmp/ran"], stdout=True)
        await cri.attach_url(box, stdin=True)
        await cri.forward_url(pod.id)
    assert await pod.sh(box, "test -e /tmp/ran || echo nothing ran") == "nothing ran\n"


async def test_a5_urls_lead_to_the_loopback(cri: CriClient, pods: Pods) -> None:
    pod = await pods.run()
    assert (await cri.forward_url(pod.id)).startswith("http://127.0.0.1:")


async def test_a3_nothing_stays_of_clients_that_fail_or_vanish(
    server: Server, streams: Streams, pods: Pods
) -> None:
    pod = await pods.run()
    box = await pod.start("while read line; do echo $line; done", stdin=True)

    async def one(number: int) -> None:
        if number % 3 == 0:
            async with streams.exec(box, "echo up; sleep 1000") as it:
                await until(it, b"up")
        elif number % 3 == 1:
            async with streams.attach(box) as it:
                await it.write(b"x\n")
        else:
            async with streams.forward(pod.id) as client:
                await _answer(client, 9)

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{server.process.pid}/fd"))

    await asyncio.gather(*(one(number) for number in range(12)))
    await asyncio.sleep(1)
    before = descriptors()
    for _ in range(10):
        await asyncio.gather(*(one(number) for number in range(12)))

    async def settled() -> bool:
        return descriptors() <= before

    await eventually(settled, "as many descriptors as before")
    assert Path(f"/proc/{server.process.pid}").exists()
