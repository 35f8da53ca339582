"""Joining and making namespaces and cgroups."""

from __future__ import annotations

import os

from polypod.plan import operations
from polypod.supervisor.kernel import mounts, namespace
from polypod.supervisor.steps.context import Context


def join_namespaces(op: operations.JoinNamespaces, context: Context) -> None:
    """Join by nsfs descriptors, or those of a process by its pidfd."""
    for kind, source in op.items:
        namespace.setns(context.source(source), namespace.FLAGS[kind])
    if op.pidfd:
        flags = 0
        for kind in op.kinds:
            flags |= namespace.FLAGS[kind]
        namespace.setns(context.source(op.pidfd), flags)
        if "mount" in op.kinds:
            # Joining a mount namespace puts us at its root.
            context.root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def join_cgroups(op: operations.JoinCgroups, context: Context) -> None:
    """Write ourselves into each hierarchy; "0" is the writer."""
    for source in op.sources:
        os.write(context.source(source), b"0")


def unshare(op: operations.Unshare, _context: Context) -> None:
    """Make namespaces now."""
    flags = 0
    for kind in op.kinds:
        flags |= namespace.FLAGS[kind]
    namespace.unshare(flags)


def set_hostname(op: operations.SetHostname, _context: Context) -> None:
    """Name the uts namespace."""
    namespace.sethostname(op.hostname)


def set_sysctls(op: operations.SetSysctls, context: Context) -> None:
    """Write through a procfs of our own: what the container mounted on /proc does not matter (E3)."""
    for name, value in op.values.items():
        write_beneath(context.proc, f"sys/{name.replace('.', '/')}", value)


def set_oom_score(op: operations.SetOomScore, context: Context) -> None:
    """Write oom_score_adj of ourselves."""
    try:
        write_beneath(context.proc, f"{own_pid(context)}/oom_score_adj", str(op.value))
    except PermissionError:
        if not op.best_effort:
            raise


def own_pid(context: Context) -> str:
    """Our pid as the launcher's procfs counts it."""
    return os.readlink("self", dir_fd=context.proc)


def write_beneath(directory: int, path: str, text: str) -> None:
    """Write a kernel file, crossing no mount and following no link."""
    resolve = mounts.RESOLVE_BENEATH | mounts.RESOLVE_NO_XDEV | mounts.RESOLVE_NO_SYMLINKS
    fd = mounts.openat2(directory, path, os.O_WRONLY, 0, resolve)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
