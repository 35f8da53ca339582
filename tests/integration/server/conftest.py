"""Servers as processes of their own, on the simulator: no privilege, no kernel."""

import asyncio
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from polypod.client import CriClient

POLYPOD = str(Path(sys.executable).with_name("polypod"))


class Server:
    def __init__(self, place):
        self.place = place
        self.endpoint = f"unix://{place}/run/cri.sock"
        self.places = ["--root", f"{place}/root", "--state", f"{place}/state"]
        self.process = None
        self.log = place / "server.log"

    def start(self, *settings):
        words = [POLYPOD, "serve", "--listen", self.endpoint, *self.places]
        for setting in ("handlers.sim.type=simulator", "server.default_handler=sim", *settings):
            words += ["--set", setting]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=log)
        return self

    def start_with(self, config):
        """Start on a configuration file alone."""
        words = [POLYPOD, "serve", "--listen", self.endpoint, *self.places, "--config", str(config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=log)
        return self

    async def ready(self):
        async with CriClient(self.endpoint) as cri:
            await cri.wait_ready(20)
        return self

    def run(self, *words):
        words = [POLYPOD, "--endpoint", self.endpoint, *words]
        return subprocess.run(
            words, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )

    def down(self):
        return self.run("down", *self.places)

    def end(self):
        """SIGTERM; return the exit code and what was logged."""
        self.process.terminate()
        return self.ended()

    def ended(self):
        """Wait for the end; return the exit code and what was logged."""
        return self.process.wait(timeout=20), self.log.read_text()


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def grpc_is_awake():
    """gRPC opens descriptors with its first channel: before tests are compared, and until the end."""
    grpc.aio.init_grpc_aio()


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()


@pytest.fixture
async def cri(server):
    async with CriClient(server.endpoint) as client:
        yield client


@pytest.fixture
def until():
    async def wait(condition):
        for _ in range(1000):
            if condition():
                return
            await asyncio.sleep(0.01)
        pytest.fail("it did not come true within 10 s")

    return wait
