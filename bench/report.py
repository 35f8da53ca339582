"""The table, and the file that keeps every value."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.samples import Result

OUT = Path(__file__).parent / "out"


def write(results: Sequence[Result], host: Mapping[str, object], out: Path) -> Path:
    """Write all values with the host's facts; return the file."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{datetime.now(UTC):%Y%m%dT%H%M%S}.json"
    rows = [
        {**asdict(each), "min": each.minimum, "median": each.median, "p95": each.p95}
        for each in results
    ]
    path.write_text(json.dumps({"host": host, "results": rows}, indent=1))
    return path


def show(results: Sequence[Result], host: Mapping[str, object], path: Path) -> None:
    """Print the table and how far it can be trusted."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("WHAT")
    for column in ("MIN", "MEDIAN", "P95", "UNIT", "COUNT"):
        table.add_column(column, justify="right")
    table.add_column("ALSO")
    for each in results:
        also = ", ".join(f"{name} {value:.3g}" for name, value in each.facts.items())
        figures = (f"{value:.2f}" for value in (each.minimum, each.median, each.p95))
        table.add_row(each.what, *figures, each.unit, str(len(each.values)), also)
    console = Console(width=None if Console().is_terminal else 170)
    console.print(table, markup=False)
    for when in ("before", "after"):
        facts = host[when]
        console.print(f"host {when}: {facts}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"every value: {path}", markup=False, highlight=False, soft_wrap=True)
