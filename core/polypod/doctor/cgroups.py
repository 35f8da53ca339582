"""Which cgroups there are, and whether we may make some."""

from __future__ import annotations

import os
from pathlib import Path

from polypod.doctor.row import Row, State

NEEDED = ("memory", "pids", "cpu")
USEFUL = ("cpuset", "devices", "freezer", "blkio", "hugetlb")
MOUNTINFO = Path("/proc/self/mountinfo")


def mounted(mountinfo: Path = MOUNTINFO) -> tuple[Path | None, dict[str, Path]]:
    """Return where v2 is mounted, and each v1 controller's hierarchy."""
    unified: Path | None = None
    controllers: dict[str, Path] = {}
    for line in mountinfo.read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _source, options = after.split(" ", 2)
        place = Path(before.split()[4])
        if kind == "cgroup2":
            unified = place
        elif kind == "cgroup":
            controllers |= dict.fromkeys(options.split(","), place)
    return unified, controllers


def version(mountinfo: Path = MOUNTINFO) -> Row:
    """v1, v2, or v1 beside an empty v2."""
    unified, controllers = mounted(mountinfo)
    if "memory" in controllers:
        hybrid = ", and an empty v2 beside it (hybrid)" if unified else ""
        return Row("cgroup version", State.OK, f"v1, one hierarchy per controller{hybrid}")
    if unified is not None:
        return Row("cgroup version", State.OK, f"v2 at {unified}")
    return Row(
        "cgroup version",
        State.MISSING,
        "no hierarchy is mounted: mount -t cgroup2 none /sys/fs/cgroup",
    )


def controllers(mountinfo: Path = MOUNTINFO) -> Row:
    """Those that limits need, in hierarchies that we may write to."""
    unified, v1 = mounted(mountinfo)
    have = set(v1)
    if "memory" not in v1 and unified is not None:
        have = set((unified / "cgroup.controllers").read_text().split())
        # v2 has these without controllers of their own.
        have |= {"devices", "freezer"} | ({"blkio"} if "io" in have else set())
    lacking = [name for name in NEEDED if name not in have]
    if lacking:
        return Row("cgroup controllers", State.MISSING, f"{', '.join(lacking)} not there")
    sealed = sorted({str(v1[n]) for n in NEEDED if n in v1 and not os.access(v1[n], os.W_OK)})
    if sealed:
        remedy = f"not writable: {', '.join(sealed)}"
        return Row("cgroup controllers", State.MISSING, remedy)
    absent = [name for name in USEFUL if name not in have]
    if absent:
        return Row("cgroup controllers", State.LIMITED, f"without {', '.join(absent)}")
    return Row("cgroup controllers", State.OK, ", ".join(sorted(have & {*NEEDED, *USEFUL})))
