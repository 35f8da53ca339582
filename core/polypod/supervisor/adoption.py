"""Processes that are not our children: found again by pid and start time, their ends read by pidfd."""

from __future__ import annotations

import os
import select
import time

from polypod.supervisor.kernel import credentials, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Message = dict[str, Any]

UNKNOWN: Message = {"code": None, "signal": 0}
"""What is told of an end that nobody knows; never 0."""
_ASKS_S = 1.0
_AGAIN_S = 0.005
_STRAYS_MAX = 4096
_STRAYS_S = 300.0
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


def status(pid: int, start_time: int, pidfd: int) -> Message | None:
    """Return code and signal of a process that is gone; None if nobody can tell now.

    The kernel keeps the code with the pidfd once somebody has reaped the process (since 6.15);
    before that it stands in its line of /proc, where 0 means nothing to those who may not trace it. In
    the moment between the two it is nowhere: ask again.
    """
    found = process.exit_status(pidfd)
    if found is None:
        fields = _stat(pid)
        if fields and fields[_STATE] == "Z" and int(fields[_START_TIME]) == start_time:
            code = int(fields[_EXIT_CODE])
            found = code if code or _sees_all() else None
    if found is None:
        return None
    if os.WIFSIGNALED(found):
        number = os.WTERMSIG(found)
        return {"code": 128 + number, "signal": number}
    return {"code": os.WEXITSTATUS(found), "signal": 0}


def _sees_all() -> bool:
    effective, _permitted, _inheritable = credentials.capget()
    return bool(effective >> credentials.CAP_SYS_PTRACE & 1)


class Unread:
    """Ended processes whose codes nobody could tell yet; given up after a while."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[int, int, int, float]] = {}

    def add(self, process_id: str, pid: int, start_time: int, pidfd: int) -> None:
        """Begin to ask."""
        self._waiting[process_id] = (pid, start_time, pidfd, time.monotonic() + _ASKS_S)

    def forget(self, process_id: str) -> None:
        """Stop asking: the pidfd is not ours any more."""
        self._waiting.pop(process_id, None)

    def pause(self) -> float:
        """Return the seconds until it is time to ask again, -1 if there is nothing to ask."""
        return _AGAIN_S if self._waiting else -1

    def take(self) -> list[tuple[str, Message]]:
        """Return those that are known now, and those that never will be."""
        taken: list[tuple[str, Message]] = []
        for process_id, (pid, start_time, pidfd, deadline) in list(self._waiting.items()):
            found = status(pid, start_time, pidfd)
            if found is None and time.monotonic() > deadline:
                found = dict(UNKNOWN)
            if found is not None:
                del self._waiting[process_id]
                taken.append((process_id, found))
        return taken


class Strays:
    """Ends of children that nobody has named: what a runtime left behind may be gone before it is adopted.

    The latest end of a pid counts; so many are kept, and for so long.
    """

    __slots__ = ("_ends",)

    def __init__(self) -> None:
        self._ends: dict[int, tuple[float, int, Message]] = {}

    def add(self, pid: int, how: Message) -> None:
        """Keep the end of a child that is not reaped yet."""
        fields = _stat(pid)
        self._ends.pop(pid, None)
        now = time.monotonic()
        for old, (since, _start_time, _how) in list(self._ends.items()):
            if len(self._ends) < _STRAYS_MAX and now - since < _STRAYS_S:
                break
            del self._ends[old]
        start_time = int(fields[_START_TIME]) if fields else 0
        self._ends[pid] = (now, start_time, {**how, "at": time.time_ns()})

    def take(self, pid: int) -> tuple[int, Message] | None:
        """Return (start time, end) and forget it; None if no such child has ended."""
        found = self._ends.pop(pid, None)
        return None if found is None else found[1:]


def start_time_of(pid: int) -> int:
    """Return when a process that is there was started, 0 if it is not there."""
    fields = _stat(pid)
    return int(fields[_START_TIME]) if fields else 0


def _stat(pid: int) -> list[str] | None:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return None
