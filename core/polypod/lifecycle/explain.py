"""The explain record: what happened to one object, in which stages, and how long each took.

Kept in memory, bounded, one for each object. Its short form goes into error texts, the long one
into the verbose status and ``polypod explain``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from polypod.lifecycle.clock import Clock

_KEEP = 64


class Explain:
    """Stages and evidence of one object."""

    __slots__ = ("_clock", "_evidence", "_last", "_stages", "_told")

    def __init__(self, clock: Clock, told: Callable[[str, float, str], None] | None = None) -> None:
        """Begin with nothing.

        Args:
            clock: times the stages.
            told: called with each stage's name, seconds and error.
        """
        self._clock = clock
        self._told = told
        self._stages: deque[tuple[str, float, str]] = deque(maxlen=_KEEP)
        self._evidence: deque[tuple[int, str]] = deque(maxlen=_KEEP)
        self._last = ""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a step; an error that leaves it is noted with it."""
        begun = self._clock.monotonic()
        self._last = name
        outcome = ""
        try:
            yield
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
            raise
        finally:
            took = self._clock.monotonic() - begun
            self._stages.append((name, took, outcome))
            if self._told is not None:
                self._told(name, took, outcome)

    def note(self, text: str) -> None:
        """Keep a piece of evidence: a kernel's OOM report, a helper's stderr, a failed undo."""
        self._evidence.append((self._clock.now_ns(), text))

    @property
    def reached(self) -> str:
        """The stage that was entered last."""
        return self._last

    def long(self) -> Mapping[str, object]:
        """Return JSON values with everything that is known."""
        return {
            "stages": [
                {"name": name, "ms": round(seconds * 1000, 3), "error": error}
                for name, seconds, error in self._stages
            ],
            "evidence": [{"at_ns": at, "text": text} for at, text in self._evidence],
        }
