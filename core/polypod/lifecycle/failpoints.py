"""Failpoints: places where a test, or an operator, makes the server fail on purpose.

``POLYPOD_FAILPOINTS`` holds rules in the grammar of fail(9), separated by ``;``::

    sandbox.attached=2*error(no luck)->1*delay(200)->off;container.started=1*exit

A rule is a chain of terms ``[COUNT*]ACTION[(ARGUMENT)]``; each term is used COUNT times (for ever without
one), then the next. Actions: ``error(text)``, ``delay(ms)``, ``hang``, ``exit(code)``, ``enospc``,
``emfile``, ``off``. Every durable step of the lifecycle has a point; `POINTS` is the whole list, so a
test can walk it, and a point that is not on it cannot be used.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
from collections.abc import Callable, Mapping
from typing import Final

from polypod.lifecycle.clock import Clock
from polypod.plugin.errors import BackendError, InvalidArgument

POINTS: Final = (
    "sandbox.reserved",
    "sandbox.recorded",
    "sandbox.namespaces",
    "sandbox.attached",
    "sandbox.attachment-recorded",
    "sandbox.files",
    "sandbox.created",
    "sandbox.ready",
    "sandbox.update.applied",
    "sandbox.stop.containers",
    "sandbox.stop.recorded",
    "sandbox.stop.backend",
    "sandbox.stop.detached",
    "sandbox.stop.namespaces",
    "sandbox.stop.done",
    "sandbox.remove.containers",
    "sandbox.remove.backend",
    "sandbox.remove.files",
    "container.reserved",
    "container.recorded",
    "container.configured",
    "container.rootfs",
    "container.created",
    "container.start.logs",
    "container.start.created",
    "container.started",
    "container.update.applied",
    "container.exit.drained",
    "container.stop.signalled",
    "container.remove.backend",
    "container.remove.rootfs",
    "container.remove.files",
)

_TERM = re.compile(r"(?:(\d+)\*)?([a-z]+)(?:\(([^()]*)\))?")
_ACTIONS = ("error", "delay", "hang", "exit", "enospc", "emfile", "off")


class Failpoints:
    """The active rules; empty in ordinary life, when `hit` costs a dictionary look-up."""

    def __init__(self, clock: Clock, rules: str = "") -> None:
        """Parse rules.

        Raises:
            InvalidArgument: unknown point or action, or bad grammar.
        """
        self._clock = clock
        self._rules: dict[str, list[_Term]] = {}
        for rule in filter(None, (part.strip() for part in rules.split(";"))):
            point, equals, chain = rule.partition("=")
            if not equals:
                raise InvalidArgument(f"failpoint {rule!r}: POINT=TERM[->TERM…] was expected")
            self.set(point.strip(), chain)

    def set(self, point: str, chain: str) -> None:
        """Give one point a rule; ``off`` takes it away."""
        if point not in POINTS:
            raise InvalidArgument(
                f"there is no failpoint {point!r}; see polypod.lifecycle.failpoints"
            )
        self._rules[point] = [_Term.parse(text.strip()) for text in chain.split("->")]

    async def hit(self, point: str) -> None:
        """Do what the rule of a point says; mostly nothing.

        Raises:
            BackendError: the rule says ``error``.
            OSError: the rule says ``enospc`` or ``emfile``.
        """
        if not self._rules:
            return
        for term in self._rules.get(point, ()):
            if term.take():
                await self._act(point, term)
                return

    async def _act(self, point: str, term: _Term) -> None:
        if term.action in _RAISE:
            raise _RAISE[term.action](point, term.argument)
        if term.action == "delay":
            await self._clock.sleep(float(term.argument or 0) / 1000)
        elif term.action == "hang":
            await asyncio.Event().wait()
        elif term.action == "exit":
            os._exit(int(term.argument or 1))


class _Term:
    """One link of a chain, with the number of uses that are left (None = for ever)."""

    __slots__ = ("action", "argument", "left")

    def __init__(self, action: str, argument: str, left: int | None) -> None:
        self.action = action
        self.argument = argument
        self.left = left

    @classmethod
    def parse(cls, text: str) -> _Term:
        match = _TERM.fullmatch(text)
        if match is None or match[2] not in _ACTIONS:
            raise InvalidArgument(
                f"failpoint term {text!r}: one of {', '.join(_ACTIONS)} was expected"
            )
        if match[2] in ("delay", "exit") and not (match[3] or "0").isdigit():
            raise InvalidArgument(f"failpoint term {text!r}: a number was expected")
        return cls(match[2], match[3] or "", int(match[1]) if match[1] else None)

    def take(self) -> bool:
        if self.left is None:
            return True
        self.left -= 1
        return self.left >= 0


def _os_error(number: int) -> Callable[[str, str], Exception]:
    return lambda point, _text: OSError(number, os.strerror(number), f"failpoint {point}")


_RAISE: Final[Mapping[str, Callable[[str, str], Exception]]] = {
    "error": lambda point, text: BackendError(f"failpoint {point}: {text or 'error'}"),
    "enospc": _os_error(errno.ENOSPC),
    "emfile": _os_error(errno.EMFILE),
}
