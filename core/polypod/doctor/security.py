"""Seccomp, and the security modules that a pod may ask for."""

from __future__ import annotations

from pathlib import Path

from polypod.doctor.row import Row, State

ACTIONS = Path("/proc/sys/kernel/seccomp/actions_avail")
LSM = Path("/sys/kernel/security/lsm")


def seccomp(actions: Path = ACTIONS) -> Row:
    """Filters of system calls: RuntimeDefault and localhost profiles."""
    try:
        known = actions.read_text().split()
    except FileNotFoundError:
        return Row("seccomp", State.MISSING, "the kernel has no filters (CONFIG_SECCOMP_FILTER)")
    lacking = {"errno", "allow", "kill_process"} - set(known)
    if lacking:
        return Row("seccomp", State.LIMITED, f"without the actions {', '.join(sorted(lacking))}")
    return Row("seccomp", State.OK, f"actions {', '.join(known)}")


def modules(lsm: Path = LSM) -> Row:
    """AppArmor and SELinux: a pod that asks for one that is not there is refused."""
    try:
        names = lsm.read_text().strip().split(",")
    except OSError:
        names = []
    found = [name for name in ("apparmor", "selinux") if name in names]
    if found:
        return Row("security modules", State.OK, ", ".join(found))
    return Row(
        "security modules",
        State.ABSENT,
        "neither AppArmor nor SELinux is enabled: pods that ask for a profile are refused",
    )
