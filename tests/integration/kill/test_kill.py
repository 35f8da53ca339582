"""Each of the processes, and every pair of them, killed in the middle of everything.

The promise is DESIGN.md's, "Processes": no container is disturbed, no exit code is lost or made up, no
line is lost on a pipe; at most one read comes twice there, and at most one is missing on a terminal.
"""

import asyncio
import itertools
import os
import signal
import sys
from pathlib import Path

import pytest

from polypod.plugin.services import ExitStatus
from polypod.supervisor.kernel import process

from .daemon import COUNT, ENDS, EXITS, EXPECTED, WRITERS, begin

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_busybox]

_READ = 64 * 1024
ROLES = ("daemon", "supervisor", "logger", "keeper")
CASES = [
    *((role,) for role in ROLES),
    *itertools.combinations(ROLES, 2),
    ("daemon", "supervisor", "keeper"),
    ("daemon", "logger", "keeper"),
]


async def start_daemon(place):
    """Begin in a daemon of its own; returns (process, {name: (pid, start time)})."""
    script = Path(__file__).with_name("daemon.py")
    daemon = await asyncio.create_subprocess_exec(
        sys.executable,
        script,
        *map(str, (place.state, place.root, place.logs)),
        stdout=asyncio.subprocess.PIPE,
    )
    started = {}
    while (line := (await daemon.stdout.readline()).decode().split()) != ["started"]:
        name, pid, start_time = line
        started[name] = (int(pid), int(start_time))
    return daemon, started


async def start_here(place):
    host = await place.open()
    made = await begin(host, place.root, place.logs)
    return {name: (each.pid, each.start_time) for name, each in made.items()}


@pytest.mark.parametrize("victims", CASES, ids="+".join)
async def test_kill_in_the_middle(place, victims):
    if "daemon" in victims:
        daemon, started = await start_daemon(place)
    else:
        daemon, started = None, await start_here(place)
    pids = await (await place.open()).pids() if daemon is None else role_pids(place)
    await asyncio.sleep(0.45)
    if daemon is not None:
        daemon.kill()
        await daemon.wait()
    for role in victims:
        if role != "daemon":
            os.kill(pids[role], signal.SIGKILL)
    # At this moment nobody watches.
    os.kill(started["unwatched"][0], signal.SIGKILL)
    host = await place.open()
    await check_nobody_was_disturbed(host, started)
    parent_died = "keeper" in victims
    await check_exits(host, parent_died=parent_died)
    os.kill(started["init"][0], signal.SIGKILL)
    status = await host.supervisor.wait("init")
    assert_status(status, (137, 9), parent_died=parent_died)
    # The same again through a daemon that comes later, until it is forgotten.
    later = await place.open()
    found = {each.process_id: each.exit for each in await later.supervisor.processes()}
    assert set(found) == set(started)
    for name in started:
        assert_status(found[name], expected(name), parent_died=parent_died)
    for name in WRITERS:
        await later.logs.drained(name)
    check_pipe(place.logs / "pipe.log", killed="logger" in victims)
    check_terminal(place.logs / "tty.log", killed="logger" in victims)
    for name in started:
        await later.supervisor.forget(name)
    assert await later.supervisor.processes() == []
    assert await_keeper_pids(await later.pids(), pids, victims)


def role_pids(place):
    """Who is who, without asking anybody."""
    names = {"polypod-keeper": "keeper", "polypod-superv": "supervisor", "polypod-logger": "logger"}
    found = {}
    for pid in place.ours():
        comm = Path(f"/proc/{pid}/comm").read_text().strip()
        if comm in names:
            found.setdefault(names[comm], pid)
    return found


def await_keeper_pids(now, before, victims):
    """Who was killed has a successor; a new keeper has new children."""
    replaced = set(victims) - {"daemon"}
    if "keeper" in victims:
        replaced |= {"supervisor", "logger"}
    return {role for role in now if now[role] != before[role]} == replaced


async def check_nobody_was_disturbed(host, started):
    """All is known to the new processes, under the same pid."""
    async with asyncio.timeout(20):
        while True:
            found = {each.process_id: each for each in await host.supervisor.processes()}
            if set(found) == set(started):
                break
            await asyncio.sleep(0.05)
    for name, (pid, start_time) in started.items():
        assert (found[name].pid, found[name].start_time) == (pid, start_time)
        assert found[name].labels == {"test": name}


def expected(name):
    if name in ("unwatched", "init"):
        return (137, 9)
    return EXPECTED.get(name.partition("-")[0], (0, 0))


def kernel_keeps_codes():
    """Whether a pidfd tells the code of a process that somebody else has reaped (Linux 6.15)."""
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 7"], {})
    pidfd = os.pidfd_open(pid)
    os.waitpid(pid, 0)
    try:
        return process.exit_status(pidfd) is not None
    finally:
        os.close(pidfd)


KEEPS_CODES = kernel_keeps_codes()


def assert_status(status: ExitStatus, wanted, *, parent_died=False):
    """The exact code; unknown only where parent and kernel are no help, and never another one."""
    assert status.finished_at_ns > 0
    if parent_died and not KEEPS_CODES and status.code is None:
        return
    assert (status.code, status.signal) == wanted


async def check_exits(host, *, parent_died):
    names = [f"{kind}-{number}" for kind in EXITS for number in range(len(ENDS))]
    async with asyncio.timeout(60):
        for name in ("pipe", "tty", "unwatched", *names):
            status = await host.supervisor.wait(name)
            assert_status(status, expected(name), parent_died=parent_died)


def texts(path):
    """The container's lines of a log, parts joined."""
    found, begun = [], b""
    for line in path.read_bytes().split(b"\n")[:-1]:
        stamp, stream, flag, text = line.split(b" ", 3)
        assert len(stamp) == 30, line
        assert stream in (b"stdout", b"stderr"), line
        begun += text
        if flag == b"F":
            found.append(begun)
            begun = b""
    return found + ([begun] if begun else [])


def check_pipe(path, *, killed):
    """Nothing is lost; what comes twice is one read, and only if the logger was killed."""
    found = [int(line) for line in texts(path)]
    assert set(found) == set(range(COUNT))
    repeats = [(a, b) for a, b in itertools.pairwise(found) if b != a + 1]
    assert len(repeats) <= (1 if killed else 0)
    repeated = sum(len(b"%d\n" % number) for a, b in repeats for number in range(b, a + 1))
    assert repeated <= _READ


def check_terminal(path, *, killed):
    """At most one read is missing, in one place, and the log says so."""
    found = texts(path)
    notes = [line for line in found if line.startswith(b"[polypod: ")]
    lines = [line for line in found if line not in notes]
    assert len(notes) == (1 if killed else 0)
    if not killed:
        assert [int(line) for line in lines] == list(range(COUNT))
        return
    assert b"the logger was restarted" in notes[0]
    whole = b"".join(b"%d\n" % number for number in range(COUNT))
    seen = b"".join(line + b"\n" for line in lines)
    # All in one piece but for one gap: the longest common beginning and end cover what was seen.
    begin, end = common(whole, seen), common(whole[::-1], seen[::-1])
    # The line that the gap tore may have been ended by the note.
    assert begin + end >= len(seen) - 1
    assert len(whole) - len(seen) <= _READ


def common(first, second):
    """How many bytes two texts have in common at their beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))
