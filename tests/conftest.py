"""What this host can do, as markers; and proof that a test leaves nothing behind.

A run as root lives in a mount namespace of its own, so that no mount of a test can stay on the host; and,
where a cgroup2 hierarchy is there, in a cgroup of its own there, in which every process that the run
starts shows up, whoever its parent became. The engine's cgroups lie elsewhere and are not touched by that.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def _root() -> str:
    if os.geteuid() != 0:
        return "not root"
    with open("/proc/self/status") as status:
        effective = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff"))
    missing = [
        name for name, bit in (("SYS_ADMIN", 21), ("NET_ADMIN", 12)) if not effective >> bit & 1
    ]
    return f"CAP_{missing[0]} is missing" if missing else ""


def _cgroup1() -> str:
    mounts = Path("/proc/self/mounts").read_text()
    return "" if " cgroup " in mounts else "no cgroup v1 hierarchy is mounted"


def _cgroup2() -> str:
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return ""
    return "the host's cgroups are not v2"


def _filesystem(name: str) -> str:
    return (
        ""
        if f"\t{name}\n" in Path("/proc/filesystems").read_text()
        else f"the kernel has no {name}"
    )


def _libseccomp() -> str:
    return "" if ctypes.util.find_library("seccomp") else "libseccomp.so.2 is not installed"


def _nft() -> str:
    import socket

    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12).close()
    except OSError as error:
        return f"no nfnetlink: {error}"
    return ""


def _busybox() -> str:
    return "" if shutil.which("busybox") else "busybox is not installed"


def _cni() -> str:
    for name in ("bridge", "host-local", "portmap"):
        if not any(Path(each, name).exists() for each in ("/opt/cni/bin", "/usr/lib/cni")):
            return f"the CNI plugin {name} is not installed"
    return ""


def _docker_registry() -> str:
    return "" if shutil.which("docker-registry") else "docker-registry is not installed"


def _program(name: str) -> str:
    return "" if shutil.which(name) else f"{name} is not installed"


PROBES = {
    "needs_root": _root,
    "needs_cgroup1": _cgroup1,
    "needs_cgroup2": _cgroup2,
    "needs_nft": _nft,
    "needs_overlay": lambda: _filesystem("overlay"),
    "needs_libseccomp": _libseccomp,
    "needs_busybox": _busybox,
    "needs_docker_registry": _docker_registry,
    "needs_cni": _cni,
    "needs_runc": lambda: _program("runc"),
    "needs_crun": lambda: _program("crun"),
}
_answers: dict[str, str] = {}


def _why_not(marker: str) -> str:
    if marker not in _answers:
        _answers[marker] = PROBES[marker]()
    return _answers[marker]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        default="",
        help="comma-separated needs (root,overlay …) whose absence is a failure, not a skip",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    required = {f"needs_{name}" for name in item.config.getoption("--require").split(",") if name}
    for marker in item.iter_markers():
        if marker.name not in PROBES:
            continue
        reason = _why_not(marker.name)
        if reason and marker.name in required:
            pytest.fail(f"required on this host: {reason}", pytrace=False)
        if reason:
            pytest.skip(reason)


def pytest_report_header() -> list[str]:
    met = [name for name in PROBES if not _why_not(name)]
    unmet = [f"{name} ({_why_not(name)})" for name in PROBES if _why_not(name)]
    return [
        f"host can: {', '.join(met) or 'nothing'}",
        f"host lacks: {', '.join(unmet) or 'nothing'}",
    ]


_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 1 << 18
_GROUP = pytest.StashKey[Path]()


def _leave_host_mounts() -> str:
    """Move into an own mount namespace from which nothing propagates; return why that failed."""
    if _libc.unshare(_CLONE_NEWNS) or _libc.mount(b"", b"/", b"", _MS_REC | _MS_PRIVATE, b""):
        return os.strerror(ctypes.get_errno())
    return ""


def _own_group() -> Path | None:
    """Move into a new cgroup of the cgroup2 hierarchy; None where that cannot be."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    unified = next((line[4] for line in mounts if "cgroup2" in line[line.index("-") :]), None)
    own = next(
        (line[3:] for line in Path("/proc/self/cgroup").read_text().split() if line[:2] == "0:"), ""
    )
    if unified is None or not own:
        return None
    group = Path(unified) / own.strip("/") / f"polypod-pytest-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text("0")
    except OSError:
        return None
    return group


_BASE = pytest.StashKey[Path]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    _use_own_directory(config)
    if _why_not("needs_root"):
        return
    failed = _leave_host_mounts()
    if failed:
        raise pytest.UsageError(f"cannot make a mount namespace for this run: {failed}")
    group = _own_group()
    if group is not None:
        config.stash[_GROUP] = group


