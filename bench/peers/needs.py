"""What this host lacks for the comparison, and which Debian packages bring it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from bench.peers.containerd_side import PATH, PLUGINS, PROGRAMS
from bench.processes import base_of_cgroups
from demo.host import what_is_missing
from polypod.testing.registry import PROGRAM as REGISTRY

NETWORK = ("bridge", "host-local", "portmap", "loopback")
PACKAGE_OF_PLUGINS = "containernetworking-plugins"


def missing(*, pull: bool) -> list[str]:
    """Return reasons, one sentence each; an empty list means that it can begin.

    Args:
        pull: whether a registry is needed.
    """
    programs = {**PROGRAMS, "unshare": "util-linux", "mount": "mount"}
    if pull:
        programs[REGISTRY] = "docker-registry"
    packages = packages_of(programs, PLUGINS)
    reasons = what_is_missing()
    if packages:
        reasons.append(f"the peer is not installed: apt-get install {' '.join(packages)}")
    busybox = shutil.which("busybox")
    if busybox is not None and b"/ld-linux" in Path(busybox).read_bytes():
        reasons.append(f"{busybox} is not static: apt-get install busybox-static")
    if base_of_cgroups() is None:
        reasons.append("processor time is counted by cgroups, and none can be made")
    return reasons


def packages_of(programs: Mapping[str, str], plugins: Path) -> list[str]:
    """Return the Debian packages of those programs and CNI plugins that are not there."""
    path = f"{os.environ.get('PATH', '')}:{PATH}"
    found = {package for name, package in programs.items() if not shutil.which(name, path=path)}
    if not all((plugins / name).exists() for name in NETWORK):
        found.add(PACKAGE_OF_PLUGINS)
    return sorted(found)
