"""What of this host shapes a container: read once at boot, or at each request where it may change.

Spec:
    man proc(5), cgroups(7), capabilities(7).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from polypod.plugin.errors import InvalidArgument
from polypod.spec.capabilities import ALL_CAPABILITIES
from polypod.spec.devices import HostDevice
from polypod.spec.resources import CgroupFacts

_CAP_SYS_RESOURCE: Final = 24
_MAX_TEXT: Final = 1 << 20
_NOT_OURS: Final = frozenset(["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/hugepages"])  # noqa: S108
_PAGE_FILE: Final = re.compile(r"hugetlb\.([0-9]+[KMG]B)\.(?:limit_in_bytes|max)")
_TYPES: Final = {stat.S_IFCHR: "c", stat.S_IFBLK: "b", stat.S_IFIFO: "p"}


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Facts that do not change while the server runs; the texts are read anew by its methods."""

    grantable: frozenset[str] = frozenset(ALL_CAPABILITIES)
    cgroups: CgroupFacts = field(default_factory=CgroupFacts)
    apparmor: bool = False
    etc: Path = Path("/etc")
    dev: Path = Path("/dev")

    @classmethod
    def probe(cls) -> HostFacts:
        """Look at this host."""
        bounding = _status_mask("CapBnd")
        grantable = frozenset(
            name for number, name in enumerate(ALL_CAPABILITIES) if bounding >> number & 1
        )
        return cls(grantable, _cgroup_facts(bounding), _apparmor_enabled())

    @staticmethod
    def hostname() -> str:
        """Return the node's name."""
        return os.uname().nodename

    def text(self, name: str) -> str:
        """Return a file of the node's ``/etc``; empty where it is missing or absurdly large."""
        try:
            with (self.etc / name).open("rb") as file:
                data = file.read(_MAX_TEXT + 1)
        except OSError:
            return ""
        return "" if len(data) > _MAX_TEXT else data.decode(errors="replace")

    def all_devices(self) -> list[HostDevice]:
        """Return every device node of the host, for privileged containers."""
        found = []
        for path, facts in _nodes(self.dev):
            if path.name != "console":
                found.append(_device(str(path), facts, "rwm"))
        return found

    @staticmethod
    def devices_at(host_path: str, container_path: str, access: str) -> list[HostDevice]:
        """Return the node at a path, or every node below a directory; links are resolved.

        Raises:
            InvalidArgument: there is none.
        """
        real = Path(os.path.realpath(host_path))
        try:
            facts = real.stat()
        except OSError as error:
            raise InvalidArgument(f"device {host_path}: {error.strerror}") from error
        if stat.S_ISDIR(facts.st_mode):
            base = container_path.rstrip("/")
            return [
                _device(f"{base}/{path.relative_to(real)}", each, access)
                for path, each in _nodes(real)
            ]
        if stat.S_IFMT(facts.st_mode) not in _TYPES:
            raise InvalidArgument(f"device {host_path}: neither a device nor a directory")
        return [_device(container_path, facts, access)]


def _device(path: str, facts: os.stat_result, access: str) -> HostDevice:
    return HostDevice(
        path,
        _TYPES[stat.S_IFMT(facts.st_mode)],
        os.major(facts.st_rdev),
        os.minor(facts.st_rdev),
        stat.S_IMODE(facts.st_mode),
        facts.st_uid,
        facts.st_gid,
        access,
    )


def _nodes(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield device nodes below a directory; file systems of their own (pts, shm …) are left out."""
    if str(directory) in _NOT_OURS:
        return
    for entry in sorted(os.scandir(directory), key=lambda item: item.name):
        facts = entry.stat(follow_symlinks=False)
        if entry.is_dir(follow_symlinks=False):
            yield from _nodes(Path(entry.path))
        elif stat.S_IFMT(facts.st_mode) in (stat.S_IFCHR, stat.S_IFBLK):
            yield Path(entry.path), facts


def _status_mask(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1], 16)
    return 0


def _cgroup_facts(bounding: int) -> CgroupFacts:
    v1, unified = _cgroup_mounts(Path("/proc/self/mountinfo").read_text())
    lowest = -1000
    if not bounding >> _CAP_SYS_RESOURCE & 1:
        lowest = int(Path("/proc/self/oom_score_adj").read_text())
    if v1:
        memory = v1.get("memory")
        swap = memory is not None and (memory / "memory.memsw.limit_in_bytes").exists()
        return CgroupFacts(1, _page_sizes(v1.get("hugetlb")), swap, lowest)
    # v2 has no files of its root; any child shows what the controllers offer.
    child = next((item for item in unified.iterdir() if item.is_dir()), None) if unified else None
    swap = child is not None and (child / "memory.swap.max").exists()
    return CgroupFacts(2, _page_sizes(child), swap, lowest)


def _cgroup_mounts(mountinfo: str) -> tuple[dict[str, Path], Path | None]:
    v1: dict[str, Path] = {}
    unified: Path | None = None
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        mount, kind = Path(left.split()[4]), right.split()
        if kind[0] == "cgroup2":
            unified = unified or mount
        elif kind[0] == "cgroup":
            for name in kind[2].split(","):
                v1.setdefault(name, mount)
    return v1, unified


def _page_sizes(directory: Path | None) -> frozenset[str]:
    if directory is None:
        return frozenset()
    matches = (_PAGE_FILE.fullmatch(item.name) for item in directory.iterdir())
    return frozenset(match[1] for match in matches if match)


def _apparmor_enabled() -> bool:
    try:
        return Path("/sys/module/apparmor/parameters/enabled").read_text().startswith("Y")
    except OSError:
        return False