def _use_own_directory(config: pytest.Config) -> None:
    """Keep what tests write in a directory of this run.

    pytest's own is shared by all runs of a user, and it clears away what older ones left by a
    recursion that gives up on trees as deep as hostile layers make them; that ends the run with an error.
    """
    if config.option.basetemp is None:
        config.stash[_BASE] = Path(tempfile.mkdtemp(prefix="polypod-tests-"))
        config.option.basetemp = str(config.stash[_BASE])


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remove the run's directory; one with failures stays, to be looked at."""
    base = session.config.stash.get(_BASE, None)
    if base is not None and exitstatus == 0:
        # Not by Python's recursion: see `_use_own_directory`.
        subprocess.run(["rm", "-rf", "--one-file-system", str(base)], check=False)


def pytest_unconfigure(config: pytest.Config) -> None:
    group = config.stash.get(_GROUP, None)
    if group is None:
        return
    (group.parent / "cgroup.procs").write_text("0")
    if (group / "cgroup.procs").read_text():
        # Reported by `nothing_outlives`; whoever is in there was started by us.
        (group / "cgroup.kill").write_text("1")
    for _ in range(100):
        try:
            group.rmdir()
        except OSError:
            time.sleep(0.02)
        else:
            return


def _processes(group: Path | None) -> set[str]:
    """Return "pid start-time" of every process of this run but ourselves; a name changes at execve."""
    found: set[str] = set()
    for pid in (group / "cgroup.procs").read_text().split() if group is not None else ():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(pid) != os.getpid():
            found.add(f"{pid} {fields[19]}")
    return found


def _with_name(process: str) -> str:
    """Return "pid name" for people."""
    pid = process.split(maxsplit=1)[0]
    try:
        return f"{pid} {Path(f'/proc/{pid}/comm').read_text().strip()}"
    except OSError:
        return f"{pid} (gone now)"


def _descriptors() -> set[str]:
    """Return "number target" of what we have open and somebody should have closed."""
    found: set[str] = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        found.add(f"{number} {target}")
    return found


def _residue(group: Path | None) -> dict[str, set[str]]:
    """What a test could leave: mounts, links, named namespaces, cgroups, processes, descriptors."""
    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    links = set(os.listdir("/sys/class/net"))
    netns = set(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else set()
    cgroups = set()
    for name in ("pids", "memory", ""):
        base = Path("/sys/fs/cgroup") / name
        if base.is_dir():
            cgroups |= {str(item) for item in base.glob("polypod*")}
    return {
        "mounts": mounts,
        "links": links,
        "network namespaces": netns,
        "cgroups": cgroups,
        "processes": _processes(group),
        "descriptors": _descriptors(),
    }


_SHARED = ("links", "network namespaces", "cgroups")


def _others_at_work(group: Path | None) -> bool:
    """Tell whether another server or another run of tests is alive on this host."""
    ours = {each.split()[0] for each in _processes(group)}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            continue
        if name.startswith("polypod-") and pid not in ours:
            return True
    return False


def _what_stays(before: dict[str, set[str]], group: Path | None) -> dict[str, set[str]]:
    """Return what is there now and was not before; what is only slow to go gets some seconds."""
    left: dict[str, set[str]] = {}
    for attempt in range(100):
        after = _residue(group)
        left = {kind: after[kind] - had for kind, had in before.items() if after[kind] - had}
        if not left:
            return {}
        if attempt == 0:
            gc.collect()
        elif attempt == 10 and _others_at_work(group):
            # Names do not tell whose they are; alone on a host, every one of them is ours.
            before = {kind: had for kind, had in before.items() if kind not in _SHARED}
        # Interfaces of a dead namespace go some milliseconds behind it.
        time.sleep(0.05)
    return {
        kind: set(map(_with_name, items)) if kind == "processes" else items
        for kind, items in left.items()
    }


@pytest.fixture(scope="session", autouse=True)
def nothing_outlives(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compare the host before and after the run: what fixtures of a module share is gone, too."""
    if _why_not("needs_root"):
        yield
        return
    group = request.config.stash.get(_GROUP, None)
    before = _residue(group)
    del before["descriptors"]  # libraries keep some for the whole run
    yield
    left = _what_stays(before, group)
    if left:
        pytest.fail(f"left behind by this run: {left}")


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compare the host before and after each test that needs root."""
    if request.node.get_closest_marker("needs_root") is None:
        yield
        return
    group = request.config.stash.get(_GROUP, None)
    before = _residue(group)
    yield
    left = _what_stays(before, group)
    if left:
        pytest.fail(f"left behind: {left}")
