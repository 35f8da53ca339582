"""The logs of the simulator: what they hold of clients that attached."""

import asyncio
import os

import pytest

from polypod.plugin.ids import ContainerId
from polypod.testing.fake_logs import FakeLogs

BOX = ContainerId("box")


@pytest.fixture
async def logs(tmp_path):
    made = FakeLogs()
    path = tmp_path / "box.log"
    stdio = await made.open(BOX, path, base=tmp_path, tty=False, stdin=True, stdin_once=False)
    yield made
    await made.close(BOX)
    for fd in (stdio.stdin, stdio.stdout, stdio.stderr):
        os.close(fd)


def descriptors():
    return set(os.listdir("/proc/self/fd"))


async def test_nothing_is_held_of_a_client_that_left_while_nobody_speaks(logs):
    before = descriptors()
    attached = await logs.attach(BOX, stdin=True, stdout=True, stderr=True)
    assert len(descriptors()) == len(before) + 6
    for fd in (attached.stdin, attached.stdout, attached.stderr):
        os.close(fd)
    async with asyncio.timeout(20):
        while descriptors() != before:
            await asyncio.sleep(0)


async def test_a_client_that_left_takes_no_other_one_with_it(logs):
    stays = await logs.attach(BOX, stdin=False, stdout=True, stderr=False)
    leaves = await logs.attach(BOX, stdin=False, stdout=True, stderr=False)
    os.close(leaves.stdout)
    await asyncio.sleep(0.01)
    await logs.close(BOX)
    assert os.read(stays.stdout, 100) == b""
    os.close(stays.stdout)
