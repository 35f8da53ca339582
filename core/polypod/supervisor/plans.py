"""Launch plans as they arrive: in a memfd that nobody can change any more."""

from __future__ import annotations

import errno
import fcntl
import json
import os

from polypod.plan.operations import Plan
from polypod.supervisor.server import Refusal

PLAN_MAX = 8 * 1024 * 1024
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def read_plan(fd: int, length: object = None) -> Plan:
    """Read a plan.

    Args:
        fd: a sealed file that begins with it.
        length: how long it is; None: there is nothing else in the file.

    Raises:
        Refusal: it is no plan, too large, or could still be changed.
    """
    try:
        _check_seals(fd)
        size = os.fstat(fd).st_size
        if size > PLAN_MAX:
            raise Refusal("InvalidArgument", f"launch plan of {size} bytes: at most {PLAN_MAX}")
        length = size if not isinstance(length, int) else min(length, size)
        return Plan.from_wire(json.loads(os.pread(fd, length, 0)))
    except (ValueError, RecursionError) as error:
        raise Refusal("InvalidArgument", f"launch plan: {error}") from error


def read_environment(fd: int, start: int) -> list[str]:
    """Read what follows a plan, in the process that it is for.

    Raises:
        OSError: EINVAL, it is no list of texts.
    """
    try:
        found = json.loads(os.pread(fd, os.fstat(fd).st_size - start, start))
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise OSError(errno.EINVAL, "the environment is no list of texts")
    return found


def _check_seals(fd: int) -> None:
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0
    if seals & _SEALS != _SEALS:
        raise Refusal("InvalidArgument", "launch plan: must come in a sealed memfd")
