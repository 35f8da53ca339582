"""What the kernel is, and which system calls and file systems it really has."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
from pathlib import Path

from polypod.doctor.child import outcome
from polypod.doctor.row import Row, State

OLDEST = (5, 12)
"""The first with mount_setattr, the youngest call that we cannot do without."""
EXIT_INFO = (6, 15)
"""The first that tells an exit code through a pidfd."""
MOUNT_CALLS = {"open_tree": 428, "move_mount": 429, "fsopen": 430, "mount_setattr": 442}
PROCESS_CALLS = {"pidfd_open": 434, "clone3": 435, "openat2": 437, "pidfd_getfd": 438}
"""Numbers that are the same on all architectures (asm-generic/unistd.h)."""


def release() -> tuple[int, int]:
    """Return the kernel's major and minor number."""
    found = re.match(r"(\d+)\.(\d+)", platform.release())
    return (int(found[1]), int(found[2])) if found else (0, 0)


def kernel() -> Row:
    """Old kernels lack calls that cannot be replaced."""
    version, name = release(), platform.release()
    if version < OLDEST:
        return Row("kernel", State.MISSING, f"{name}: at least {OLDEST[0]}.{OLDEST[1]} is needed")
    if version < EXIT_INFO:
        return Row(
            "kernel",
            State.LIMITED,
            f"{name}: if our keeper is killed, exit codes from then on are unknown "
            f"({EXIT_INFO[0]}.{EXIT_INFO[1]} tells them through pidfds)",
        )
    return Row("kernel", State.OK, name)


def has_call(number: int) -> bool:
    """Tell whether the kernel knows a system call: nonsense arguments, and anything but ENOSYS."""
    libc = ctypes.CDLL(None, use_errno=True)
    answer = libc.syscall(ctypes.c_long(number), -1, 0, -1, 0, 0)
    return not (answer == -1 and ctypes.get_errno() == errno.ENOSYS)


def _calls(what: str, numbers: dict[str, int]) -> Row:
    lacking = [name for name, number in numbers.items() if not has_call(number)]
    if lacking:
        remedy = (
            f"{', '.join(lacking)}: a newer kernel, or a seccomp filter around us that lets them"
        )
        return Row(what, State.MISSING, remedy)
    return Row(what, State.OK, ", ".join(numbers))


def mount_api() -> Row:
    """Roots and volumes are detached mounts."""
    return _calls("mount API", MOUNT_CALLS)


def process_calls() -> Row:
    """Containers are cloned, watched and resolved with these."""
    return _calls("process calls", PROCESS_CALLS)


def overlay(filesystems: Path = Path("/proc/filesystems")) -> Row:
    """Root file systems of images are overlays."""
    names = {line.split("\t")[1] for line in filesystems.read_text().splitlines()}
    if "overlay" in names:
        return Row("overlayfs", State.OK, "in the kernel")
    return Row("overlayfs", State.MISSING, "modprobe overlay")


def user_namespaces(limit: Path = Path("/proc/sys/user/max_user_namespaces")) -> Row:
    """Pods with hostUsers: false have one each."""
    if not Path("/proc/self/ns/user").exists():
        return Row(
            "user namespaces", State.LIMITED, "the kernel has none: pods cannot ask for them"
        )
    try:
        allowed = int(limit.read_text())
    except OSError as error:
        return Row("user namespaces", State.LIMITED, f"{limit}: {error.strerror}")
    if allowed == 0:
        remedy = "sysctl -w user.max_user_namespaces=65536"
        return Row("user namespaces", State.LIMITED, f"none may be made: {remedy}")
    return Row("user namespaces", State.OK, f"up to {allowed}")


def idmapped_mounts() -> Row:
    """Volumes of pods with a user namespace; tried on a tmpfs of our own."""
    if os.geteuid() != 0:
        return Row("idmapped mounts", State.LIMITED, "not tried: that takes root")
    problem = outcome("idmap")
    if problem:
        return Row("idmapped mounts", State.LIMITED, f"volumes of such pods fail: {problem}")
    return Row("idmapped mounts", State.OK, "a tmpfs could be mapped")
