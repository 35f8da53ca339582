"""The seccomp filter: the last thing before execve (E24)."""

from __future__ import annotations

import base64

from polypod.plan import operations
from polypod.supervisor.kernel import seccomp
from polypod.supervisor.steps.context import Context


def load_seccomp(op: operations.LoadSeccomp, context: Context) -> None:
    """Nothing but execve follows. Who was born last has it already, see `birth`."""
    if context.is_born_last:
        return
    seccomp.load_filter(base64.b64decode(op.program), op.flags)
