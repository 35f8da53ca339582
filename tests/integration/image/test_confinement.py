"""I2: what unpacks a layer can reach its own directories, read its blob, and nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from polypod.plugin.errors import BackendError, InvalidArgument, Unavailable
from polypod_image.digests import digest_of
from polypod_image.mediatypes import Compression
from polypod_image.options import Limits
from polypod_image.unpackers import Unpackers, _why

pytestmark = pytest.mark.needs_root

# Confines itself as a job is, then tries one thing and tells.
_INSIDE = """
import os, resource, socket, sys
from polypod_image.confined import calls, cell
from polypod_image.confined.filter import program

target, lower, room, attempt = sys.argv[1:]
mounts = [
    calls.detached(target, calls.MOUNT_ATTR_NODEV | calls.MOUNT_ATTR_NOEXEC),
    calls.detached(lower, calls.MOUNT_ATTR_RDONLY),
]
code, rules, parent = compile(attempt, "attempt", "exec"), program(), os.getpid()
bounds = cell.Bounds(1 << 30, 2, 1 << 20, cell.HIDER)
import ctypes, errno, mmap, queue, stat, threading
libc = ctypes.CDLL(None, use_errno=True)
def raise_(number):
    raise OSError(number, "")
cell.enclose(room)
child = os.fork()
if child == 0:
    cell.confine(mounts[0], mounts[1:], bounds, parent)
    go, result = queue.SimpleQueue(), queue.SimpleQueue()
    threading.Thread(target=lambda: result.put(go.get()()), daemon=True).start()
    cell.seal(rules)
    try:
        exec(code)
    except OSError as error:
        os.write(1, errno.errorcode[error.errno].encode())
    os._exit(0)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
