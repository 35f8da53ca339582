"""What this host can do, as markers; and proof that a test leaves nothing behind."""

from __future__ import annotations

import ctypes.util
import os
import shutil
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


PROBES = {
    "needs_root": _root,
    "needs_cgroup1": _cgroup1,
    "needs_cgroup2": _cgroup2,
    "needs_nft": _nft,
    "needs_overlay": lambda: _filesystem("overlay"),
    "needs_libseccomp": _libseccomp,
    "needs_busybox": _busybox,
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


def _residue() -> dict[str, set[str]]:
    """What a test could leave on the host: mounts, links, named namespaces, cgroups of ours."""
    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    links = set(os.listdir("/sys/class/net"))
    netns = set(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else set()
    cgroups = set()
    for name in ("pids", "memory", ""):
        base = Path("/sys/fs/cgroup") / name
        if base.is_dir():
            cgroups |= {str(item) for item in base.glob("polypod*")}
    return {"mounts": mounts, "links": links, "network namespaces": netns, "cgroups": cgroups}


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest):
    """Compare the host before and after each test that needs root."""
    if request.node.get_closest_marker("needs_root") is None:
        yield
        return
    before = _residue()
    yield
    import time

    left: dict[str, set[str]] = {}
    for _ in range(100):
        after = _residue()
        left = {kind: after[kind] - before[kind] for kind in after if after[kind] - before[kind]}
        if not left:
            return
        # Interfaces of a dead namespace go some milliseconds behind it.
        time.sleep(0.05)
    pytest.fail(f"left behind: {left}")
