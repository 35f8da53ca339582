"""The table with ratios, and the file that keeps every value."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.peers.rows import OURS, Row, as_ratio


def write(rows: Sequence[Row], peer: str, host: Mapping[str, object], out: Path) -> Path:
    """Write all values with the host's facts; return the file."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"peers-{datetime.now(UTC):%Y%m%dT%H%M%S}.json"
    found = [
        {
            "what": row.what,
            "unit": row.unit,
            "values": row.values,
            "median": {side: statistics.median(taken) for side, taken in row.values.items()},
            "ratio": row.ratio(peer),
            "aim": row.aim,
            "reached": row.reached(peer),
        }
        for row in rows
    ]
    path.write_text(json.dumps({"host": host, "peer": peer, "results": found}, indent=1))
    return path


def show(rows: Sequence[Row], peer: str, host: Mapping[str, object], path: Path) -> None:
    """Print the table and how far it can be trusted."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("WHAT")
    for side in (OURS, peer):
        table.add_column(f"{side} MIN", justify="right")
        table.add_column("MEDIAN", justify="right")
    table.add_column("UNIT")
    for column in ("RATIO", "AIM", "REACHED"):
        table.add_column(column, justify="right")
    for row in rows:
        figures = [
            f"{figure:.2f}"
            for side in (OURS, peer)
            for figure in (min(row.values[side]), statistics.median(row.values[side]))
        ]
        aim = "" if row.aim is None else as_ratio(row.aim)
        reached = {None: "", True: "yes", False: "no"}[row.reached(peer)]
        table.add_row(row.what, *figures, row.unit, as_ratio(row.ratio(peer)), aim, reached)
    console = Console(width=None if Console().is_terminal else 170)
    console.print(table, markup=False)
    for name, facts in host.items():
        console.print(f"{name}: {facts}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"every value: {path}", markup=False, highlight=False, soft_wrap=True)
