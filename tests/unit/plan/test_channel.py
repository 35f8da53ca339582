"""Messages and their descriptors over a pair of sockets."""

import os
import socket
import stat

import pytest

from polypod.plan import channel


@pytest.fixture
def pair():
    first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for sock in (first, second):
        sock.settimeout(20)
    with first, second:
        yield first, second


def test_message_arrives_with_its_descriptors(pair):
    first, second = pair
    read_end, write_end = os.pipe()
    channel.send(first, {"op": "x", "text": "ä\udcff"}, [read_end, write_end])
    message, fds = channel.receive(second)
    assert message == {"op": "x", "text": "ä\udcff"}
    os.write(fds[1], b"through")
    assert os.read(read_end, 100) == b"through"
    assert not any(os.get_inheritable(fd) for fd in fds)
    channel.close_all([read_end, write_end, *fds])


def test_two_hundred_descriptors_are_the_most(pair):
    first, second = pair
    null = os.open("/dev/null", os.O_RDONLY)
    channel.send(first, {}, [null] * channel.MAX_FDS)
    _, fds = channel.receive(second)
    assert len(fds) == channel.MAX_FDS
    channel.close_all(fds)
    with pytest.raises(channel.ChannelError, match="at most 200"):
        channel.send(first, {}, [null] * (channel.MAX_FDS + 1))
    os.close(null)


def test_more_descriptors_than_are_read_are_an_error_and_are_closed(pair):
    import array

    first, second = pair
    null = os.open("/dev/null", os.O_RDONLY)
    before = len(os.listdir("/proc/self/fd"))
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * 250))
    first.sendmsg([b"{}"], [rights])
    with pytest.raises(channel.ChannelError, match="cut off"):
        channel.receive(second)
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(null)


@pytest.mark.parametrize("packet", [b"\0", b"{", b"[]", b"1", b"null", b"[" * 60_000])
def test_what_is_no_message_is_an_error_and_its_descriptors_are_closed(pair, packet):
    import array

    first, second = pair
    before = len(os.listdir("/proc/self/fd"))
    null = os.open("/dev/null", os.O_RDONLY)
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * 3))
    first.sendmsg([packet], [rights])
    os.close(null)
    with pytest.raises(channel.ChannelError, match="not a message"):
        channel.receive(second)
    assert len(os.listdir("/proc/self/fd")) == before


def test_too_large_a_message_is_refused_where_it_is_made(pair):
    with pytest.raises(channel.ChannelError, match="memfd"):
        channel.send(pair[0], {"x": "y" * channel.MAX_BYTES})


def test_the_end_of_the_peer_is_none(pair):
    first, second = pair
    first.close()
    assert channel.receive(second) is None


def test_nothing_there_is_told_by_a_socket_that_does_not_block(pair):
    pair[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        channel.receive(pair[1])


def test_closing_clears_a_list_so_that_nothing_is_closed_twice():
    read_end, write_end = os.pipe()
    fds = [read_end, write_end, read_end]
    channel.close_all(fds)
    assert fds == []
    channel.close_all((10**6,))


def test_listening_path_is_private_and_replaces_a_dead_one(tmp_path):
    path = str(tmp_path / "x.sock")
    for _ in range(2):
        with channel.listen(path) as listener:
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
            with channel.connect(path) as client, listener.accept()[0] as served:
                channel.check_peer(served)
                channel.send(client, {"op": "hello"})
                served.settimeout(20)
                assert channel.receive(served) == ({"op": "hello"}, [])
    assert os.listdir(tmp_path) == ["x.sock"]
    with pytest.raises(ConnectionRefusedError):
        channel.connect(path)
