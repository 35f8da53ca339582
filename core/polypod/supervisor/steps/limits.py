"""Resource limits of the process itself: rlimits, the preference of the OOM killer."""

from __future__ import annotations

import os
import resource

from polypod.plan import operations
from polypod.supervisor.steps.context import Context
from polypod.supervisor.steps.namespaces import write_beneath


def set_limits(op: operations.SetLimits, _context: Context) -> None:
    """Set rlimits; -1 is infinity for Python as for the kernel."""
    for number, soft, hard in op.limits:
        try:
            resource.setrlimit(number, (soft, hard))
        except (ValueError, OSError) as error:
            if not op.best_effort:
                text = f"rlimit {number} to {soft}:{hard}: {error}"
                raise OSError(getattr(error, "errno", None) or 0, text) from error
            _set_as_far_as_allowed(number, soft, hard)


def _set_as_far_as_allowed(number: int, soft: int, hard: int) -> None:
    """Raising a hard limit takes CAP_SYS_RESOURCE, which a host may lack."""
    _soft, allowed = resource.getrlimit(number)
    hard = _smaller(hard, allowed)
    resource.setrlimit(number, (_smaller(soft, hard), hard))


def _smaller(first: int, second: int) -> int:
    if resource.RLIM_INFINITY in (first, second):
        return second if first == resource.RLIM_INFINITY else first
    return min(first, second)


def set_oom_score(op: operations.SetOomScore, context: Context) -> None:
    """Write oom_score_adj of ourselves."""
    # Our pid as the launcher's procfs counts it; in our own namespace we may be 1.
    own = os.readlink("self", dir_fd=context.proc)
    try:
        write_beneath(context.proc, f"{own}/oom_score_adj", str(op.value))
    except PermissionError:
        if not op.best_effort:
            raise
