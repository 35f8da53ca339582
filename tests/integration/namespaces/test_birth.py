"""E1, E7: a container that may trace sees nothing in its pid namespace that has more rights than itself."""

from __future__ import annotations

import ast
import asyncio
import os
import signal
from dataclasses import replace

import pytest
from support.containment_parts import python, python_mounts, security

from polypod.plugin.oci import Seccomp, SeccompRule
from polypod.plugin.requests import Capabilities, NamespaceMode, NamespaceOptions

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay, pytest.mark.needs_busybox]

# It takes hold of each process that comes, as soon as it can be seen, and writes down what that may do.
_ATTACK = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
libc.ptrace.restype = ctypes.c_long
SEIZE, INTERRUPT, DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000
def facts(pid):
    with open(f"/proc/{pid}/status") as file:
        rows = dict(line.rstrip().split(":", 1) for line in file)
    names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "Seccomp")
    return tuple(int(rows[name], 16) for name in names)
def hold(pid):
    if libc.ptrace(SEIZE, pid, None, None):
        return
    libc.ptrace(INTERRUPT, pid, None, None)
    try:
        os.waitpid(pid, WALL)
        ours = os.readlink(f"/proc/{pid}/exe") == os.readlink("/proc/self/exe")
        met.append((ours, *facts(pid), len(os.listdir(f"/proc/{pid}/fd"))))
        libc.ptrace(DETACH, pid, None, None)
    except OSError:
        pass
met, last = [], os.getpid()
own = facts(os.getpid())
print("ready", flush=True)
turns = 0
while True:
    for pid in range(last + 1, last + 4):
        hold(pid)
    turns += 1
    if turns % 50 == 0:
        newest = max(int(name) for name in os.listdir("/proc") if name.isdigit())
        last = max(last, newest)
        if os.path.exists("/tmp/stop"):
            break
print(repr((own, met)), flush=True)
"""


async def attacked(pod, deed, **changes) -> tuple[tuple, list[tuple]]:
    """Do something beside an attack; return what the attacker may do, and what it met before execve."""
    capabilities = Capabilities(add=("SYS_PTRACE",))
    box = await pod.start(
        python(_ATTACK),
        mounts=python_mounts(),
        security=security(capabilities=capabilities, **changes),
    )
    await box.says("ready")
    for _ in range(60):
        await deed(box)
    assert (await box.exec("touch /tmp/stop")).code == 0
    result = await box.ended()
    assert result.code == 0, result
    own, met = ast.literal_eval(result.lines[-1])
    assert met, "the attack met nobody"
    return own, [row[1:] for row in met if row[0]]


def check(own: tuple, met: list[tuple]) -> None:
    """Whoever was met has no right, no descriptor and no missing filter that would be worth it."""
    for *sets, seccomp, descriptors in met:
        for mine, theirs in zip(own[:5], sets, strict=True):
            assert theirs & ~mine == 0, (own, met)
        assert seccomp == own[5]
        assert descriptors <= 6


@pytest.mark.parametrize("filtered", [True, False], ids=["default filter", "no filter"])
async def test_an_exec_can_be_taken_over_only_when_it_has_nothing_more(pod, filtered):
    async def three_execs(box) -> None:
        results = await asyncio.gather(*(box.exec(("/bin/true",)) for _ in range(3)))
        assert [each.code for each in results] == [0] * 3

    check(*await attacked(pod, three_execs, **({} if filtered else {"seccomp": None})))


# Before that, who mounts a procfs has to be in the pid namespace that it shows.
_CAN_SHOW_OTHERS = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2])) >= (6, 17)


@pytest.mark.skipif(not _CAN_SHOW_OTHERS, reason="mount option pidns of proc: Linux 6.17")
@pytest.mark.parametrize("filtered", [True, False], ids=["default filter", "no filter"])
async def test_nor_can_another_container_of_a_pod_that_shares_its_processes(bench, filtered):
    pod = await bench.pod(NamespaceOptions(pid=NamespaceMode.POD))
    given = {"namespaces": pod.spec.config.security.namespaces}
    given |= {} if filtered else {"seccomp": None}

    async def a_container(_box) -> None:
        result = await pod.run("ps", security=security(**given))
        assert result.code == 0, result
        assert "polypod-init" in result.out  # its proc shows the pod's processes
        assert len(result.lines) < 20

    check(*await attacked(pod, a_container, **given))


async def test_who_may_not_trace_meets_nobody(pod):
    """Without that capability there is no second clone: what is unfinished is not dumpable."""
    box = await pod.start(python(_ATTACK), mounts=python_mounts(), security=security())
    await box.says("ready")
    for _ in range(60):
        results = await asyncio.gather(*(box.exec(("/bin/true",)) for _ in range(3)))
        assert [each.code for each in results] == [0] * 3
    assert (await box.exec("touch /tmp/stop")).code == 0
    result = await box.ended()
    assert result.code == 0, result
    _own, met = ast.literal_eval(result.lines[-1])
    # What has executed is the container's own, and may be traced like any other program of its user.
    assert [row for row in met if row[0]] == []


_REFUSED = ("clone", "capset", "sendmmsg", "readv", "ppoll", "setsid")


@pytest.mark.parametrize("action", ["SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS"])
async def test_an_exec_needs_nothing_of_the_containers_filter(pod, action):
    """What is let through for the birth is let through for nobody else."""

    def strict(config):
        seccomp = Seccomp("SCMP_ACT_ALLOW", syscalls=(SeccompRule(_REFUSED, action),))
        return replace(config, linux=replace(config.linux, seccomp=seccomp))

    tracing = security(capabilities=Capabilities(add=("SYS_PTRACE",)))
    box = await pod.start(
        "echo ready; exec sleep 100", mounts=python_mounts(), adjust=strict, security=tracing
    )
    await box.says("ready")
    assert (await box.exec(("/bin/echo", "hello"))).out == "hello\n"
    code = """
import ctypes
libc = ctypes.CDLL(None)
libc.readv.restype = ctypes.c_ssize_t
print("begins", flush=True)
print(libc.readv(-1, None, 0), libc.setsid(), flush=True)
"""
    result = await box.exec(python(code))
    if action == "SCMP_ACT_ERRNO":
        assert result.lines == ["begins", "-1 -1"]
    else:
        assert (result.code, result.lines) == (128 + signal.SIGSYS, ["begins"])


@pytest.mark.parametrize("added", [(), ("SYS_PTRACE",)], ids=["at once", "born last"])
async def test_an_exec_leads_a_session_and_has_its_terminal(pod, added):
    tools = security(capabilities=Capabilities(add=added))
    box = await pod.start("echo ready; exec sleep 100", security=tools)
    await box.says("ready")
    script = "cut -d' ' -f4,5,6 /proc/self/stat; echo $$; echo to the terminal > /dev/tty"
    session, master = await box.terminal_session(script)
    assert (await session.wait()).code == 0
    text = os.read(master, 4096).decode().split("\r\n")
    parent, _group, leader = text[0].split()
    assert (parent, leader, text[2]) == (text[1], text[1], "to the terminal")
    plain = (await box.exec("cut -d' ' -f6 /proc/self/stat; echo $$")).lines
    assert plain[0] == plain[1]
