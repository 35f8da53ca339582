"""A store on a directory of its own, registries on loopback, and a look at what the store holds."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import grpc
import pytest
from support.lying_registry import LyingRegistry
from support.registry import Registry

from polypod.plugin.images import ImageContext
from polypod_image.plugin import plugin

ROOMS = ("blobs/sha256", "blobs/sha512", "layers", "work")


@pytest.fixture(scope="session", autouse=True)
def grpc_is_awake():
    """gRPC opens descriptors with its first channel: before tests are compared, and until the end."""

    async def wake() -> None:
        grpc.aio.init_grpc_aio()

    asyncio.run(wake())


class Stores:
    """Opens the store below a directory, and looks at what is in it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.opened = []

    async def open(self, **options):
        """Open the store with options; it is closed at the end."""
        (self.place / "hosts.d").mkdir(exist_ok=True)
        options = {"hosts_dir": str(self.place / "hosts.d"), "min_free_bytes": 0, **options}
        context = ImageContext("content", options, self.place / "root", self.place / "state")
        store = await plugin.polypod_image_stores()[0].open(context)
        self.opened.append(store)
        return store

    def rule(self, host: str, text: str) -> None:
        """Write a ``hosts.toml``."""
        file = self.place / "hosts.d" / host / "hosts.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def files(self) -> list[str]:
        """Return blobs, layers and unfinished work on disk."""
        root = self.place / "root"
        return sorted(
            str(path.relative_to(root)) for room in ROOMS for path in (root / room).iterdir()
        )

    async def settled(self, wanted: list[str]) -> list[str]:
        """Return what is on disk once it is what was wanted, or after some seconds whatever it is."""
        for _ in range(500):
            if self.files() == wanted:
                break
            await asyncio.sleep(0.02)
        return self.files()


@pytest.fixture
async def stores(tmp_path):
    """`Stores` in the test's directory."""
    found = Stores(tmp_path)
    (tmp_path / "hosts.d").mkdir()
    yield found
    for each in found.opened:
        await each.close()


@pytest.fixture
async def store(stores):
    """The store, impatient: no data for a second ends a transfer."""
    return await stores.open(pull_progress_timeout_s=1)


@pytest.fixture
def liar():
    """A `LyingRegistry`, honest until its rule is set."""
    with LyingRegistry() as registry:
        yield registry


@pytest.fixture(scope="module")
def docker_registry():
    """A docker-registry without authentication."""
    with Registry() as registry:
        yield registry


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A self-signed certificate for 127.0.0.1 and localhost, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    place = tmp_path_factory.mktemp("tls")
    words = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout key.pem"
    words += " -out cert.pem -addext subjectAltName=IP:127.0.0.1,DNS:localhost"
    quiet = subprocess.DEVNULL
    subprocess.run(words.split(), check=True, cwd=place, stdin=quiet, stderr=quiet)
    return place / "cert.pem", place / "key.pem"
