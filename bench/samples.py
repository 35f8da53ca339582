"""Samples and what is said of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Result:
    """One row of the table."""

    what: str
    unit: str
    values: tuple[float, ...]
    facts: dict[str, float] = field(default_factory=dict)
    """Further figures of the same measurement, such as pods/s."""

    @property
    def minimum(self) -> float:
        """Of the values."""
        return min(self.values)

    @property
    def median(self) -> float:
        """Of the values."""
        return statistics.median(self.values)

    @property
    def p95(self) -> float:
        """The value that 95 of 100 stay below; with few values the largest."""
        ordered = sorted(self.values)
        return ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]


def result(what: str, unit: str, values: Sequence[float], **facts: float) -> Result:
    """Return a row. ValueError: there is no value."""
    if not values:
        raise ValueError(f"{what}: nothing was measured")
    return Result(what, unit, tuple(values), facts)
