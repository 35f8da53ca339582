"""User, groups, capabilities, no_new_privs.

The order matters: see `polypod.spec.compile`. CAP_SYS_ADMIN stays effective until execve so that
seccomp can be loaded last of all; execve itself takes it away, because it is not in the bounding set. Where
others could see the process before that, `polypod.supervisor.steps.birth` does.
"""

from __future__ import annotations

import os

from polypod.plan import operations
from polypod.supervisor.kernel import credentials
from polypod.supervisor.steps.context import Context

_LAST_CAPABILITY = 63


def set_user(op: operations.SetUser, _context: Context) -> None:
    """Change user and groups; supplementary groups are exactly those asked for (E16)."""
    os.umask(op.umask)
    os.setgroups(op.groups)
    if op.uid == 0 and op.gid == 0:
        return
    credentials.prctl(credentials.PR_SET_KEEPCAPS, 1)
    os.setresgid(op.gid, op.gid, op.gid)
    os.setresuid(op.uid, op.uid, op.uid)
    credentials.prctl(credentials.PR_SET_KEEPCAPS, 0)
    # Leaving uid 0 cleared the effective set; what is permitted may be used again.
    _effective, permitted, inheritable = credentials.capget()
    credentials.capset(permitted, permitted, inheritable)


def set_capabilities(op: operations.SetCapabilities, context: Context) -> None:
    """Shrink to what was granted; what we ourselves lack cannot be granted."""
    _effective, held, _inheritable = credentials.capget()
    for number in range(_LAST_CAPABILITY + 1):
        if not op.bounding >> number & 1 and not _drop_from_bounding(number):
            break
    keep = 1 << credentials.CAP_SYS_ADMIN & held
    permitted = op.permitted & held
    inheritable = op.inheritable & held
    credentials.prctl(credentials.PR_CAP_AMBIENT, credentials.PR_CAP_AMBIENT_CLEAR_ALL)
    context.granted = (op.effective & permitted, permitted, inheritable)
    credentials.capset((op.effective & permitted) | keep, permitted | keep, inheritable)
    for number in range(_LAST_CAPABILITY + 1):
        if op.ambient & permitted & inheritable & 1 << number:
            credentials.prctl(credentials.PR_CAP_AMBIENT, credentials.PR_CAP_AMBIENT_RAISE, number)


def _drop_from_bounding(number: int) -> bool:
    """Drop one; False past the last capability that the kernel knows."""
    try:
        if credentials.prctl(credentials.PR_CAPBSET_READ, number):
            credentials.prctl(credentials.PR_CAPBSET_DROP, number)
    except OSError:
        return False
    return True


def set_no_new_privileges(_op: operations.SetNoNewPrivileges, _context: Context) -> None:
    """One way only."""
    credentials.prctl(credentials.PR_SET_NO_NEW_PRIVS, 1)
