"""A keeper and a logger of our own, in a temporary state directory."""

import asyncio
import contextlib
import os
import signal
import subprocess

import pytest

from polypod.plugin.errors import PolypodError
from polypod.processes import command
from polypod.processes.connection import Connection
from polypod.processes.host import is_running
from polypod.processes.logs import LogService


class Host:
    """What a daemon has of the two."""

    def __init__(self, state, base):
        self.state = state
        self.base = base
        self.keeper = Connection(state / "keeper.sock", "keeper")
        self.logger = Connection(state / "logger.sock", "logger")
        self.logs = LogService(self.keeper, self.logger)

    async def start(self):
        self.state.mkdir(mode=0o700)
        subprocess.run(command.keeper(self.state), stdin=subprocess.DEVNULL, check=True)
        await self.keeper.open()
        await self.logger.open()

    async def logger_pid(self):
        answer, _ = await self.logger.request("status")
        return answer["pid"]

    async def kill_logger(self):
        """Returns when another one answers."""
        old = await self.logger_pid()
        os.kill(old, signal.SIGKILL)
        while True:
            with contextlib.suppress(PolypodError):
                if await self.logger_pid() != old:
                    return
            await asyncio.sleep(0.01)

    def path(self, name):
        return self.base / f"{name}.log"

    async def open(self, name, *, tty=False, stdin=False, stdin_once=False):
        return await self.logs.open(
            name, self.path(name), base=self.base, tty=tty, stdin=stdin, stdin_once=stdin_once
        )

    async def stop(self):
        await self.logs.aclose()
        if not is_running(self.state):
            # A test that failed half-way: the logger would wait for a keeper for a while.
            subprocess.run(command.keeper(self.state), stdin=subprocess.DEVNULL, check=True)
        with contextlib.suppress(PolypodError):
            await self.keeper.request("shutdown")
        self.keeper.close()
        self.logger.close()


@pytest.fixture
async def host(tmp_path):
    made = Host(tmp_path / "state", tmp_path / "logs")
    await made.start()
    yield made
    await made.stop()


def parse(path):
    """Return [(stream, flag, text)] of a log file; every line must be well formed."""
    found = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        stamp, stream, flag, text = line.split(b" ", 3)
        assert len(stamp) == 30, line
        assert stream in (b"stdout", b"stderr"), line
        assert flag in (b"P", b"F"), line
        found.append((stream.decode(), flag.decode(), text))
    return found


def lines(path, stream="stdout"):
    """Return the container's own lines: parts joined."""
    found, begun = [], b""
    for name, flag, text in parse(path):
        if name == stream:
            begun += text
            if flag == "F":
                found.append(begun)
                begun = b""
    return found + ([begun] if begun else [])
