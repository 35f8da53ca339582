"""A host of our own, and the small containers of the kill tests."""

import contextlib
import os

import pytest

from tests.integration.kill.conftest import Place


@pytest.fixture
async def place(tmp_path):
    made = Place(tmp_path)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
async def host(place):
    return await place.open()


class Output:
    """A pipe for what a process says."""

    def __init__(self):
        self.read_end, self.write_end = os.pipe2(os.O_CLOEXEC)

    def text(self):
        """What was written, until nobody holds the writing end any more."""
        os.close(self.write_end)
        self.write_end = -1
        found = b""
        while data := os.read(self.read_end, 65536):
            found += data
        return found.decode()

    def close(self):
        for fd in (self.read_end, self.write_end):
            with contextlib.suppress(OSError):
                os.close(fd)


@pytest.fixture
def output():
    made = Output()
    yield made
    made.close()
