"""Who takes part in which round of the comparison of handlers, and what is said of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.handlers import KINDS, Taken, Turns, order, settings_of
from polypod.config import load

ROOT = Path(__file__).parents[3]


def test_rounds_begin_with_another_handler_each_time():
    turns = Turns(rounds=4)
    found = [order(["namespaces", "runc", "fly"], number, turns)[0] for number in range(4)]
    assert found == ["namespaces", "runc", "fly", "namespaces"]


def test_slow_handlers_take_part_in_the_first_rounds():
    turns = Turns(rounds=5, slow_rounds=2)
    taking_part = ["vm" in order(["namespaces", "vm"], number, turns) for number in range(5)]
    assert taking_part == [True, True, False, False, False]


def test_the_settings_are_a_configuration_with_these_handlers():
    config = load(None, settings_of(list(KINDS)))
    assert list(config.handlers) == list(KINDS)
    assert config.server.default_handler == "namespaces"
    assert config.handlers["crun"].options == {"path": "crun"}
    assert config.handlers["vm"].type == "vm"


def test_rows_count_the_processor_time_of_server_and_pods():
    taken = Taken([20.0, 10.0], [5.0, 6.0], [1.0], server_ms=[30.0, 50.0], pods_ms=[2.0, 4.0])
    rows = {row.what: row for row in taken.rows("runc")}
    assert rows["runc: pod_ready"].minimum == 10.0
    cpu = rows["runc: CPU per pod cycle"]
    assert (cpu.values, cpu.facts) == ((32.0, 54.0), {"in_pods_ms": 3.0})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--handlers", "namespaces,docker"], "unknown handler 'docker'; there are namespaces, "),
        (["--only", "exec,nothing"], "unknown part 'nothing'; there are pod_ready, "),
    ],
)
def test_an_unknown_name_ends_it_before_anything_is_measured(words, said):
    done = subprocess.run(
        [sys.executable, "-m", "bench", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert said in done.stderr
