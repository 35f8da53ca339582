"""Faults by name: what the simulator and the fakes ask before each of their methods."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from polypod.plugin.errors import BackendError, InvalidArgument
from polypod.testing.clock import Clock, SystemClock

PREFIX = "simulator.polypod/"
"""An annotation ``simulator.polypod/METHOD: RULE`` is a fault of that one sandbox or container."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens instead of, or before, the real thing."""

    error: Exception | None = None
    delay_s: float = 0.0
    hang: bool = False
    at: int = 0
    """Only at the N-th call, counted from 1; 0 = at each."""


def parse_rule(text: str) -> Fault:
    """Read ``error:TEXT``, ``delay:SECONDS`` or ``hang``, each with an optional ``@N`` (the N-th call).

    Raises:
        InvalidArgument: it is none of these.
    """
    rule, _, nth = text.rpartition("@") if text.rpartition("@")[2].isdigit() else (text, "", "0")
    verb, _, argument = rule.partition(":")
    if verb == "error":
        return Fault(error=BackendError(argument or "an injected fault"), at=int(nth))
    if verb == "hang":
        return Fault(hang=True, at=int(nth))
    if verb == "delay":
        try:
            return Fault(delay_s=float(argument), at=int(nth))
        except ValueError:
            pass
    raise InvalidArgument(
        f"fault {text!r}: write error:TEXT, delay:SECONDS or hang, and @N for the N-th call"
    )


class Faults:
    """Rules per method, and a count of the calls."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.calls: dict[str, int] = defaultdict(int)
        self._rules: dict[str, list[Fault]] = defaultdict(list)
        self._released = asyncio.Event()

    def add(self, method: str, fault: Fault) -> None:
        """Add a fault."""
        self._rules[method].append(fault)

    def fail(self, method: str, error: Exception | str, *, at: int = 0) -> None:
        """Let a method raise."""
        raised = BackendError(error) if isinstance(error, str) else error
        self.add(method, Fault(error=raised, at=at and self.calls[method] + at))

    def delay(self, method: str, seconds: float, *, at: int = 0) -> None:
        """Let a method take so long."""
        self.add(method, Fault(delay_s=seconds, at=at and self.calls[method] + at))

    def hang(self, method: str, *, at: int = 0) -> None:
        """Let a method wait until `release`."""
        self.add(method, Fault(hang=True, at=at and self.calls[method] + at))

    def release(self) -> None:
        """Let everything that hangs go on."""
        self._released.set()

    def clear(self) -> None:
        """Forget all rules."""
        self._rules.clear()

    async def hit(self, method: str, annotations: Mapping[str, str] | None = None) -> None:
        """Do what the rules for a method say.

        Args:
            method: whose beginning this is.
            annotations: of the object concerned; they may carry a rule of their own.
        """
        self.calls[method] += 1
        rules = [r for r in self._rules[method] if r.at in (0, self.calls[method])]
        own = (annotations or {}).get(PREFIX + method)
        if own is not None:
            rules.append(parse_rule(own))
        for rule in rules:
            if rule.delay_s:
                await self.clock.sleep(rule.delay_s)
            if rule.hang:
                await self._released.wait()
            if rule.error is not None:
                raise rule.error
