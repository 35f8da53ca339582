"""A state directory, a root, and proof that nothing of them lives on."""

import asyncio
import contextlib
import os
import signal

import pytest

from polypod.plugin.errors import PolypodError
from polypod.processes.host import ProcessHost, is_running

from .daemon import make_root


class Place:
    def __init__(self, path):
        self.state = path / "state"
        self.root = path / "root"
        self.logs = path / "logs"
        make_root(self.root)
        self.hosts = []

    async def open(self):
        host = await ProcessHost.open(self.state)
        self.hosts.append(host)
        return host

    def ours(self):
        """The pids of the three, and of all that was executed by them and is not in a container."""
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
                if str(self.state).encode() in words:
                    found.append(int(entry))
        return found

    async def close(self):
        for host in self.hosts[:-1]:
            host.close()
        if self.hosts:
            host = self.hosts[-1]
            with contextlib.suppress(PolypodError):
                for process in await host.supervisor.processes():
                    with contextlib.suppress(PolypodError):
                        await host.supervisor.kill(process.process_id, signal.SIGKILL)
            await host.shutdown()
        if is_running(self.state):
            host = await ProcessHost.open(self.state)
            await host.shutdown()
        async with asyncio.timeout(20):
            while self.ours():
                await asyncio.sleep(0.02)
        assert not list(self.state.glob("*.sock"))


@pytest.fixture
async def place(tmp_path):
    made = Place(tmp_path)
    try:
        yield made
    finally:
        await made.close()
