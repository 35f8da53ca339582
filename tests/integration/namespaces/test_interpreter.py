"""E1: no process in a container can write to what enters it; nothing of ours in there is a way out."""

from __future__ import annotations

import ast
import asyncio
import hashlib
from pathlib import Path

import pytest
from support.containment_parts import PYTHON, python, python_mounts, security

import polypod
from polypod.plugin.requests import Capabilities, NamespaceMode, NamespaceOptions

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay, pytest.mark.needs_busybox]

# For each process but its own: its executable, every file that it has mapped, and the interpreter and its
# library below its root, opened for writing. What cannot be opened only because it runs (ETXTBSY) could
# be opened a moment later, unless its mount is read-only. A file is held by O_PATH before it is tried, so
# that what is tried is what was looked at.
_ATTACK = """
import errno, os, sys
seen, tried, opened = set(), {}, []
def note(name):
    tried[name] = tried.get(name, 0) + 1
def attempt(path):
    try:
        held = os.open(path, os.O_PATH)
    except OSError as error:
        return note(errno.errorcode[error.errno])
    try:
        target = os.readlink(f"/proc/self/fd/{held}")
        if "busybox" in target or target.startswith("/bin/"):
            return
        if path.split("/")[3] != "root":
            seen.add(target)
        if os.fstatvfs(held).f_flag & os.ST_RDONLY:
            note("EROFS")
        else:
            opened.append(target)
        os.close(os.open(f"/proc/self/fd/{held}", os.O_WRONLY))
        opened.append(target)
    except OSError as error:
        note(errno.errorcode[error.errno])
    finally:
        os.close(held)
print("ready", flush=True)
while not os.path.exists("/tmp/stop"):
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if pid == str(os.getpid()):
            continue
        attempt(f"/proc/{pid}/exe")
        for path in (sys.executable, os.__file__):
            attempt(f"/proc/{pid}/root{path}")
        try:
            names = os.listdir(f"/proc/{pid}/map_files")
        except OSError as error:
            note(errno.errorcode[error.errno])
            continue
        for name in names:
            attempt(f"/proc/{pid}/map_files/{name}")
print(repr((sorted(seen), tried, opened)), flush=True)
"""


def digests() -> dict[str, str]:
    """Return path → sha256 of the interpreter and of our code."""
    package = Path(polypod.__file__).parent
    paths = [Path(PYTHON)]
    for room in ("supervisor", "plan"):
        paths += (package / room).rglob("*.py")
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.parametrize("added", [(), ("SYS_PTRACE",)], ids=["default", "ptrace"])
async def test_e1_interpreter_cannot_be_opened_for_writing(pod, added):
    before = digests()
    box = await pod.start(
        python(_ATTACK),
        mounts=python_mounts(),
        security=security(capabilities=Capabilities(add=added), seccomp=None),
    )
    await box.says("ready")
    for _ in range(50):
        results = await asyncio.gather(*(box.exec(("/bin/true",)) for _ in range(4)))
        assert [each.code for each in results] == [0] * 4
    assert (await box.exec("touch /tmp/stop")).code == 0
    result = await box.ended()
    assert result.code == 0, result
    seen, tried, opened = ast.literal_eval(result.lines[-1])
    assert opened == []
    assert tried, "the attack met nobody"
    if added:
        # It may look at others' processes, so it has seen ours: what it saw was read-only.
        assert any("python" in path for path in seen)
        assert tried["EROFS"] > 0
    else:
        assert seen == []
    assert digests() == before


@pytest.fixture
async def shared(bench):
    """A pod whose containers share one pid namespace, which has an init of ours."""
    return await bench.pod(NamespaceOptions(pid=NamespaceMode.POD))


def curious(pod):
    """Rights that a debugging container gets: it may look at every process that it sees."""
    return security(
        namespaces=pod.spec.config.security.namespaces,
        capabilities=Capabilities(add=("SYS_PTRACE",)),
        seccomp=None,
    )


async def test_e1_the_pods_init_leads_nowhere(shared):
    script = """
        cat /proc/1/comm
        ls -A /proc/1/root/ /proc/1/cwd/ /proc/1/fd/
        cat /proc/1/root/etc/hostname
        echo x > /proc/1/root/new || echo refused
    """
    result = await shared.run(f"({script}) 2>/dev/null", security=curious(shared))
    words = [line for line in result.lines if line and not line.endswith(":")]
    assert words == ["polypod-init", "refused"]


async def test_e1_the_pods_init_has_no_rights_to_take_over(shared):
    result = await shared.run(
        "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/1/status; for kind in net ipc uts mnt cgroup; do"
        " readlink /proc/1/ns/$kind; readlink /proc/self/ns/$kind; done",
        security=curious(shared),
    )
    facts = dict(line.split(":\t") for line in result.lines if ":\t" in line)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(facts[name], 16) == 0, name
    assert facts["NoNewPrivs"] == "1"
    links = [line for line in result.lines if "[" in line]
    assert len(links) == 10
    for kind in range(3):
        # The pod's own network, IPC and UTS: code in it would reach no more than the container itself.
        assert links[2 * kind] == links[2 * kind + 1]
    assert links[6] != links[7]


async def test_the_pods_init_reaps_what_containers_leave(shared):
    """A process whose parent is gone belongs to the init; it does not stay a zombie."""
    box = await shared.start("(sleep 0.05 &) ; echo ready; exec sleep 100")
    await box.says("ready")
    orphans = "ps -o pid,ppid,stat,comm | grep -c '[s]leep 0.05\\| Z '"
    for _ in range(200):
        if (await box.exec(orphans)).out == "0\n":
            break
        await asyncio.sleep(0.01)
    else:
        pytest.fail("a zombie is left")


async def test_the_pods_init_cannot_be_ended_from_inside(shared):
    box = await shared.start("kill -9 1; kill -TERM 1; kill -INT 1; echo ready; exec sleep 100")
    await box.says("ready")
    assert (await box.exec("cat /proc/1/comm")).out == "polypod-init\n"
