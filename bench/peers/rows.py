"""One measure of both sides, and what the comparison says of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

OURS = "polypod"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table."""

    what: str
    unit: str
    values: Mapping[str, Sequence[float]]
    """Side → every value."""
    aim: float | None = None
    """The ratio to reach: at most, or at least where more is better."""
    more_is_better: bool = False

    def ratio(self, peer: str) -> float:
        """Return our median as a multiple of the peer's."""
        return statistics.median(self.values[OURS]) / statistics.median(self.values[peer])

    def reached(self, peer: str) -> bool | None:
        """Tell whether the aim is reached; None where there is none."""
        if self.aim is None:
            return None
        ratio = self.ratio(peer)
        return ratio >= self.aim if self.more_is_better else ratio <= self.aim


@dataclass(slots=True)
class Gathered:
    """Rows that are filled in turns: a value of one side, a value of the other one."""

    _rows: dict[str, Row] = field(default_factory=dict)

    def add(
        self,
        side: str,
        what: str,
        unit: str,
        values: Sequence[float],
        *,
        aim: float | None = None,
        more_is_better: bool = False,
    ) -> None:
        """Add values of a side to a row."""
        row = self._rows.setdefault(what, Row(what, unit, {}, aim, more_is_better))
        had = {**row.values, side: [*row.values.get(side, ()), *values]}
        self._rows[what] = Row(what, unit, had, row.aim, more_is_better)

    def rows(self, peer: str) -> list[Row]:
        """Return the rows that have values of both sides, in the order in which they began."""
        return [row for row in self._rows.values() if {OURS, peer} <= row.values.keys()]


def as_ratio(value: float) -> str:
    """Return a ratio as people read it: ``1/12.5`` or ``3.1x``."""
    if 0 < value < 1:
        return f"1/{1 / value:.3g}"
    return f"{value:.3g}x"
