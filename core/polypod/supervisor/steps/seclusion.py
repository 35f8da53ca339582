"""What the init of a shared pid namespace gives up before any container can see it.

A container that may look at other processes (CAP_SYS_PTRACE) can open its root, and can even make it run
code. So it has neither a root nor a right of its own: whoever takes it over has less than before (E1).
"""

from __future__ import annotations

import os

from polypod.supervisor.kernel import credentials, mounts

_LAST_CAPABILITY = 63
_EMPTY = mounts.MOUNT_ATTR_RDONLY | mounts.MOUNT_ATTR_NOSUID | mounts.MOUNT_ATTR_NODEV


def empty_root() -> None:
    """Exchange the root for an empty, read-only one; takes a mount namespace of our own."""
    root = mounts.new_mount("tmpfs", [("ro", None), ("nr_inodes", "1")], _EMPTY)
    here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    mounts.move_mount(root, here)
    os.fchdir(root)
    mounts.pivot_root(".", ".")
    mounts.umount2(".", mounts.MNT_DETACH)
    os.chdir("/")
    os.close(here)
    os.close(root)


def drop_all_rights() -> None:
    """Give up every capability, for ever."""
    for number in range(_LAST_CAPABILITY + 1):
        try:
            credentials.prctl(credentials.PR_CAPBSET_DROP, number)
        except OSError:
            # Past the last one that this kernel knows.
            break
    credentials.prctl(credentials.PR_CAP_AMBIENT, credentials.PR_CAP_AMBIENT_CLEAR_ALL)
    credentials.capset(0, 0, 0)
    credentials.prctl(credentials.PR_SET_NO_NEW_PRIVS, 1)
