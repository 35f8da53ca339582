"""The guest's end of the channel: a request is done once however often it comes; relays come and go."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace

import pytest

from polypod.supervisor.server import Loop
from polypod_vm_child import guest_bridge, guest_channel
from polypod_vm_child.guest_launch import Refused
from polypod_vm_child.streams import Sink, Source


class Bridge:
    """What the channel needs of a bridge."""

    def __init__(self) -> None:
        self.loop = Loop(lambda *_: None)
        self.forwards = SimpleNamespace(ended=lambda _stream: None)
        self.processes = {"box": SimpleNamespace(streams=[2, 4])}
        self.done: list[tuple[dict, object]] = []
        self.told = 0

    def perform(self, message, answer):
        self.done.append((message, answer))

    def greeted(self):
        self.told = 0

    def tell_exits(self):
        self.told += 1


@pytest.fixture
def bridge():
    made = Bridge()
    yield made
    made.loop.epoll.close()


@pytest.fixture
def channel(bridge, monkeypatch):
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(guest_channel, "_open_port", theirs.detach)
    made = guest_channel.Channel(bridge)
    made.link.is_open = True
    made.sent = []
    monkeypatch.setattr(made.link, "send", made.sent.append)
    yield made
    for each in (*made.sources.values(), *made.sinks.values()):
        each.close()
    made.link.close()
    ours.close()


def test_a_request_that_comes_again_gets_the_answer_it_had(channel, bridge):
    channel.message({"id": "a.1", "op": "launch"})
    ((_message, answer),) = bridge.done
    answer({"pid": 7})
    channel.message({"id": "a.1", "op": "launch"})
    assert len(bridge.done) == 1
    assert channel.sent == [{"id": "a.1", "ok": {"pid": 7}}] * 2


def test_a_request_that_comes_again_while_it_is_at_work_is_answered_once(channel, bridge):
    channel.message({"id": "a.1", "op": "launch"})
    channel.message({"id": "a.1", "op": "launch"})
    ((_message, answer),) = bridge.done
    assert channel.sent == []
    answer(None, {"kind": "NotFound"})
    assert channel.sent == [{"id": "a.1", "error": {"kind": "NotFound"}}]


def test_old_answers_are_forgotten_and_what_is_at_work_is_not(channel, bridge):
    channel.message({"id": "slow", "op": "launch"})
    for number in range(2 * guest_channel._ANSWERS_MAX):
        channel.message({"id": f"a.{number}", "op": "list"})
        bridge.done[-1][1]({})
    assert len(channel._answers) <= guest_channel._ANSWERS_MAX + 2
    channel.message({"id": "slow", "op": "launch"})
    assert sum(message["id"] == "slow" for message, _answer in bridge.done) == 1


def test_both_ends_agree_on_what_has_arrived(channel, bridge):
    read_end, into = os.pipe()
    unread, gone_into = os.pipe()
    out, write_end = os.pipe()
    kept = channel.sources[2] = Source(bridge.loop, channel.link, 2, read_end)
    gone = channel.sources[6] = Source(bridge.loop, channel.link, 6, unread)
    sink = channel.sinks[4] = Sink(bridge.loop, channel.link, 4, write_end, written=5)
    channel.message({"op": "sync", "written": {"2": 0}, "reading": [4]})
    assert channel.sent == [{"event": "synced", "streams": [2, 4], "received": {4: 5}}]
    assert (kept.fd >= 0, gone.fd, sink.fd >= 0, bridge.told) == (True, -1, True, 1)
    channel.opened()
    assert not channel.synced
    channel.message({"op": "sync", "written": {}, "reading": []})
    assert (kept.fd, sink.fd) == (-1, -1)
    for fd in (into, gone_into, out):
        os.close(fd)


def test_a_sysctl_that_the_kernel_lacks_is_named():
    guest_bridge._require_sysctls(["kernel.ostype"])
    with pytest.raises(Refused, match=r"net\.no\.such"):
        guest_bridge._require_sysctls(["kernel.ostype", "net.no.such"])
