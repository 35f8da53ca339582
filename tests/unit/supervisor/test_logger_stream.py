"""One stream on real pipes, ptys and files, without a process."""

import errno
import os
import resource
import signal
import termios
from contextlib import contextmanager

import pytest

from polypod.supervisor.logger_file import LogFile
from polypod.supervisor.logger_sources import PipeSource, PtySource, Scratch
from polypod.supervisor.logger_stream import Stream


def bodies(path) -> list[str]:
    return [" ".join(line.split(" ")[2:]) for line in path.read_text(errors="replace").splitlines()]


@pytest.fixture
def scratch():
    made = Scratch()
    yield made
    made.close()


@pytest.fixture
def log(tmp_path):
    made = LogFile(os.open(tmp_path / "log", os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o640))
    yield made
    made.close()


@pytest.fixture
def pipe(scratch, log):
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read_end, False)
    ends = [write_end]
    yield Stream("stdout", PipeSource(read_end, scratch), log), ends
    os.close(read_end)
    for fd in ends:
        os.close(fd)


def test_stream_holds_the_beginning_of_a_line(pipe, tmp_path):
    stream, (writer,) = pipe
    os.write(writer, b"one\ntw")
    stream.pump()
    stream.pump()
    assert stream.held
    assert stream.source.pending() == 2
    os.write(writer, b"o\n")
    stream.pump()
    assert bodies(tmp_path / "log") == ["F one", "F two"]


def test_stream_logs_a_part_when_flushed_and_goes_on(pipe, tmp_path):
    stream, (writer,) = pipe
    os.write(writer, b"pass")
    stream.pump(flush=True)
    assert stream.torn
    os.write(writer, b"word: ")
    stream.pump()
    os.write(writer, b"x\nnext\n")
    stream.pump()
    assert bodies(tmp_path / "log") == ["P pass", "P word: ", "F x", "F next"]


def test_stream_ends_an_unterminated_line_full(pipe, tmp_path):
    stream, ends = pipe
    os.write(ends[0], b"one\nlast")
    os.close(ends.pop())
    while stream.open:
        stream.pump(final=True)
    assert bodies(tmp_path / "log") == ["F one", "F last"]


def test_stream_ends_a_torn_line_with_an_empty_end(pipe, tmp_path):
    stream, ends = pipe
    os.write(ends[0], b"torn")
    stream.pump(flush=True)
    os.close(ends.pop())
    stream.pump(final=True)
    assert not stream.open
    assert bodies(tmp_path / "log") == ["P torn", "F "]


def test_peek_consumes_nothing(pipe):
    stream, (writer,) = pipe
    os.write(writer, b"a\n" * 20_000)
    first, second = stream.source.peek(), stream.source.peek()
    assert first == second == b"a\n" * 20_000
    stream.source.consume(10)
    assert stream.source.pending() == 39_990


def test_drain_does_not_wait_for_a_writer(pipe, tmp_path):
    stream, (writer,) = pipe
    os.write(writer, b"x\n" * 1000 + b"rest")
    stream.drain()
    assert stream.open
    assert bodies(tmp_path / "log")[-1] == "F rest"


def test_attached_client_gets_each_byte_once_and_a_full_one_blocks_nothing(pipe):
    stream, (writer,) = pipe
    reader, fan = os.pipe2(os.O_NONBLOCK)
    stream.fans.append(fan)
    os.write(writer, b"abc")
    stream.pump()
    stream.pump()
    os.write(writer, b"def\ng")
    stream.pump()
    assert os.read(reader, 100) == b"abcdef\ng"
    for _ in range(10):
        os.write(writer, b"y" * 60_000 + b"\n")
        while stream.pump(flush=True):
            continue
    assert len(os.read(reader, 1_000_000)) <= 65536
    os.close(reader)
    stream.end()


def test_reopen_waits_for_the_line_end(pipe, tmp_path):
    stream, (writer,) = pipe
    os.write(writer, b"begin")
    stream.pump(flush=True)
    second = LogFile(os.open(tmp_path / "2", os.O_RDWR | os.O_APPEND | os.O_CREAT))
    stream.next_log = second
    os.write(writer, b"ning\nnext\n")
    stream.pump()
    os.write(writer, b"new\n")
    stream.pump()
    second.close()
    assert bodies(tmp_path / "log") == ["P begin", "F ning", "F next"]
    assert bodies(tmp_path / "2") == ["F new"]


@contextmanager
def files_of(size):
    """Keep files from growing beyond a size: inside the block alone, pytest writes files, too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_append_keeps_whole_lines_when_the_disk_is_full(log, tmp_path):
    with files_of(10):
        first = log.append(b"1234\n5678\n9abc\n")
    with files_of(13):
        second = log.append(b"9abc\n")
    assert (first, second) == ((10, errno.EFBIG), (0, errno.EFBIG))
    assert (tmp_path / "log").read_bytes() == b"1234\n5678\n"


def test_stream_counts_what_the_disk_refused_and_says_so(pipe, tmp_path):
    stream, (writer,) = pipe
    os.write(writer, b"one\n")
    stream.pump()
    with files_of((tmp_path / "log").stat().st_size + 5):
        for _ in range(3):
            os.write(writer, b"lost\nlost\n")
            stream.pump()
    assert stream.source.pending() == 0
    os.write(writer, b"two\n")
    stream.pump()
    first, note, last = bodies(tmp_path / "log")
    assert (first, last) == ("F one", "F two")
    assert "6 log entries lost here: File too large" in note


def test_repair_takes_a_torn_line_back(log, tmp_path):
    (tmp_path / "log").write_bytes(b"whole\ntor")
    log.repair()
    assert (tmp_path / "log").read_bytes() == b"whole\n"
    log.repair()
    assert (tmp_path / "log").read_bytes() == b"whole\n"


def test_pty_source_keeps_what_is_not_consumed_and_ends_with_its_last_user():
    master, slave = os.openpty()
    attributes = termios.tcgetattr(slave)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    source = PtySource(master)
    assert source.peek() == b""
    os.write(slave, b"abc")
    assert source.peek() == b"abc"
    source.consume(1)
    os.write(slave, b"d")
    assert source.peek() == b"bcd"
    os.close(slave)
    source.consume(3)
    assert source.peek() is None
    os.close(master)
