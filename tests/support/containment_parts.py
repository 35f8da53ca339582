"""What tests of confinement ask for and look at: requests of a kubelet, results, a decoy on the host."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polypod.plugin.requests import (
    ContainerSecurity,
    Mount,
    NamespaceMode,
    NamespaceOptions,
    ProfileType,
    SecurityProfile,
)

# What a kubelet asks for a container that is not privileged (kubernetes, pkg/securitycontext).
MASKED = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
OWN_PIDS = NamespaceOptions(pid=NamespaceMode.CONTAINER)
RUNTIME_DEFAULT = SecurityProfile(ProfileType.RUNTIME_DEFAULT)
PYTHON = os.path.realpath(sys.executable)


def security(**fields: Any) -> ContainerSecurity:
    """Return what a kubelet sends, with changes."""
    base = ContainerSecurity(
        namespaces=OWN_PIDS,
        masked_paths=MASKED,
        readonly_paths=READ_ONLY,
        seccomp=RUNTIME_DEFAULT,
    )
    return replace(base, **fields)


def python_mounts() -> tuple[Mount, ...]:
    """Return volumes that bring this interpreter and its libraries into a container, read-only."""
    places = [path for path in ("/usr", "/lib", "/lib64") if Path(path).is_dir()]
    if not sys.base_prefix.startswith("/usr/"):
        places.append(sys.base_prefix)
    return tuple(Mount(path, path, readonly=True) for path in places)


def python(code: str) -> tuple[str, ...]:
    """Return the arguments that run Python code; the container needs `python_mounts`."""
    return (PYTHON, "-I", "-S", "-c", code)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a process. ``error`` is what a user reads where it could not be started."""

    code: int | None = None
    out: str = ""
    err: str = ""
    error: str = ""
    kind: str = ""
    """The class of the error."""
    oom: bool = False

    @property
    def lines(self) -> list[str]:
        """The lines of stdout."""
        return self.out.splitlines()


class Decoy:
    """A tree of the host that no container may reach; `unchanged` proves it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "dir/inner").mkdir(parents=True)
        for name in ("file", "dir/file", "dir/inner/file", "passwd", "null", "hosts"):
            (path / name).write_text(f"decoy {name}\n")
        (path / "dir").chmod(0o710)
        (path / "file").chmod(0o640)
        self._seen = self._digest()

    def unchanged(self) -> bool:
        """Tell whether names, types, modes, owners, contents, and times of change are as before."""
        return self._digest() == self._seen

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for place, directories, files in os.walk(self.path):
            directories.sort()
            for name in [".", *sorted(directories), *sorted(files)]:
                path = Path(place, name)
                facts = path.lstat()
                known = (
                    facts.st_mode,
                    facts.st_uid,
                    facts.st_gid,
                    facts.st_rdev,
                    facts.st_mtime_ns,
                )
                digest.update(f"{path} {known} {facts.st_nlink}\n".encode())
                if path.is_file() and not path.is_symlink():
                    digest.update(path.read_bytes())
        return digest.hexdigest()
