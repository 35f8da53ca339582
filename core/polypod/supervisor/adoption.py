"""Processes that are not our children: found again by pid and start time, their ends read by pidfd."""

from __future__ import annotations

import os
import select

from polypod.supervisor.kernel import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Message = dict[str, Any]

# Fields of /proc/PID/stat behind the name, counted from 0: proc(5).
_STATE, _START_TIME, _EXIT_CODE = 0, 19, 49


def find(pid: int, start_time: int) -> int:
    """Return a pidfd of exactly that process if it still runs, or -1."""
    if pid <= 0:
        return -1
    try:
        pidfd = process.pidfd_open(pid)
    except OSError:
        return -1
    # In this order: what has this start time now was that process when it was opened.
    fields = _stat(pid)
    if fields is None or int(fields[_START_TIME]) != start_time:
        os.close(pidfd)
        return -1
    return pidfd


def has_ended(pidfd: int) -> bool:
    """Tell whether a process is gone, reaped or not."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def status(pid: int, start_time: int, pidfd: int) -> Message:
    """Return code and signal of a process that is gone; None as code where nobody knows it.

    The kernel keeps the code with the pidfd once somebody has reaped the process (since 6.15);
    before that it stands in its line of /proc.
    """
    found = process.exit_status(pidfd)
    if found is None:
        fields = _stat(pid)
        if fields and fields[_STATE] == "Z" and int(fields[_START_TIME]) == start_time:
            found = int(fields[_EXIT_CODE])
        else:
            # It may have been reaped between the two looks.
            found = process.exit_status(pidfd)
    if found is None:
        return {"code": None, "signal": 0}
    if os.WIFSIGNALED(found):
        number = os.WTERMSIG(found)
        return {"code": 128 + number, "signal": number}
    return {"code": os.WEXITSTATUS(found), "signal": 0}


def _stat(pid: int) -> list[str] | None:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return None
