"""Draw the state tables: ``python -m polypod.lifecycle.diagram > docs/lifecycle-states.md``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from polypod.lifecycle.states import CONTAINER, SANDBOX

Table = Mapping[Any, Mapping[Any, StrEnum]]
"""Of sandboxes or of containers; keys are states and events."""

_HEAD = """# The states of sandboxes and containers

Generated from `polypod/lifecycle/states.py` by `python -m polypod.lifecycle.diagram`.
A move that is not drawn is refused.
"""


def render() -> str:
    """Return the whole page."""
    parts = [_HEAD]
    for title, table in (("Sandbox", SANDBOX), ("Container", CONTAINER)):
        parts += ["", f"## {title}", "", "```mermaid", "stateDiagram-v2"]
        parts += ["    [*] --> creating", *_moves(table), "    removed --> [*]", "```", ""]
        parts += list(_rows(table))
    return "\n".join(parts) + "\n"


def _moves(table: Table) -> Iterator[str]:
    for state, moves in table.items():
        for event, following in moves.items():
            yield f"    {_name(state)} --> {_name(following)}: {event}"


def _rows(table: Table) -> Iterator[str]:
    events = sorted({event for moves in table.values() for event in moves})
    yield f"| state | {' | '.join(events)} |"
    yield f"|---|{'---|' * len(events)}"
    for state, moves in table.items():
        yield f"| **{state}** | {' | '.join(str(moves.get(e, '-')) for e in events)} |"


def _name(state: StrEnum) -> str:
    return state.value.replace("-", "_")


if __name__ == "__main__":
    sys.stdout.write(render())
