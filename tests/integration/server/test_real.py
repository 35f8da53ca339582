"""Real pods through serve and down: they outlive every process of ours, and down finds them all."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from polypod_network.options import parse

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_overlay,
    pytest.mark.needs_nft,
    pytest.mark.needs_busybox,
]
IMAGE = "localhost/real:latest"
MARK = "86423"
"""Seconds that the pod's program sleeps: how its process is found."""


def with_words(*words):
    """Return the pids of the processes whose command line has all of these words."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if all(os.fsencode(word) in line for word in words):
                found.append(int(entry.name))
    return found


@pytest.fixture
async def real(server):
    parent = f"/polypod-test-{os.getpid()}"
    server.settings = [
        "handlers.namespaces.type=namespaces",
        "server.default_handler=namespaces",
        f"server.cgroup_parent={parent}",
        f"server.state_files={server.place}/state-files",
        "network.subnets=['10.235.7.0/24', 'fd00:10:235:7::/64']",
    ]
    await server.start(*server.settings).ready()
    try:
        done = server.run(
            "image", "from-host", shutil.which("busybox"), "--applets", "--name", IMAGE, "--load"
        )
        assert done.returncode == 0, done.stderr
        yield server
    finally:
        done = server.down()
        assert (done.returncode, done.stderr) == (0, "")


async def a_pod(server):
    done = server.run("run", "-d", "--name", "web", IMAGE, "sleep", MARK)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def ours(server, role):
    return with_words(role, f"{server.place}/state")


async def test_pods_outlive_the_daemon(real, cri):
    pod = await a_pod(real)
    (before,) = with_words("sleep", MARK)
    address = (await cri.sandbox_status(pod)).status.network.ip
    code, _err = real.end()
    assert code == 0
    assert with_words("sleep", MARK) == [before]
    await real.start(*real.settings).ready()
    status = (await cri.sandbox_status(pod)).status
    assert (status.network.ip, status.state) == (address, 0)
    assert real.run("exec", "web", "--", "hostname").stdout == "web\n"


@pytest.mark.parametrize(
    "killed",
    [
        [],
        ["daemon"],
        ["daemon", "supervisor", "logger"],
        ["daemon", "keeper", "supervisor", "logger"],
    ],
    ids=lambda roles: " ".join(roles) or "nobody",
)
async def test_down_leaves_nothing_whoever_was_killed(real, killed):
    await a_pod(real)
    assert len(with_words("sleep", MARK)) == 1
    victims = [real.process.pid] if "daemon" in killed else []
    for role in killed:
        if role != "daemon":
            victims += ours(real, role)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    done = real.down()
    assert (done.returncode, done.stderr) == (0, "")
    assert with_words("sleep", MARK) == []
    assert [ours(real, role) for role in ("keeper", "supervisor", "logger")] == [[], [], []]
    assert os.listdir(f"{real.place}/state") == []
    parent = f"polypod-test-{os.getpid()}"
    assert not [top for top in Path("/sys/fs/cgroup").iterdir() if (top / parent).exists()]
    bridge = parse({}, Path(f"{real.place}/root/network/bridge")).bridge
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True)
    assert bridge not in tables.stdout
    assert bridge not in os.listdir("/sys/class/net")
