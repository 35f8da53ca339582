"""The one line that daemon and child side write down twice."""

from pathlib import Path

from polypod.processes import command
from polypod.supervisor import start


def test_keeper_is_executed_as_the_child_side_executes_it():
    assert command.keeper(Path("/some/state")) == start.command("keeper", "/some/state")
