"""The supervisor's own mount namespace: small, read-only, and with everything that Python needs (E1)."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from polypod.plan import operations as op
from polypod.plan.operations import Plan
from polypod.supervisor import start
from tests.integration.kill.daemon import launch

pytestmark = pytest.mark.needs_root

SLEEP = op.Execute(args=["sleep", "0"], env=["PATH=/bin"], search=True)
TRUE = op.Execute(args=["true"], env=["PATH=/bin"], search=True)


def mounts_of(pid):
    """[(mount point, options, type)] of a process."""
    found = []
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        found.append((fields[4], fields[5].split(","), after.split()[0]))
    return found


async def test_supervisor_sees_few_mounts_and_can_write_to_none(place):
    host = await place.open()
    found = mounts_of((await host.pids())["supervisor"])
    assert len(found) <= 12
    for point, options, kind in found:
        assert "ro" in options or kind == "proc", point
    assert {"/", "/proc", "/dev"} <= {point for point, _, _ in found}


def writable(pid):
    """What leads from a process to a file on a mount that can be written to."""
    found = []
    links = [f"/proc/{pid}/{name}" for name in ("exe", "cwd", "root")]
    links += [f"/proc/{pid}/map_files/{name}" for name in os.listdir(f"/proc/{pid}/map_files")]
    for link in links:
        if os.readlink(link).startswith(("/memfd:", "/dev/zero", "anon_inode:")):
            continue
        fd = os.open(link, os.O_PATH)
        if not os.fstatvfs(fd).f_flag & os.ST_RDONLY:
            found.append(os.readlink(link))
        os.close(fd)
    return found


@pytest.mark.needs_busybox
async def test_e1_nothing_of_an_entering_process_can_be_opened_for_writing(place):
    """What a process looks like from inside a container while it is between joining and execve."""
    host = await place.open()
    made = await launch(host, "c", ["sleep", "1000"], place.root, own_pids=True)
    pidfd = os.pidfd_open(made.pid)
    kinds = ["mount", "pid"]
    plan = Plan(0, [op.JoinNamespaces(items=[], kinds=kinds, pidfd="fd:0"), SLEEP], "fd:0")
    held = await host.supervisor.launch("e", plan, fds=[pidfd], hold=True)
    os.close(held.pidfd)
    os.close(pidfd)
    assert os.readlink(f"/proc/{held.pid}/ns/mnt") == os.readlink(f"/proc/{made.pid}/ns/mnt")
    assert "python" in os.readlink(f"/proc/{held.pid}/exe")
    # The root of the container is its own; nothing else of it can be written to.
    assert set(writable(held.pid)) <= {"/"}
    assert "/" not in {os.readlink(f"/proc/{held.pid}/exe")}
    await host.supervisor.release("e")
    assert (await host.supervisor.wait("e")).code == 0


async def test_supervisor_is_not_dumpable_and_neither_is_what_it_launches(place):
    host = await place.open()
    pids = await host.pids()
    held = await host.supervisor.launch("e", Plan(0, [TRUE]), fds=[], hold=True)
    os.close(held.pidfd)
    for pid in (*pids.values(), held.pid):
        assert os.stat(f"/proc/{pid}/environ").st_uid == 0
        child = subprocess.run(
            ["setpriv", "--reuid=65534", "--clear-groups", "cat", f"/proc/{pid}/environ"],
            capture_output=True,
            check=False,
        )
        assert child.returncode != 0


_IN_A_NAMESPACE = """
import os, shutil, subprocess, sys
sys.path.insert(0, sys.argv[1])
from polypod.supervisor.kernel import mounts, namespace, process
code, prefix, place, program = sys.argv[1:5]
namespace.unshare(process.CLONE_NEWNS)
mounts.mount("", "/", "", mounts.MS_REC | mounts.MS_PRIVATE)
# A mount on a mount, as where /opt and /opt/python are volumes.
mounts.mount("none", place, "tmpfs", 0)
inner = place + "/inner dir"
os.mkdir(inner)
mounts.mount(prefix, inner, "", mounts.MS_BIND)
os.execv(inner + "/" + program, [inner + "/" + program, "-I", "-S", "-E", "-c", sys.argv[5], code])
"""
_TRIMMED = """
import os, sys
sys.path.insert(0, sys.argv[1])
if len(sys.argv) == 2:
    from polypod.supervisor import trim
    trim.enter()
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-E", "-c", CODE, sys.argv[1], "inside"])
import json, socket, ctypes
from polypod.supervisor import child
print(sys.executable)
print(open("/proc/self/mountinfo").read())
"""


def test_interpreter_on_mounts_of_its_own_works_inside(tmp_path):
    """The executable and its library lie on a mount that lies on a mount, with a space in its path."""
    executable = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    prefix = Path(sys.base_prefix)
    if not executable.is_relative_to(prefix):
        pytest.skip(f"{executable} is not below {prefix}")
    code = f"CODE = {_TRIMMED!r}\n{_TRIMMED}"
    code = f"CODE = {code!r}\n{_TRIMMED}"
    done = subprocess.run(
        [
            *(executable, "-I", "-S", "-E", "-c", _IN_A_NAMESPACE, start.code_root(), prefix),
            *(tmp_path, executable.relative_to(prefix), code),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={},
    )
    assert done.returncode == 0, done.stderr
    program, *table = done.stdout.splitlines()
    assert program.startswith(str(tmp_path / "inner dir"))
    points = {line.split()[4]: line.split()[5] for line in table if line}
    for path in (tmp_path, tmp_path / "inner dir"):
        assert points[str(path).replace(" ", "\\040")].startswith("ro")


async def test_null_device_of_the_launcher_cannot_be_changed_by_a_container(place):
    """It is one inode for all: stdin of who has none."""
    host = await place.open()
    script = "chmod 000 /proc/self/fd/0 2>&1; stat -c %a /dev/null"
    read_end, write_end = os.pipe()
    steps = [
        op.UseStdio(stdin="", stdout="fd:0", stderr="", uid=-1),
        op.Execute(args=["sh", "-c", script], env=["PATH=/bin:/usr/bin"], search=True),
    ]
    made = await host.supervisor.launch("p", Plan(0, steps), fds=[write_end])
    os.close(write_end)
    os.close(made.pidfd)
    await host.supervisor.wait("p")
    said = os.read(read_end, 4096).decode()
    os.close(read_end)
    assert "Read-only file system" in said
    assert said.split()[-1] == "666"


async def test_supervisor_comes_back_after_its_namespace_was_left_by_force(place):
    host = await place.open()
    pid = (await host.pids())["supervisor"]
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        while (await host.pids()).get("supervisor", pid) == pid:
            await asyncio.sleep(0.02)
    await host.supervisor.processes()
    assert len(mounts_of((await host.pids())["supervisor"])) <= 12
