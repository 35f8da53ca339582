from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from polypod.lifecycle import diagram
from polypod.lifecycle.states import (
    CONTAINER,
    SANDBOX,
    ContainerEvent,
    SandboxEvent,
    TransitionError,
    next_container,
    next_sandbox,
)
from polypod.lifecycle.views import ContainerState, SandboxState

CASES = [(next_sandbox, SANDBOX, s, e) for s, e in product(SandboxState, SandboxEvent)]
CASES += [(next_container, CONTAINER, s, e) for s, e in product(ContainerState, ContainerEvent)]


@pytest.mark.parametrize(("move", "table", "state", "event"), CASES)
def test_next_state_follows_the_table_or_names_both(move, table, state, event):
    if event in table[state]:
        assert move(state, event) is table[state][event]
    else:
        with pytest.raises(TransitionError, match=f"{state}.*{event}"):
            move(state, event)


def test_removed_is_the_end_and_nothing_else_is():
    for table in (SANDBOX, CONTAINER):
        for state, moves in table.items():
            ends = {following.value for following in moves.values()} <= {state.value}
            assert ends == (state.value == "removed")


def test_every_state_is_reached_and_can_be_removed():
    for table in (SANDBOX, CONTAINER):
        reached = {following for moves in table.values() for following in moves.values()}
        assert set(table) - reached == {s for s in table if s.value == "creating"}
        for state in table:
            seen, todo = set(), [state]
            while todo:
                seen.add(at := todo.pop())
                todo += [each for each in table[at].values() if each not in seen]
            assert any(each.value == "removed" for each in seen)


def test_diagram_in_the_docs_is_current():
    page = Path(__file__).parents[3] / "docs/lifecycle-states.md"
    assert page.read_text() == diagram.render()