os.write(1, b"" if status == 0 else b"died of %d" % -status)
"""

_DIED = f"died of {signal.SIGSYS.value}"
ATTEMPTS = {
    "sees-an-empty-root": ("os.write(1, ' '.join(sorted(os.listdir('/'))).encode())", "l t"),
    "no-proc": ("os.stat('/proc/self')", "ENOENT"),
    "up-from-the-target": ("os.stat('/t/../../etc/passwd')", "ENOENT"),
    "up-by-descriptor": (
        "d = os.open('/t', os.O_RDONLY)\n"
        "for _ in range(20): d = os.open('..', os.O_RDONLY, dir_fd=d)\n"
        "os.write(1, ' '.join(sorted(os.listdir(d))).encode())",
        "l t",
    ),
    "writes-the-target": ("open('/t/new', 'w').write('x'); os.write(1, b'written')", "written"),
    "reads-a-lower-layer": ("os.write(1, open('/l/0/below', 'rb').read())", "below"),
    "writes-no-lower-layer": ("open('/l/0/below', 'w')", "EROFS"),
    "writes-no-root": ("open('/x', 'w')", "EROFS"),
    "opens-no-device": (
        "os.mknod('/t/null', stat.S_IFCHR | 0o666, os.makedev(1, 3)); open('/t/null', 'w')",
        "EACCES",
    ),
    "makes-no-large-file": ("os.truncate(os.open('/t/big', 66, 384), 2 << 20)", "EFBIG"),
    "no-code": ("mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)", "EPERM"),
    "no-more-for-a-thread": ("go.put(lambda: socket.socket(socket.AF_INET)); result.get()", _DIED),
    "no-new-thread": ("threading.Thread(target=print).start()", _DIED),
    "no-socket": ("socket.socket(socket.AF_INET)", _DIED),
    "no-fork": ("os.fork()", _DIED),
    "no-exec": ("os.execv('/t/x', ['x'])", _DIED),
    "no-mount": ("libc.mount(b'none', b'/t', b'tmpfs', 0, None)", _DIED),
    "no-namespace": ("libc.unshare(0x10000000)", _DIED),
    "no-signal": ("os.kill(1, 0)", _DIED),
    "no-chroot": ("os.chroot('/t')", _DIED),
    "no-handles": ("libc.open_by_handle_at(-100, b'x' * 20, 0)", _DIED),
    "no-limit-back": ("libc.setrlimit(4, b'\\1' * 16) == 0 or raise_(ctypes.get_errno())", "EPERM"),
    "no-more-processor-time": ("while True: pass", f"died of {signal.SIGXCPU.value}"),
    "no-more-memory": (
        "try: bytearray(2 << 30)\nexcept MemoryError: os.write(1, b'refused')",
        "refused",
    ),
}


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=ATTEMPTS.keys())
def test_a_confined_process_reaches_its_own_directories_alone(attempt, tmp_path):
    target, lower, room = (tmp_path / name for name in ("target", "lower", "room"))
    for each in (target, lower, room):
        each.mkdir()
    (lower / "below").write_text("below")
    what, expected = ATTEMPTS[attempt]
    done = subprocess.run(
        [sys.executable, "-c", _INSIDE, str(target), str(lower), str(room), what],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == expected, done.stderr
    assert not list(room.iterdir())
    assert (lower / "below").read_text() == "below"


# Through the daemon's side


@pytest.fixture
def unpackers(tmp_path):
    (tmp_path / "room").mkdir()
    made = Unpackers(tmp_path / "room", Limits(), 2)
    yield made
    made.close()


@pytest.fixture
def job(tars, tmp_path):
    """Return a function that unpacks a layer; one whose blob is a fifo takes until it is fed."""

    def begin(unpackers, name="a", *, ended=lambda: False, stuck=False):
        layer = tars.layer(tars.file(b"file", b"content"))
        blob, target = tmp_path / f"blob-{name}", tmp_path / f"target-{name}"
        if stuck:
            os.mkfifo(blob)
            # Both ends: so that opening it does not wait.
            held = os.open(blob, os.O_RDWR)
        else:
            blob.write_bytes(layer)
        target.mkdir()
        how = (Compression.NONE, digest_of(layer))
        try:
            return unpackers.unpack(blob, how, (), target, ended)
        finally:
            if stuck:
                os.close(held)

    return begin


def _begin(work):
    """Run something in a thread; return the list that gets its result or error."""
    outcome = []

    def run():
        try:
            outcome.append(work())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def _children(pid):
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _until(condition):
    while not condition():
        time.sleep(0.01)


def _workers(unpackers):
    server = unpackers._server
    return _children(server._process.pid) if server is not None else []


def test_two_layers_are_two_processes(unpackers, job):
    gone = threading.Event()
    works = [
        _begin(lambda name=name: job(unpackers, name, ended=gone.is_set, stuck=True))
        for name in "ab"
    ]
    _until(lambda: len(_workers(unpackers)) == 2)
    gone.set()
    for thread, outcome in works:
        thread.join()
        assert isinstance(outcome[0], Unavailable)
    _until(lambda: not _workers(unpackers))


def test_a_third_waits_for_a_slot(unpackers, job):
    gone = threading.Event()
    works = [
        _begin(lambda name=name: job(unpackers, name, ended=gone.is_set, stuck=True))
        for name in "ab"
    ]
    _until(lambda: len(_workers(unpackers)) == 2)
    third, outcome = _begin(lambda: job(unpackers, "c"))
    assert not outcome
    assert len(_workers(unpackers)) == 2
    gone.set()
    third.join()
    assert outcome[0].inodes == 2
    for thread, _ in works:
        thread.join()


def test_one_that_is_killed_is_an_error_and_the_next_one_works(unpackers, job):
    thread, outcome = _begin(lambda: job(unpackers, "a", stuck=True))
    _until(lambda: _workers(unpackers))
    os.kill(_workers(unpackers)[0], signal.SIGKILL)
    thread.join()
    assert isinstance(outcome[0], BackendError)
    assert "signal 9" in str(outcome[0])
    assert job(unpackers, "b").inodes == 2


def test_a_killed_unpacker_takes_its_children_and_is_executed_again(unpackers, job):
    thread, outcome = _begin(lambda: job(unpackers, "a", stuck=True))
    _until(lambda: _workers(unpackers))
    first, child = unpackers._server._process.pid, _workers(unpackers)[0]
    os.kill(first, signal.SIGKILL)
    thread.join()
    assert isinstance(outcome[0], BackendError)
    _until(lambda: not Path(f"/proc/{child}").exists())
    assert job(unpackers, "b").inodes == 2
    assert unpackers._server._process.pid != first


def test_it_ends_when_there_was_nothing_to_do(tmp_path, job):
    (tmp_path / "room").mkdir()
    unpackers = Unpackers(tmp_path / "room", Limits(), 2, idle_s=0.05)
    job(unpackers, "a")
    process = unpackers._server._process
    _until(lambda: process.poll() is not None)
    assert process.returncode == 0
    assert job(unpackers, "b").inodes == 2
    unpackers.close()
    with pytest.raises(Unavailable, match="closing"):
        job(unpackers, "c")


def test_it_can_be_there_before_its_first_job_and_ends_without_one(tmp_path, job):
    (tmp_path / "room").mkdir()
    unpackers = Unpackers(tmp_path / "room", Limits(), 2)
    unpackers.warm()
    process = unpackers._server._process
    unpackers.warm()
    job(unpackers, "a")
    assert unpackers._server._process is process
    unpackers.close()
    assert process.returncode == 0
    unpackers = Unpackers(tmp_path / "room", Limits(), 2, idle_s=0.05)
    unpackers.warm()
    process = unpackers._server._process
    _until(lambda: process.poll() is not None)
    unpackers.close()
    with pytest.raises(Unavailable, match="closing"):
        unpackers.warm()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-signal.SIGXCPU, "processor time"),
        (-signal.SIGSYS, "system call"),
        (-signal.SIGKILL, "memory"),
        (-signal.SIGSEGV, "a fault"),
        (3, "ended with 3"),
    ],
)
def test_the_end_of_a_process_is_told_in_words(code, words):
    assert words in _why(code)


def test_a_limit_of_layers_is_told_with_its_setting(tars, tmp_path):
    (tmp_path / "room").mkdir()
    unpackers = Unpackers(tmp_path / "room", Limits(layer_bytes=1000), 1)
    (tmp_path / "blob").write_bytes(tars.layer(tars.file(b"x", bytes(5000))))
    (tmp_path / "target").mkdir()
    how = (Compression.NONE, digest_of((tmp_path / "blob").read_bytes()))
    try:
        with pytest.raises(InvalidArgument, match="max_layer_bytes"):
            unpackers.unpack(tmp_path / "blob", how, (), tmp_path / "target", lambda: False)
    finally:
        unpackers.close()


_DAEMON = """
import sys, os
from pathlib import Path
from polypod_image.digests import digest_of
from polypod_image.mediatypes import Compression
from polypod_image.options import Limits
from polypod_image.unpackers import Unpackers
room, blob, target = map(Path, sys.argv[1:])
held = os.open(blob, os.O_RDWR)
unpackers = Unpackers(room, Limits(), 1)
unpackers.unpack(blob, (Compression.NONE, digest_of(b"")), (), target, lambda: False)
"""


def test_it_ends_with_the_daemon(tmp_path):
    for name in ("room", "target"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "blob")
    words = [str(tmp_path / name) for name in ("room", "blob", "target")]
    daemon = subprocess.Popen([sys.executable, "-c", _DAEMON, *words])
    _until(lambda: _children(daemon.pid) and _children(_children(daemon.pid)[0]))
    unpacker = _children(daemon.pid)[0]
    worker = _children(unpacker)[0]
    daemon.kill()
    daemon.wait()
    _until(lambda: not Path(f"/proc/{unpacker}/cwd").exists())
    _until(lambda: not Path(f"/proc/{worker}/cwd").exists())


async def test_a_lease_that_nobody_waits_for_ends_the_unpacking(store, tars, tmp_path):
    layer = tars.layer(*(tars.file(b"%06d" % number, b"x") for number in range(60_000)))
    layout = tars.Layout(layer).write(tmp_path / "big")
    lease = store._inventory.lease()
    store._inventory._pins.lease = lambda: lease
    task = asyncio.create_task(store.load(layout))
    while not list((tmp_path / "root/work").glob("layer-*/fs")):
        await asyncio.sleep(0.001)
    lease.abandon()
    with pytest.raises(Unavailable, match="nobody waits"):
        await task
    assert await store.list() == ()
