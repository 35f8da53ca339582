"""Interfaces by netlink: messages as the kernel sends them, and the kernel itself."""

import os
import socket
import struct

import pytest

from polypod.processes import interfaces
from polypod.processes.interfaces import PodInterfaces, links


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", len(data) + 4, kind) + data + b"\0" * (-len(data) % 4)


def link(name: str, counters: tuple[int, ...], *, number: int = 7, flags: int = 1) -> bytes:
    body = struct.pack("=BxHiII", 0, 1, 2, flags, 0)
    body += attribute(3, name.encode() + b"\0")
    body += attribute(7, b"\0" * 96)  # the older, 32-bit counters
    body += attribute(23, struct.pack("=8Q", *counters) + b"\0" * 120)
    return struct.pack("=IHHII", len(body) + 16, 16, 2, number, 0) + body


def done(number: int = 7) -> bytes:
    return struct.pack("=IHHII", 20, 3, 2, number, 0) + b"\0" * 4


class Kernel:
    """The other end of a netlink socket, as far as `links` looks at it."""

    def __init__(self, *datagrams: bytes) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for each in datagrams:
            self.theirs.send(each)

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def kernel(monkeypatch):
    made = []

    def start(*datagrams: bytes) -> int:
        made.append(Kernel(*datagrams))
        return made[-1].ours.fileno()

    real = socket.socket

    def any_family(_family=-1, _type=-1, _proto=-1, fileno=None):
        return real(fileno=fileno)

    monkeypatch.setattr(interfaces.socket, "socket", any_family)
    yield start
    monkeypatch.undo()
    for each in made:
        each.close()


def test_counters_are_told_by_their_names(kernel):
    fd = kernel(link("eth0", (1, 2, 3, 4, 5, 6, 7, 8)) + done())
    [found] = links(fd, 7)
    assert (found.name, found.rx_packets, found.tx_packets) == ("eth0", 1, 2)
    assert (found.rx_bytes, found.tx_bytes) == (3, 4)
    assert (found.rx_errors, found.tx_errors) == (5, 6)
    assert (found.rx_dropped, found.tx_dropped) == (7, 8)


def test_the_loopback_is_left_out_and_several_datagrams_are_one_answer(kernel):
    zero = (0,) * 8
    fd = kernel(link("lo", zero, flags=0x8), link("eth0", zero), link("net1", zero), done())
    assert [each.name for each in links(fd, 7)] == ["eth0", "net1"]


def test_what_an_earlier_daemon_did_not_fetch_is_dropped(kernel):
    zero = (0,) * 8
    stale = link("old", zero, number=6) + done(6)
    fd = kernel(stale, link("eth0", zero), done())
    assert [each.name for each in links(fd, 7)] == ["eth0"]


def test_a_refusal_of_the_kernel_is_an_error(kernel):
    refusal = struct.pack("=IHHIIi", 20, 2, 0, 7, 0, -1)
    with pytest.raises(PermissionError):
        links(kernel(refusal), 7)


@pytest.mark.parametrize("length", [0, 3, 15, 17, 40])
def test_a_message_that_is_cut_off_is_no_endless_loop(kernel, length):
    zero = (0,) * 8
    fd = kernel(link("eth0", zero)[:length] or b"\0", done())
    assert links(fd, 7) == []


async def test_the_kernel_answers_and_sockets_stay_the_callers():
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as link_:
        before = len(os.listdir("/proc/self/fd"))
        reader = PodInterfaces()
        for _ in range(3):
            found = await reader.read({"a": link_.fileno()})
            names = {each.name for each in found["a"]}
            assert names == set(os.listdir("/sys/class/net")) - {"lo", "bonding_masters"}
        assert len(os.listdir("/proc/self/fd")) == before


async def test_one_pod_that_cannot_be_read_is_left_out():
    here, there = socket.socketpair()
    with here, there, socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as good:
        there.close()
        found = await PodInterfaces().read({"bad": here.fileno(), "good": good.fileno()})
    assert "good" in found
    assert "bad" not in found
