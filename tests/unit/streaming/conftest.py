"""Programs that run in the test itself, behind real pipes; a server that leads to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

import pytest

from polypod.lifecycle.views import StreamChoice
from polypod.plugin.errors import BackendError
from polypod.streaming.descriptors import Source, write_all
from polypod.streaming.server import Settings, StreamingServer

ALL = StreamChoice(stdin=True, stdout=True, stderr=True)


class Program:
    """Implements `Conversation`: a coroutine that plays the program."""

    def __init__(self, choice, script, *, attach=False, size=None):
        self.ends, self.theirs = {}, {}
        self.ends_with_streams = attach
        self.sizes = [size] if size else []
        self.abandoned = self.closed = False
        if choice.stdin:
            self.theirs["stdin"], self.ends["stdin"] = os.pipe()
            os.set_blocking(self.ends["stdin"], False)
        for name in ("stdout", "stderr"):
            if getattr(choice, name):
                self.ends[name], self.theirs[name] = os.pipe()
                os.set_blocking(self.theirs[name], False)
        self._stdin = Source(self.theirs["stdin"]) if choice.stdin else None
        self._task = asyncio.ensure_future(self._play(script))

    async def _play(self, script):
        try:
            return await script(self)
        finally:
            self.close_theirs()

    def close_theirs(self):
        while self.theirs:
            os.close(self.theirs.popitem()[1])

    async def read(self):
        return await self._stdin.read()

    async def write(self, data, name="stdout"):
        await write_all(self.theirs[name], data)

    async def ended(self):
        return await asyncio.shield(self._task)

    async def resize(self, *, width, height):
        self.sizes.append((width, height))

    def close_stdin(self):
        if "stdin" in self.ends:
            os.close(self.ends.pop("stdin"))

    async def abandon(self):
        self.abandoned = True
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def close(self):
        self.closed = True
        while self.ends:
            os.close(self.ends.popitem()[1])


class Command:
    """Implements `RemoteCommand`; remembers what was opened."""

    def __init__(self, script, choice=ALL, *, attach=False, error=None):
        self.choice = choice
        self.programs = []
        self._script, self._attach, self._error = script, attach, error

    async def open(self, size=None, /):
        if self._error:
            raise self._error
        self.programs.append(Program(self.choice, self._script, attach=self._attach, size=size))
        return self.programs[-1]


class Pod:
    """Implements `Forward`: ports behind which a coroutine plays the server."""

    def __init__(self, servers, ports=()):
        self.ports = ports
        self.connections = []
        self._servers = servers
        self._tasks = set()

    async def connect(self, port, /):
        if port not in self._servers:
            raise BackendError(f"port {port}: Connection refused")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self.connections.append(port)
        task = asyncio.ensure_future(self._serve(port, theirs))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return ours

    async def _serve(self, port, sock):
        with sock:
            await self._servers[port](sock)

    async def idle(self):
        """Wait until no connection is left."""
        while self._tasks:
            await asyncio.wait(self._tasks)


async def echo(program):
    """What stdin brings goes to stdout; the length goes to stderr."""
    total = 0
    while data := await program.read():
        total += len(data)
        await program.write(data)
    await program.write(b"%d" % total, "stderr")
    return 0


async def echo_socket(sock):
    """What comes goes back."""
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(sock, 65536):
        await loop.sock_sendall(sock, data)


async def eventually(question, what):
    """Ask until the answer is true."""
    for _ in range(500):
        if question():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(what)


@pytest.fixture(scope="session")
def plays():
    """The names above, for tests."""
    return Plays


class Plays:
    ALL = ALL
    Program = Program
    Command = Command
    Pod = Pod
    echo = staticmethod(echo)
    echo_socket = staticmethod(echo_socket)
    eventually = staticmethod(eventually)


@pytest.fixture
async def server():
    """A streaming server on the loopback."""
    made = StreamingServer(Settings("127.0.0.1", 0))
    await made.start()
    yield made
    await made.stop()
