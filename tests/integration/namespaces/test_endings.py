"""Nothing outlives its container, nothing is left of many: processes, descriptors, mounts, cgroups."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from polypod.backend.cgroups import Cgroups, discover
from polypod.plugin.oci import Namespace
from polypod.plugin.requests import Mount, NamespaceMode, NamespaceOptions
from polypod.plugin.runtime import SandboxDied

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay, pytest.mark.needs_busybox]

_SLEEP = "echo ready; exec sleep 100"
SHARED = NamespaceOptions(pid=NamespaceMode.POD)

# Machine code of x86-64. Each process lives only until it has forked the next one:
#     again: mov eax, 57 (fork); syscall; test eax, eax; jle again; xor edi, edi; mov eax, 60 (exit); syscall
_CODE = bytes.fromhex("b839000000 0f05 85c0 7ef5 31ff b83c000000 0f05")


def program(code: bytes) -> bytes:
    """Return an ELF file that is nothing but some code."""
    base, size = 0x400000, 64 + 56 + len(code)
    header = b"\x7fELF\2\1\1".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096) + code


@pytest.fixture
def hopping(tmp_path) -> Path:
    """A layer with a program that whoever lists processes comes too late for."""
    if os.uname().machine != "x86_64":
        pytest.skip("machine code of x86-64")
    layer = tmp_path / "layer"
    layer.mkdir()
    (layer / "hop").write_bytes(program(_CODE))
    (layer / "hop").chmod(0o755)
    return layer


_HOPPING = f"for lane in 1 2 3 4; do /hop & done; {_SLEEP}"


@pytest.fixture
async def shared(bench):
    return await bench.pod(SHARED)


def few(config):
    """At most 60 processes, so that the test cannot hurt the host."""
    resources = replace(config.linux.resources, pids_limit=60)
    return replace(config, linux=replace(config.linux, resources=resources))


async def _hops(box) -> None:
    """Return once it is at it: the pids move on."""
    group = f"{box.pod.spec.cgroup}/{box.id}"
    cgroups = Cgroups(discover())
    first = set(cgroups.processes(group))
    async with asyncio.timeout(10):
        while len(set(cgroups.processes(group)) - first) < 2:
            await asyncio.sleep(0.01)


async def _empty(group: str) -> None:
    """Return once nobody is left in a cgroup: the killed go at their own pace."""
    cgroups = Cgroups(discover())
    async with asyncio.timeout(10):
        while cgroups.processes(group):
            await asyncio.sleep(0.01)


async def test_processes_that_hop_are_all_ended(shared, hopping):
    """In a shared pid namespace no kernel ends them: the cgroup is emptied, however fast they fork."""
    box = await shared.start(_HOPPING, layers=[hopping], adjust=few)
    await box.says("ready")
    await _hops(box)
    await box.kill()
    await _empty(f"{shared.spec.cgroup}/{box.id}")


async def test_stopping_a_sandbox_ends_processes_that_hop(shared, bench, hopping):
    box = await shared.start(_HOPPING, layers=[hopping], adjust=few)
    await box.says("ready")
    await _hops(box)
    await bench.backend.stop_sandbox(shared.spec.id)
    await _empty(shared.spec.cgroup)


def _names(group: str) -> set[str]:
    """Return the names of the processes in a cgroup."""
    found = set()
    for pid in Cgroups(discover()).processes(group):
        with contextlib.suppress(OSError):
            found.add(Path(f"/proc/{pid}/comm").read_text().strip())
    return found


async def test_killed_exec_takes_processes_that_hop_along(pod, hopping):
    reaping = "echo ready; while :; do sleep 0.001; done"
    box = await pod.start(reaping, layers=[hopping], adjust=few)
    await box.says("ready")
    session, output = await box.session(_HOPPING)
    while b"ready" not in (await output.collect())[0]:
        await asyncio.sleep(0.01)
    await _hops(box)
    await session.kill(9)
    output.close()
    async with asyncio.timeout(10):
        while "hop" in _names(f"{pod.spec.cgroup}/{box.id}"):
            await asyncio.sleep(0.01)
    assert (await box.exec("echo alive")).out == "alive\n"


async def test_death_of_the_pods_init_is_told(bench, shared):
    box = await shared.start(_SLEEP)
    await box.says("ready")
    assert (await bench.backend.list()).sandboxes == {shared.spec.id: True}
    os.kill(shared.spec.namespaces.init_pid, 9)
    # The kernel ends every process of the namespace with it.
    assert (await box.ended()).code == 137
    async with asyncio.timeout(10):
        while not any(isinstance(event, SandboxDied) for event in bench.events):
            await asyncio.sleep(0.01)
    assert (await bench.backend.list()).sandboxes == {shared.spec.id: False}
    result = await shared.run("echo ran")
    assert result.error
    assert result.out == ""


async def test_stopped_sandbox_is_no_death(bench, shared):
    await bench.backend.stop_sandbox(shared.spec.id)
    await shared.close()
    assert not any(isinstance(event, SandboxDied) for event in bench.events)


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _broken(config):
    return replace(config, linux=replace(config.linux, sysctl={"net.ipv4.no_such_thing": "1"}))


def _refused(config):
    namespaces = (*config.linux.namespaces, Namespace("user"))
    return replace(config, linux=replace(config.linux, namespaces=namespaces))


async def _all_kinds(pod, tmp_path) -> None:
    """One of everything: what ends well, ends badly, never starts, and what is executed in it."""
    volume = (Mount("/v", str(tmp_path)),)
    assert (await pod.run("exit 0", mounts=volume)).code == 0
    assert (await pod.run("exit 3", tty=True)).code == 3
    assert (await pod.run(("/bin/nosuch",))).error
    assert (await pod.run("true", adjust=_broken)).error
    assert (await pod.run("true", adjust=_refused)).error
    assert (await pod.run("true", working_dir="/proc/self/fd/9")).error
    box = await pod.start(_SLEEP)
    await box.says("ready")
    assert (await box.exec("true")).code == 0
    assert (await box.exec(("/bin/nosuch",))).error
    session, output = await box.session(_SLEEP)
    await session.kill(9)
    output.close()
    await box.kill()
    await box.delete()
    held = await pod.create("true")
    await held.delete()


@pytest.mark.parametrize(
    "modes", [NamespaceOptions(pid=NamespaceMode.CONTAINER), SHARED], ids=["own", "shared"]
)
async def test_nothing_is_left_of_many(bench, tmp_path, modes):
    pids = await bench.host.pids()

    def counted() -> dict[str, int]:
        return {"we": _descriptors(os.getpid())} | {
            role: _descriptors(pid) for role, pid in pids.items()
        }

    async def round_of_all() -> None:
        pod = await bench.pod(modes)
        await _all_kinds(pod, tmp_path)
        await pod.close()

    await round_of_all()
    before, mounts = counted(), Path("/proc/self/mountinfo").read_text()
    for _ in range(4):
        await round_of_all()
    for _ in range(100):
        # The keeper drops what it held a moment after it was asked to.
        if counted() == before:
            break
        await asyncio.sleep(0.02)
    assert counted() == before
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert await bench.host.supervisor.processes() == []
    assert await bench.host.supervisor.list_namespaces() == []
    assert Cgroups(discover()).children(bench.parent) == []


async def test_a_container_holds_no_mount_of_another(pod, tmp_path):
    """Deleting what a container used works while others live: none of them has a copy of its mounts."""
    first = await pod.start(_SLEEP)
    await first.says("ready")
    second = await pod.start(_SLEEP)
    await second.says("ready")
    text = (await second.exec("cat /proc/self/mountinfo")).out
    assert first.id not in text
    for pid in (await pod.bench.host.pids()).values():
        assert first.id not in Path(f"/proc/{pid}/mountinfo").read_text()
    tables = map(str, Path("/proc").glob("[0-9]*/mountinfo"))
    command = ["grep", "-ls", first.id, *tables]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [f"/proc/{await first.pid()}/mountinfo"]
