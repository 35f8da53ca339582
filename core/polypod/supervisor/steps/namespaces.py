"""Joining and making namespaces, and what belongs to one: host name, sysctls."""

from __future__ import annotations

import errno
import os

from polypod.plan import operations
from polypod.supervisor.kernel import credentials, files, namespace
from polypod.supervisor.steps.context import Context

_SYSCTL_TRANSLATION = str.maketrans("./", "/.")


def join_namespaces(op: operations.JoinNamespaces, context: Context) -> None:
    """Join by nsfs descriptors, or those of a process by its pidfd."""
    for kind, source in op.items:
        namespace.setns(context.source(source), namespace.FLAGS[kind])
    if not op.pidfd:
        return
    flags = 0
    for kind in op.kinds:
        flags |= namespace.FLAGS[kind]
    namespace.setns(context.source(op.pidfd), flags)
    if "user" in op.kinds:
        credentials.become_root()
    if "mount" in op.kinds:
        # Joining a mount namespace puts us at its root.
        context.root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def unshare(op: operations.Unshare, _context: Context) -> None:
    """Make namespaces now."""
    flags = 0
    for kind in op.kinds:
        flags |= namespace.FLAGS[kind]
    namespace.unshare(flags)


def set_hostname(op: operations.SetHostname, _context: Context) -> None:
    """Name the uts namespace."""
    if op.hostname:
        namespace.sethostname(op.hostname)
    if op.domainname:
        namespace.setdomainname(op.domainname)


def set_sysctls(op: operations.SetSysctls, context: Context) -> None:
    """Write through a procfs of our own: what the container mounted on /proc does not matter (E3)."""
    for name, value in op.values.items():
        try:
            write_beneath(context.proc, f"sys/{sysctl_path(name)}", value)
        except OSError as error:
            raise OSError(error.errno, f"sysctl {name}={value}: {error.strerror}") from error


def sysctl_path(name: str) -> str:
    """Return a sysctl's path below /proc/sys.

    ``net.ipv4.conf.eth0/7.forwarding`` and ``net/ipv4/conf/eth0.7/forwarding`` are the same: the
    separator that comes first is the one between directories (sysctl(8)).
    """
    dot, slash = name.find("."), name.find("/")
    if slash < 0 or 0 <= dot < slash:
        return name.translate(_SYSCTL_TRANSLATION)
    return name


def write_beneath(directory: int, path: str, text: str) -> None:
    """Write a kernel file, crossing no mount, following no link, never going up."""
    if ".." in path.split("/"):
        raise OSError(errno.EXDEV, f"{path}: must not go up")
    resolve = files.RESOLVE_BENEATH | files.RESOLVE_NO_XDEV | files.RESOLVE_NO_SYMLINKS
    fd = files.openat2(directory, path, os.O_WRONLY, 0, resolve)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
