"""The logger as a process: nothing lost, nothing blocked, whatever is killed, full or slow."""

import array
import asyncio
import ctypes
import fcntl
import itertools
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import termios
import tty as terminal
from pathlib import Path

import pytest

from polypod.plugin.errors import FailedPrecondition, InvalidArgument, NotFound
from polypod.processes import command
from polypod.processes.host import is_running

from .conftest import lines, parse

COUNT = 100_000


def close(stdio):
    for fd in (stdio.stdin, stdio.stdout, stdio.stderr, stdio.console):
        if fd is not None:
            os.close(fd)


async def spawn(stdio, *arguments):
    return await asyncio.create_subprocess_exec(
        *arguments,
        stdin=stdio.stdin if stdio.stdin is not None else subprocess.DEVNULL,
        stdout=stdio.stdout,
        stderr=stdio.stderr,
    )


async def run(host, name, script, **options):
    """Run a script on a container's streams; returns when all of it is in the log."""
    stdio = await host.open(name, **options)
    process = await spawn(stdio, "sh", "-c", script)
    close(stdio)
    await process.wait()
    await host.logs.drained(name)


def send_master(console, *, raw=True):
    """Do what the process' side of a terminal does; return the slave."""
    master, slave = pty.openpty()
    if raw:
        terminal.setraw(slave)
    with socket.socket(fileno=os.dup(console)) as sock:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [master]))
        sock.sendmsg([b"pty"], [rights])
    os.close(master)
    return slave


async def read_until(fd, text):
    found = b""
    while text not in found:
        found += await asyncio.to_thread(os.read, fd, 65536)
    return found


async def test_logger_writes_both_streams_and_all_bytes(host):
    await run(host, "c", "printf 'a\\000b\\377\\nlast'; echo err >&2")
    assert lines(host.path("c")) == [b"a\x00b\xff", b"last"]
    assert lines(host.path("c"), "stderr") == [b"err"]


async def test_logger_splits_long_lines(host):
    await run(host, "c", "head -c 200000 /dev/zero | tr '\\0' x; echo; echo short")
    assert lines(host.path("c")) == [b"x" * 200_000, b"short"]
    assert max(len(text) for _, _, text in parse(host.path("c"))) == 16384


async def test_killed_logger_loses_nothing_of_a_pipe(host):
    stdio = await host.open("c")
    script = "i=0; while [ $i -lt 20 ]; do seq $((i*5000)) $((i*5000+4999)); sleep 0.05; i=$((i+1)); done"
    process = await spawn(stdio, "sh", "-c", script)
    close(stdio)
    kills = 0
    while process.returncode is None and kills < 4:
        await host.kill_logger()
        kills += 1
    await process.wait()
    await host.logs.drained("c")
    found = [int(line) for line in lines(host.path("c"))]
    assert set(found) == set(range(COUNT))
    # What comes twice is what one read per kill holds, at most 64 KiB.
    repeated = len(found) - COUNT
    assert repeated * 6 <= kills * 65536
    steps = [(a, b) for a, b in itertools.pairwise(found) if b != a + 1]
    assert len(steps) <= kills


async def test_killed_logger_loses_at_most_one_read_of_a_terminal_and_says_so(host):
    stdio = await host.open("t", tty=True)
    slave = send_master(stdio.console)
    close(stdio)
    script = (
        "i=0; while [ $i -lt 20 ]; do seq $((i*1000)) $((i*1000+999)); sleep 0.05; i=$((i+1)); done"
    )
    process = await asyncio.create_subprocess_exec("sh", "-c", script, stdout=slave)
    os.close(slave)
    kills = 0
    while process.returncode is None and kills < 3:
        await asyncio.sleep(0.1)
        await host.kill_logger()
        kills += 1
    await process.wait()
    await host.logs.drained("t")
    found = lines(host.path("t"))
    notes = [line for line in found if b"[polypod: " in line]
    numbers = {int(line) for line in found if line.isdigit()}
    assert len(notes) == kills
    assert all(b"the logger was restarted" in note for note in notes)
    # A number that is cut by the gap may look like another one; bytes are what is promised.
    lost = set(range(20_000)) - numbers
    assert sum(len(str(number)) + 1 for number in lost) <= kills * (65536 + 12)


