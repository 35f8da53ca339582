"""The daemon's connection to a relay that may be killed: what was asked is asked again, under the same name."""

from __future__ import annotations

import asyncio
import json
import os

import pytest

from polypod.plan import channel
from polypod.plugin import Unavailable
from polypod_vm.link import Lost, RelayLink


class FakeRelay:
    """Listens where a relay does; requests are taken and answered by the test."""

    def __init__(self, directory) -> None:
        self.listener = channel.listen(str(directory / "relay.sock"))
        self.sock = None

    async def take(self):
        """Return a request of the daemon, and what it asks the guest."""
        if self.sock is None:
            self.sock, _address = await asyncio.to_thread(self.listener.accept)
        message, fds = await asyncio.to_thread(channel.receive, self.sock)
        request = json.loads(os.pread(fds[0], 10_000, 0)) if message.get("memfd") else {}
        channel.close_all(fds)
        return message, request

    def answer(self, message, ok):
        channel.send(self.sock, {"id": message["id"], "ok": ok})

    def kill(self):
        self.sock.close()
        self.listener.close()


@pytest.fixture
def relays(tmp_path):
    made = []

    def start():
        made.append(FakeRelay(tmp_path))
        return made[-1]

    yield start
    for relay in made:
        relay.kill()


async def test_a_call_that_was_not_answered_is_sent_to_the_next_relay(relays, tmp_path):
    first = relays()
    lost = asyncio.Event()
    link = RelayLink(lambda _message: None, lambda: lost.set() or True)
    await link.open(tmp_path, wait=False)
    asked = asyncio.ensure_future(link.call({"op": "launch"}))
    one, request = await first.take()
    assert request == {"op": "launch"}
    first.kill()
    await lost.wait()
    assert not asked.done()
    second = relays()
    await link.open(tmp_path, wait=False)
    link.recovered()
    again, request = await second.take()
    assert (again["key"], request) == (one["key"], {"op": "launch"})
    second.answer(again, {"pid": 7})
    assert await asked == {"pid": 7}
    link.close()


async def test_calls_have_names_of_their_own(relays, tmp_path):
    relay = relays()
    link = RelayLink(lambda _message: None, lambda: False)
    await link.open(tmp_path, wait=False)
    keys = set()
    for number in range(3):
        asked = asyncio.ensure_future(link.call({"op": "list"}))
        message, _request = await relay.take()
        keys.add(message["key"])
        relay.answer(message, {"n": number})
        assert await asked == {"n": number}
    assert len(keys) == 3
    link.close()


@pytest.mark.parametrize("comes_back", [False, True], ids=["at once", "after all"])
async def test_a_call_fails_when_no_relay_follows(relays, tmp_path, comes_back):
    relay = relays()
    link = RelayLink(lambda _message: None, lambda: comes_back)
    await link.open(tmp_path, wait=False)
    asked = asyncio.ensure_future(link.call({"op": "launch"}))
    await relay.take()
    relay.kill()
    if comes_back:
        await asyncio.sleep(0.05)
        assert not asked.done()
        link.give_up()
    with pytest.raises(Lost):
        await asked
    with pytest.raises(Unavailable):
        await link.ask("state")
