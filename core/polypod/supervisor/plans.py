"""Launch plans as they arrive: in a memfd that nobody can change any more."""

from __future__ import annotations

import fcntl
import json
import os

from polypod.plan.operations import Plan
from polypod.supervisor.server import Refusal

PLAN_MAX = 8 * 1024 * 1024
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def read_plan(fd: int) -> Plan:
    """Read a plan and close its descriptor.

    Raises:
        Refusal: it is no plan, too large, or could still be changed.
    """
    try:
        _check_seals(fd)
        size = os.fstat(fd).st_size
        if size > PLAN_MAX:
            raise Refusal("InvalidArgument", f"launch plan of {size} bytes: at most {PLAN_MAX}")
        return Plan.from_wire(json.loads(os.pread(fd, size, 0)))
    except (ValueError, RecursionError) as error:
        raise Refusal("InvalidArgument", f"launch plan: {error}") from error
    finally:
        os.close(fd)


def _check_seals(fd: int) -> None:
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0
    if seals & _SEALS != _SEALS:
        raise Refusal("InvalidArgument", "launch plan: must come in a sealed memfd")
