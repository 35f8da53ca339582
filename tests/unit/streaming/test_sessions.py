"""Whole sessions over a transport that plays any client: whatever it sends, nothing stays and nothing breaks."""

import asyncio
import os

from hypothesis import given, settings
from hypothesis import strategies as st

from polypod.lifecycle.views import StreamChoice
from polypod.streaming import spdy_frames as frames
from polypod.streaming.handshake import Upgrade
from polypod.streaming.protocols import (
    SPDY_COMMAND,
    SPDY_PORT_FORWARD,
    WEBSOCKET_COMMAND,
    WEBSOCKET_PORT_FORWARD,
)
from polypod.streaming.sessions import Session, expected_streams
from polypod.streaming.websocket import WebSocket

ALL = StreamChoice(stdin=True, stdout=True, stderr=True)
TERMINAL = StreamChoice(stdin=True, stdout=True, tty=True)


class Client:
    """Implements `Transport`: says its pieces, then leaves."""

    def __init__(self, pieces):
        self._pieces = list(pieces)
        self.said = bytearray()
        self.active = 0

    async def receive(self):
        await asyncio.sleep(0)
        return self._pieces.pop(0) if self._pieces else b""

    def write(self, data, /):
        self.said += data

    async def drain(self):
        await asyncio.sleep(0)

    def peer_sends_no_more(self):
        return True


def session(client, dialect, *, websocket):
    return Session(client, Upgrade(websocket, dialect, ()))


def run(work):
    """Run to the end; every task and descriptor is gone then."""

    async def checked():
        before = os.listdir("/proc/self/fd")
        async with asyncio.timeout(20):
            await work()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert len(os.listdir("/proc/self/fd")) == len(before)

    asyncio.run(checked())


names = st.sampled_from(["error", "stdin", "stdout", "stderr", "resize", "data", "x", ""])
headers = st.fixed_dictionaries(
    {"streamtype": names},
    optional={
        "port": st.sampled_from(["80", "81", "0", "x"]),
        "requestid": st.sampled_from(["0", "1", ""]),
    },
)
streams = st.integers(1, 11)
frame = st.one_of(
    st.builds(frames.SynStream, streams, headers, st.booleans()),
    st.builds(frames.Data, streams, st.binary(max_size=40), st.booleans()),
    st.builds(frames.RstStream, streams, st.integers(0, 11)),
    st.builds(frames.WindowUpdate, st.integers(0, 11), st.integers(0, 100_000)),
    st.builds(frames.Settings, st.integers(0, 1000)),
    st.builds(frames.Ping, streams),
    st.builds(frames.GoAway, streams),
)


def spdy_bytes(sent):
    writer = frames.FrameWriter()
    return [writer.write(each) for each in sent]


def opened(choice, dialect):
    """The frames by which an honest client opens its streams."""
    wanted = sorted(expected_streams(choice, dialect))
    return [frames.SynStream(2 * n + 1, {"streamtype": name}) for n, name in enumerate(wanted)]


@settings(max_examples=60)
@given(st.sampled_from(SPDY_COMMAND), st.booleans(), st.lists(frame, max_size=25))
def test_any_frames_to_an_exec(plays, dialect, honest, sent):
    async def work():
        command = plays.Command(plays.echo, TERMINAL)
        begun = opened(TERMINAL, dialect) if honest else []
        client = Client(spdy_bytes([*begun, *sent]))
        await session(client, dialect, websocket=False).command(command)
        assert all(program.closed for program in command.programs)

    run(work)


@settings(max_examples=60)
@given(st.sampled_from(SPDY_PORT_FORWARD), st.lists(frame, max_size=25))
def test_any_frames_to_a_forward(plays, dialect, sent):
    async def work():
        pod = plays.Pod({80: plays.echo_socket})
        await session(Client(spdy_bytes(sent)), dialect, websocket=False).forward(pod)
        await pod.idle()

    run(work)


@settings(max_examples=60)
@given(
    st.sampled_from(WEBSOCKET_COMMAND),
    st.lists(st.tuples(st.integers(0, 6), st.binary(max_size=40)), max_size=20),
    st.binary(max_size=20),
)
def test_any_messages_to_an_exec(plays, dialect, sent, rest):
    async def work():
        command = plays.Command(plays.echo, ALL)
        speaker = WebSocket(dialect, client=True)
        for channel, data in sent:
            speaker.send(channel, data)
        client = Client([speaker.bytes_to_send() or rest or b"\0", rest or b"\0"])
        await session(client, dialect, websocket=True).command(command)
        assert all(program.closed for program in command.programs)

    run(work)


@settings(max_examples=60)
@given(
    st.sampled_from(WEBSOCKET_PORT_FORWARD), st.lists(frame, max_size=15), st.binary(max_size=20)
)
def test_any_messages_to_a_forward(plays, dialect, sent, rest):
    async def work():
        pod = plays.Pod({80: plays.echo_socket}, ports=(80, 81))
        speaker = WebSocket(dialect, client=True)
        for piece in spdy_bytes(sent):
            speaker.send(0, piece)
        client = Client([speaker.bytes_to_send() or b"\0", rest or b"\0"])
        await session(client, dialect, websocket=True).forward(pod)
        await pod.idle()

    run(work)