async def test_killed_keeper_costs_no_line(host):
    stdio = await host.open("c")
    process = await spawn(stdio, "sh", "-c", "seq 50000; sleep 0.5; seq 50001 100000")
    close(stdio)
    pids, _ = await host.keeper.request("pids")
    old = await host.logger_pid()
    keeper = os.pidfd_open(pids["keeper"])
    os.kill(pids["keeper"], signal.SIGKILL)
    await asyncio.to_thread(select.select, [keeper], [], [])
    os.close(keeper)
    # Started as a daemon does that finds none; the supervisor may have been faster.
    if not is_running(host.state):
        await asyncio.to_thread(subprocess.run, command.keeper(host.state), check=True)
    await process.wait()
    while await host.logger_pid() == old or lines(host.path("c"))[-1:] != [b"100000"]:
        await asyncio.sleep(0.02)
        await host.logs.drained("c")
    assert [int(line) for line in lines(host.path("c"))] == list(range(1, 100_001))


async def test_fifty_reopens_lose_and_double_nothing(host):
    stdio = await host.open("c")
    process = await spawn(stdio, "seq", "200000")
    close(stdio)
    old = []
    for number in range(50):
        old.append(host.base / f"old.{number}")
        os.rename(host.path("c"), old[-1])
        await host.logs.reopen("c", host.path("c"), base=host.base)
    await process.wait()
    await host.logs.drained("c")
    found = []
    for path in [*old, host.path("c")]:
        found += [int(line) for line in lines(path)]
    assert found == list(range(1, 200_001))


async def test_reopen_of_an_unknown_container_makes_no_file(host):
    with pytest.raises(NotFound):
        await host.logs.reopen("nobody", host.path("nobody"), base=host.base)
    assert not host.path("nobody").exists()


async def test_reopen_ends_although_a_line_does_not(host):
    stdio = await host.open("c")
    os.write(stdio.stdout, b"prompt> ")
    while not host.path("c").stat().st_size:
        await asyncio.sleep(0.01)
    os.rename(host.path("c"), host.base / "old")
    await host.logs.reopen("c", host.path("c"), base=host.base)
    os.write(stdio.stdout, b"answer\n")
    close(stdio)
    await host.logs.drained("c")
    assert parse(host.base / "old") == [("stdout", "P", b"prompt> ")]
    assert parse(host.path("c")) == [("stdout", "F", b"answer")]


async def test_open_refuses_a_link_and_leaves_nothing(host, tmp_path):
    host.base.mkdir()
    host.path("c").symlink_to(tmp_path / "decoy")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(InvalidArgument, match="container c"):
        await host.open("c")
    assert len(os.listdir("/proc/self/fd")) == before
    assert not (tmp_path / "decoy").exists()


async def test_drained_does_not_wait_for_a_background_holder(host):
    stdio = await host.open("c")
    holder = await spawn(stdio, "sleep", "1000")
    process = await spawn(stdio, "seq", "30000")
    close(stdio)
    await process.wait()
    await host.logs.drained("c")
    assert len(lines(host.path("c"))) == 30_000
    holder.kill()
    await holder.wait()


async def test_attach_fans_out_and_a_slow_reader_blocks_nobody(host):
    stdio = await host.open("c")
    fast = await host.logs.attach("c", stdin=False, stdout=True, stderr=True)
    slow = await host.logs.attach("c", stdin=False, stdout=True, stderr=False)
    assert fast.stdin is None
    assert slow.stderr is None
    process = await spawn(stdio, "sh", "-c", "echo oops >&2; seq 1000000")
    close(stdio)
    reader = asyncio.create_task(asyncio.to_thread(_read_all, fast.stdout))
    await process.wait()
    await host.logs.drained("c")
    assert len(lines(host.path("c"))) == 1_000_000
    assert os.read(fast.stderr, 100) == b"oops\n"
    assert await reader
    # The slow one got what its pipe holds, then the end.
    kept = await asyncio.to_thread(_read_all, slow.stdout)
    assert 0 < len(kept) <= 1024 * 1024
    for fd in (fast.stdout, fast.stderr, slow.stdout):
        os.close(fd)


def _read_all(fd):
    found = b""
    while data := os.read(fd, 1 << 20):
        found += data
    return found


async def test_stdin_once_closes_after_the_first_client(host):
    stdio = await host.open("c", stdin=True, stdin_once=True)
    process = await spawn(stdio, "sh", "-c", "cat; echo end")
    close(stdio)
    streams = await host.logs.attach("c", stdin=True, stdout=False, stderr=False)
    for number in range(20_000):
        await asyncio.to_thread(os.write, streams.stdin, b"%d\n" % number)
    os.close(streams.stdin)
    await process.wait()
    await host.logs.drained("c")
    assert lines(host.path("c")) == [*(b"%d" % n for n in range(20_000)), b"end"]
    again = await host.logs.attach("c", stdin=True, stdout=False, stderr=False)
    assert again.stdin is None


