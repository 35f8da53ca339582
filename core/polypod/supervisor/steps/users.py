"""Entering the user namespace of a pod: from here on we are root of that, and nobody on the host."""

from __future__ import annotations

import os
import socket

from polypod.plan import operations
from polypod.supervisor.kernel import credentials, mounts, namespace, process
from polypod.supervisor.kernel.birth import PID
from polypod.supervisor.steps.context import Context


def enter_user_namespace(op: operations.EnterUserNamespace, context: Context) -> None:
    """Enter, and be in new namespaces that it owns when this returns."""
    _show_sysfs()
    namespace.setns(context.source(op.source), process.CLONE_NEWUSER)
    credentials.become_root()
    flags = 0
    for kind in op.kinds:
        flags |= namespace.FLAGS[kind]
    if "pid" in op.kinds:
        _go_on_as_child(flags, context)
    else:
        namespace.unshare(flags)
    # The one that we have lies on a mount of the namespace that we have left, where we may nothing.
    os.close(context.null)
    context.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)


def _show_sysfs() -> None:
    """Mount a whole sysfs in a mount namespace that is still ours alone.

    In a user namespace one can be mounted only by who sees a whole one already; for proc, which the
    launcher has, it is the same (mount_namespaces(7)).
    """
    made = mounts.new_mount("sysfs", [])
    try:
        target = os.open("/sys", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            mounts.move_mount(made, target)
        finally:
            os.close(target)
    finally:
        os.close(made)


def _go_on_as_child(flags: int, context: Context) -> None:
    """Clone a process into new namespaces, tell the supervisor of it, and end; it returns instead.

    A pid namespace belongs to the user namespace of who makes it, and nobody moves into one: so the
    supervisor cannot make it, nor can we be in it.
    """
    pid, pidfd = process.clone3(flags | process.CLONE_PARENT)
    with socket.socket(fileno=context.birth) as birth:
        context.birth = -1
        if pid:
            socket.send_fds(birth, [PID.pack(pid)], [pidfd])
            os._exit(0)
