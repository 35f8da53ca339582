"""The seccomp filter: the last thing before execve (E24)."""

from __future__ import annotations

import base64

from polypod.plan import operations
from polypod.supervisor.kernel import seccomp
from polypod.supervisor.steps.context import Context


def load_seccomp(op: operations.LoadSeccomp, _context: Context) -> None:
    """Nothing but execve follows."""
    seccomp.load_filter(base64.b64decode(op.program), op.flags)
