"""What the contract suites share: a check, its verdict, and exceptions that are declared and verified.

A check is ``async def check_…(lab)``; its docstring is the sentence of the contract that it holds a plugin
to. It raises `Violation` where the sentence does not hold, and `NotApplicable` where the plugin does not
claim the ability at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from polypod.plugin.errors import PolypodError

T = TypeVar("T")

PATIENCE_S = 20.0
"""How long a check waits for what has to come. Nothing is ever measured against it."""


class Violation(Exception):
    """The contract does not hold."""


class NotApplicable(Exception):
    """The plugin does not claim what the check is about; the text says which ability."""


class Outcome(StrEnum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"
    EXCEPTED = "excepted"
    """It fails, as the plugin has declared."""
    NEEDLESS = "needless exception"
    """It passes although the plugin has declared that it does not: the declaration is out of date."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One check's result."""

    check: str
    outcome: Outcome
    detail: str = ""

    @property
    def good(self) -> bool:
        """Whether a test run may go on."""
        return self.outcome not in {Outcome.FAILED, Outcome.NEEDLESS}


async def judge(
    name: str, work: Callable[[], Awaitable[None]], exceptions: Mapping[str, str]
) -> Verdict:
    """Run one check and say how it ended.

    Args:
        name: of the check.
        work: runs it, with set-up and clean-up.
        exceptions: check → reason, as the plugin declares them.
    """
    declared = exceptions.get(name)
    try:
        await work()
    except NotApplicable as reason:
        return Verdict(name, Outcome.NOT_APPLICABLE, str(reason))
    except Exception as error:  # noqa: BLE001 - whatever the plugin raises is its failure
        detail = f"{type(error).__name__}: {error}"
        if declared is not None:
            return Verdict(name, Outcome.EXCEPTED, f"{declared} ({detail})")
        return Verdict(name, Outcome.FAILED, detail)
    if declared is not None:
        return Verdict(name, Outcome.NEEDLESS, f"declared: {declared}")
    return Verdict(name, Outcome.PASSED)


def expect(holds: object, text: str) -> None:
    """Raise `Violation` with the text unless something holds."""
    if not holds:
        raise Violation(text)


async def soon(call: Awaitable[T], what: str) -> T:
    """Return what an awaitable returns; `Violation` if nothing comes of it."""
    try:
        return await asyncio.wait_for(call, PATIENCE_S)
    except TimeoutError:
        raise Violation(f"{what}: nothing came of it") from None


async def until(holds: Callable[[], object], what: str) -> None:
    """Wait until something holds; `Violation` if it never does."""
    for _ in range(int(PATIENCE_S / 0.01)):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise Violation(f"{what}: that never happened")


async def refused(call: Awaitable[object], what: str, *kinds: type[Exception]) -> Exception:
    """Return the error with which a call is refused; `Violation` if it is not, or by another kind.

    Args:
        call: what must not succeed.
        what: its description.
        kinds: the errors allowed; none given = every error of ours, and OSError.
    """
    try:
        await soon(call, what)
    except (PolypodError, OSError) as error:
        if kinds and not isinstance(error, kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise Violation(
                f"{what}: raised {type(error).__name__} ({error}), not {names}"
            ) from error
        return error
    raise Violation(f"{what}: succeeded")


def named(
    checks: Sequence[Callable[..., Awaitable[None]]],
) -> Mapping[str, Callable[..., Awaitable[None]]]:
    """Return checks by name."""
    return {check.__name__: check for check in checks}
