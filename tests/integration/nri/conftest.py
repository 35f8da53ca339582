"""Servers with NRI on: simulated pods, and real ones where the host can run them."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from conformance import images
from conformance.pods import Pods
from support.server import Server

from polypod.client import CriClient

PROGRAM = Path(__file__).parents[2] / "support" / "nri_program.py"
LIMIT_S = 20.0
SIMULATED = ("handlers.sim.type=simulator", "server.default_handler=sim")


class NriServer:
    """A server, its plugin directory, and what each program wrote down."""

    def __init__(self, settings):
        self.place = Path(tempfile.mkdtemp(prefix="polypod-nri-"))
        self.socket = self.place / "run" / "nri.sock"
        for name in ("plugins", "conf.d", "cdi"):
            (self.place / name).mkdir()
        self.server = Server(
            (
                *settings,
                "plugins.nri.enabled=true",
                f"plugins.nri.socket={self.socket}",
                f"plugins.nri.plugin_dir={self.place}/plugins",
                f"plugins.nri.config_dir={self.place}/conf.d",
                f'server.cdi_dirs=["{self.place}/cdi"]',
                "plugins.nri.request_timeout_s=5",
                "plugins.hook_timeout_s=20",
            )
        )
        self.endpoint = self.server.endpoint
        self.programs = []

    def config(self, title, **config):
        return {"log": str(self.place / f"{title}.log"), **config}

    def install(self, title="10-program", **config):
        """Put a program into the directory from which the server starts them."""
        path = self.place / "plugins" / title
        path.write_text(f"#!{sys.executable}\n{PROGRAM.read_text()}")
        path.chmod(0o755)
        (self.place / "conf.d" / f"{title}.conf").write_text(
            json.dumps(self.config(title, **config))
        )

    async def connect(self, **config):
        """Start a program that connects by itself, and wait until it is told everything."""
        file = self.place / "by-hand.json"
        file.write_text(json.dumps(self.config("50-program", **config)))
        program = subprocess.Popen([sys.executable, PROGRAM, self.socket, file])
        self.programs.append(program)
        await self.until(lambda: self.plugins().get("50-program", {}).get("state") == "connected")
        return program

    def calls(self, title="10-program", method=""):
        path = self.place / f"{title}.log"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines]
        return [each for each in found if not method or each["method"] == method]

    def plugins(self):
        """What the server says of its plugins."""

        async def ask():
            async with CriClient(self.endpoint) as cri:
                return dict((await cri.status(verbose=True)).info)

        info = json.loads(asyncio.run(ask())["info"])
        return {each["name"]: each for each in info["observers"]["nri"]["plugins"]}

    async def until(self, question):
        async with asyncio.timeout(LIMIT_S):
            while not await asyncio.to_thread(question):
                await asyncio.sleep(0.05)

    def end(self):
        for program in self.programs:
            program.kill()
            program.wait()
        self.server.take_down()
        shutil.rmtree(self.place, ignore_errors=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def grpc_stays_open():
    """Keep gRPC's own sockets for the whole run: a test that opens them first would seem to leak them."""
    grpc.aio.init_grpc_aio()


@pytest.fixture
def settings():
    """More settings for the server; a test may give its own."""
    return ()


@pytest.fixture
def sim(settings):
    """A server of simulated pods that is not started yet."""
    made = NriServer((*SIMULATED, *settings))
    yield made
    made.end()


@pytest.fixture
def real():
    """A server of real pods that is not started yet."""
    made = NriServer(())
    yield made
    made.end()


@pytest.fixture
def pods_of(tmp_path):
    """Return a function: server → (client, pods)."""
    opened = []

    async def open_(server, image=images.SIMULATED_NAME):
        cri = await CriClient(server.endpoint).__aenter__()
        opened.append(cri)
        if image != images.SIMULATED_NAME or not (
            await cri.image_status(images.SIMULATED_NAME)
        ).HasField("image"):
            image = await cri.pull_image(image)
        return cri, Pods(cri, image, tmp_path)

    open_.opened = opened
    return open_


@pytest_asyncio.fixture(autouse=True)
async def clients_are_closed(pods_of):
    yield
    for cri in pods_of.opened:
        await cri.__aexit__(None, None, None)
