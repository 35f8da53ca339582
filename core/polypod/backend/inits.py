"""The init of a pod's shared processes: watched by its pidfd, because nobody launched it by a plan."""

from __future__ import annotations

import asyncio
import os

from polypod.plugin.services import SandboxNamespaces


def open_init(made: SandboxNamespaces) -> int:
    """Return a pidfd of the init of a pinned pid namespace; -1 if it is gone.

    A pid alone could be somebody else's by now: it counts if its pid namespace is the pinned one.
    """
    if not made.init_pid:
        return -1
    try:
        pidfd = os.pidfd_open(made.init_pid)
    except OSError:
        return -1
    try:
        theirs = os.stat(f"/proc/{made.init_pid}/ns/pid")
        if os.path.samestat(theirs, os.fstat(made.fds["pid"])):
            return pidfd
    except OSError:
        # It went while we looked.
        pass
    os.close(pidfd)
    return -1


async def ended(pidfd: int) -> None:
    """Return when a process is gone, and close its pidfd; at once for -1."""
    if pidfd < 0:
        return
    loop = asyncio.get_running_loop()
    gone = loop.create_future()
    loop.add_reader(pidfd, _note, gone)
    try:
        await gone
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def _note(gone: asyncio.Future[None]) -> None:
    if not gone.done():
        gone.set_result(None)


def release(made: SandboxNamespaces) -> None:
    """Close the descriptors that came with an answer."""
    for fd in (*made.fds.values(), made.netlink):
        if fd is not None:
            os.close(fd)