async def test_stdin_stays_open_for_the_next_client(host):
    stdio = await host.open("c", stdin=True)
    process = await spawn(stdio, "sh", "-c", "read a; read b; echo $a$b")
    close(stdio)
    for text in (b"one\n", b"two\n"):
        streams = await host.logs.attach("c", stdin=True, stdout=False, stderr=False)
        os.write(streams.stdin, text)
        os.close(streams.stdin)
    await process.wait()
    await host.logs.drained("c")
    assert lines(host.path("c")) == [b"onetwo"]


async def test_terminal_is_logged_attached_and_resized(host):
    stdio = await host.open("t", tty=True, stdin=True)
    slave = send_master(stdio.console)
    close(stdio)
    streams = await host.logs.attach("t", stdin=True, stdout=True, stderr=True)
    assert streams.stderr is None
    await host.logs.resize("t", width=123, height=45)
    size = struct.unpack("HHHH", fcntl.ioctl(slave, termios.TIOCGWINSZ, bytes(8)))
    assert size[:2] == (45, 123)
    os.write(streams.stdin, b"hello")
    assert await asyncio.to_thread(os.read, slave, 100) == b"hello"
    os.write(slave, b"out\n")
    assert await read_until(streams.stdout, b"\n") == b"out\n"
    os.close(slave)
    await host.logs.drained("t")
    assert parse(host.path("t")) == [("stdout", "F", b"out")]
    os.close(streams.stdin)
    os.close(streams.stdout)


async def test_resize_without_a_terminal_is_refused(host):
    close(await host.open("c"))
    with pytest.raises(FailedPrecondition):
        await host.logs.resize("c", width=1, height=1)


async def test_close_forgets_everything(host):
    for name, options in (("c", {"stdin": True}), ("t", {"tty": True})):
        stdio = await host.open(name, **options)
        if stdio.console is not None:
            os.close(send_master(stdio.console))
        close(stdio)
        await host.logs.drained(name)
    pid = await host.logger_pid()
    for name in ("c", "t", "nobody"):
        await host.logs.close(name)
    while (await host.logger.request("status"))[0]["containers"]:
        await asyncio.sleep(0.01)
    held, fds = await host.keeper.request("get", prefix="log/")
    assert held["entries"] == []
    assert fds == []
    kept = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    logs = (str(host.path("c")), str(host.path("t")))
    assert not [name for name in kept if name in logs or "ptmx" in name]


async def test_hung_logger_blocks_neither_open_nor_the_process_nor_close(host):
    pid = await host.logger_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        stdio = await host.open("c")
        process = await spawn(stdio, "echo", "hi")
        close(stdio)
        assert await process.wait() == 0
    finally:
        os.kill(pid, signal.SIGCONT)
    await host.logs.drained("c")
    assert lines(host.path("c")) == [b"hi"]


@pytest.fixture
def small_disk():
    """A tmpfs of 64 KiB that no mount table holds; yields a path to it."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(*arguments):
        result = libc.syscall(*arguments)
        assert result >= 0, os.strerror(ctypes.get_errno())
        return result

    context = call(430, b"tmpfs", 0)
    call(431, context, 1, b"size", b"64k", 0)
    call(431, context, 6, None, None, 0)
    mount = call(432, context, 0, 0)
    os.close(context)
    yield f"/proc/self/fd/{mount}"
    os.close(mount)


@pytest.mark.needs_root
async def test_full_disk_blocks_nobody_and_is_told_afterwards(host, small_disk, tmp_path):
    base = Path(small_disk)
    stdio = await host.logs.open(
        "c", base / "c.log", base=base, tty=False, stdin=False, stdin_once=False
    )
    process = await spawn(stdio, "seq", "100000")
    assert await process.wait() == 0
    await host.logs.drained("c")
    on_disk = lines(base / "c.log")
    assert [int(line) for line in on_disk] == list(range(1, len(on_disk) + 1))
    os.truncate(base / "c.log", 0)
    os.write(stdio.stdout, b"after\n")
    close(stdio)
    await host.logs.drained("c")
    note, after = lines(base / "c.log")
    count, _, rest = note.removeprefix(b"[polypod: ").partition(b" ")
    assert rest == b"log entries lost here: No space left on device]"
    # A line that came in two parts counts twice.
    assert 0 <= int(count) - (100_000 - len(on_disk)) <= 100
    assert after == b"after"
