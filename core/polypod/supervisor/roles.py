"""Supervisor and logger as the keeper sees them: started, started again, waited for, ended."""

from __future__ import annotations

import os
import signal
import time

from polypod.supervisor import start
from polypod.supervisor.adoption import has_ended
from polypod.supervisor.kernel import process
from polypod.supervisor.server import note

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from polypod.supervisor.presence import Presence
    from polypod.supervisor.server import Loop

_ROLES = ("supervisor", "logger")
_FIRST_BACKOFF_S = 0.02
_LONGEST_BACKOFF_S = 2.0
_LIVES_S = 1.0
"""One that lived so long is started again at once; one that did not waits longer each time."""
_HANDS_OVER_S = 10.0
"""How long one that an earlier keeper started may take to hand over and leave."""
_WAITS_S = 1.0
"""How long one that died waits for what the other guards: a logger may hang with its disk."""
_ENDS_S = 2.0


class Roles:
    """Who of the two lives, and who is due."""

    def __init__(
        self, state: str, presence: Presence, loop: Loop, left: Callable[[], None]
    ) -> None:
        self._state = state
        self._presence = presence
        self._loop = loop
        self._left = left
        self._children: dict[int, str] = {}
        self._adopted: dict[str, tuple[int, int]] = {}
        """Role → (pid, pidfd) of one that is not our child: ours starts when it has left."""
        self._adopted_at = time.monotonic()
        self._started_at: dict[str, float] = {}
        self._backoff: dict[str, float] = {}
        self._due: dict[str, float] = {}

    def begin(self) -> None:
        """Start both; one that lives hands over first, also what it guards for the other one."""
        for role in _ROLES:
            pid = self._presence.holder(role)
            pidfd = _open(pid) if pid else -1
            if pidfd >= 0:
                note(f"{role}[{pid}] of an earlier keeper lives: waiting until it has handed over")
                self._adopted[role] = (pid, pidfd)
                self._watch(role, pidfd)
        moment = time.monotonic() + (_WAITS_S if self._adopted else 0.0)
        self._due = {role: moment for role in _ROLES if role not in self._adopted}

    def _watch(self, role: str, pidfd: int) -> None:
        self._loop.add(pidfd, lambda _events: self._adopted_left(role, pidfd))

    def _adopted_left(self, role: str, pidfd: int) -> None:
        self._loop.drop(pidfd)
        os.close(pidfd)
        self._left()
        self._adopted.pop(role, None)
        self._due[role] = 0.0
        if not self._adopted:
            self._due = dict.fromkeys(self._due, 0.0)

    def awaits(self) -> bool:
        """Tell whether somebody may still hand over what we do not know; not for ever."""
        if time.monotonic() - self._adopted_at > _HANDS_OVER_S:
            return False
        return bool(self._adopted)

    def ended(self, pid: int, how: str) -> bool:
        """A child of ours is gone; False if it was neither of the two."""
        role = self._children.pop(pid, None)
        if role is None:
            return False
        note(f"{role}[{pid}] ended by {how}")
        self._schedule(role)
        return True

    def _schedule(self, role: str) -> None:
        if self._loop.leaving:
            return
        lived = time.monotonic() - self._started_at.get(role, 0.0)
        last = self._backoff.get(role, 0.0)
        if lived > _LIVES_S:
            delay = 0.0
        else:
            delay = min(last * 2 if last else _FIRST_BACKOFF_S, _LONGEST_BACKOFF_S)
        self._backoff[role] = delay
        self._due[role] = time.monotonic() + delay

    def start_due(self) -> float:
        """Start who is due; return the seconds until the next one is, -1 for nobody."""
        now = time.monotonic()
        for role in [role for role, moment in self._due.items() if moment <= now]:
            self._start(role)
        waits = [moment - now for moment in self._due.values()]
        if self._adopted and self.awaits():
            waits.append(_HANDS_OVER_S)
        return min(waits, default=-1.0)

    def _start(self, role: str) -> None:
        self._due.pop(role, None)
        self._started_at[role] = time.monotonic()
        try:
            self._children[start.child(role, self._state)] = role
        except OSError as error:
            note(f"{role}: could not be started: {error}")
            self._schedule(role)

    def pids(self) -> dict[str, int]:
        """Return role → pid."""
        found = {role: pid for role, (pid, _pidfd) in self._adopted.items()}
        found.update({role: pid for pid, role in self._children.items()})
        return found

    def end(self) -> None:
        """End both, at the latest by SIGKILL; returns in any case: one may hang with its disk."""
        pidfds = [pidfd for _pid, pidfd in self._adopted.values()]
        pidfds += [pidfd for pid in self._children if (pidfd := _open(pid)) >= 0]
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pidfd in pidfds:
                _signal(pidfd, number)
            deadline = time.monotonic() + _ENDS_S
            while pidfds and time.monotonic() < deadline:
                pidfds = [pidfd for pidfd in pidfds if not has_ended(pidfd)]
                time.sleep(0.005)


def _open(pid: int) -> int:
    try:
        return process.pidfd_open(pid)
    except OSError:
        return -1


def _signal(pidfd: int, number: int) -> None:
    try:
        process.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return
