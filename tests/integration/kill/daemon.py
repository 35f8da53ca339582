"""What a daemon has begun when something is killed: two writers and processes that end in every way.

Imported by tests, and executed as a process of its own where the daemon itself is what dies.
"""

import asyncio
import contextlib
import os
import shutil
import sys
from pathlib import Path

from polypod.plan import operations as op
from polypod.plan.operations import Plan
from polypod.processes.host import ProcessHost
from polypod.supervisor.kernel import mounts

COUNT = 100_000
_NEWNS, _NEWPID = 0x20000, 0x20000000
# 100 bursts, some two seconds: whatever is killed is killed in the middle.
_LINES = (
    "i=0; while [ $i -lt 100 ]; do seq $((i*1000)) $((i*1000+999)); usleep 10000; i=$((i+1)); done"
)
# On a terminal a program that writes faster than the logger reads is held up by the kernel.
WRITERS = {"pipe": (_LINES, False), "tty": (f"stty -onlcr; {_LINES}", True)}
# Seconds after which each one ends: before, while and after something is away.
ENDS = (0.05, 0.3, 0.5, 0.55, 0.6, 0.7, 1.0, 2.0)
EXITS = {"zero": "exit 0", "three": "exit 3", "term": "kill -TERM $$", "kill": "kill -KILL $$"}
EXPECTED = {"zero": (0, 0), "three": (3, 0), "term": (143, 15), "kill": (137, 9)}


def make_root(directory):
    """A root file system of busybox."""
    program = shutil.which("busybox")
    for name in ("bin", "proc", "dev"):
        (directory / name).mkdir(parents=True)
    shutil.copy(program, directory / "bin/busybox")
    for name in ("sh", "seq", "usleep", "sleep", "stty", "kill"):
        (directory / "bin" / name).symlink_to("busybox")


def container(args, *, root="fd:0", stdout="", stderr="", console="", own_pids=False):
    """The plan of a small container."""
    streams = [op.UseStdio(stdin="", stdout=stdout, stderr=stderr, uid=-1)]
    if console:
        streams = [op.OpenTerminal(console=console, width=0, height=0, uid=0, bind_console=True)]
    devices = [["newinstance", None], ["ptmxmode", "0666"], ["mode", "0620"]]
    steps = [
        op.AttachRoot(source=root),
        op.MountNew(fstype="proc", target="/proc", options=[], attributes=14),
        op.MountNew(fstype="tmpfs", target="/dev", options=[["mode", "755"]], attributes=2),
        op.MountNew(fstype="devpts", target="/dev/pts", options=devices, attributes=10),
        op.MakeDevice(path="/dev/null", kind="c", major=1, minor=3, mode=0o666, uid=0, gid=0),
        op.StartSession(),
        *streams,
        op.ReadOnlyPaths(paths=["/proc/sys"]),
        op.MaskPaths(paths=["/proc/kcore", "/proc/scsi"]),
        op.ChangeRoot(),
        op.CloseDescriptors(),
        op.SetUser(uid=0, gid=0, groups=[], umask=0o22),
        op.ChangeDirectory(path="/"),
        op.SetNoNewPrivileges(),
        op.Execute(args=args, env=["PATH=/bin"], search=True),
    ]
    return Plan(_NEWNS | (_NEWPID if own_pids else 0), steps)


async def launch(host, name, args, root, *, stdio=None, **options):
    """Launch a container on a copy of the root's mount; returns what was launched."""
    tree = mounts.open_tree(mounts.AT_FDCWD, str(root), mounts.OPEN_TREE_CLONE)
    fds, places = [tree], {}
    if stdio is not None:
        for stream in ("stdout", "stderr", "console"):
            fd = getattr(stdio, stream)
            if fd is not None:
                places[stream] = f"fd:{len(fds)}"
                fds.append(fd)
    try:
        made = await host.supervisor.launch(
            name, container(args, **places, **options), fds=fds, labels={"test": name}
        )
        os.close(made.pidfd)
        return made
    finally:
        for fd in fds:
            os.close(fd)


async def begin(host, root, logs):
    """Start everything; returns name -> Launched."""
    started = {}
    for name, (script, tty) in WRITERS.items():
        stdio = await host.logs.open(
            name, logs / f"{name}.log", base=logs, tty=tty, stdin=False, stdin_once=False
        )
        started[name] = await launch(host, name, ["sh", "-c", script], root, stdio=stdio)
    for kind, command in EXITS.items():
        for number, seconds in enumerate(ENDS):
            name = f"{kind}-{number}"
            script = f"sleep {seconds}; {command}"
            started[name] = await launch(host, name, ["sh", "-c", script], root)
    started["unwatched"] = await launch(host, "unwatched", ["sleep", "1000"], root)
    # Inside a pid namespace of its own the first process is 1, and only SIGKILL from outside ends it.
    started["init"] = await launch(host, "init", ["sleep", "1000"], root, own_pids=True)
    return started


class FullPipe:
    """A step of a plan that hangs until somebody reads: the descriptor is a cgroup file's stand-in."""

    def __init__(self):
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.write_end, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(self.write_end, b"x" * 4096)
        os.set_blocking(self.write_end, True)

    def drain(self):
        os.read(self.read_end, 1 << 20)

    def close(self):
        os.close(self.read_end)
        os.close(self.write_end)


async def main(state, root, logs):
    host = await ProcessHost.open(Path(state))
    started = await begin(host, Path(root), Path(logs))
    for name, made in started.items():
        print(name, made.pid, made.start_time)
    print("started", flush=True)
    await asyncio.sleep(1000)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
