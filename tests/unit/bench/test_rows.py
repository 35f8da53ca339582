"""Ratios: ours as a multiple of the peer's, and whether the aim is reached."""

import json

import pytest

from bench.peers import table
from bench.peers.rows import Gathered, Row, as_ratio


def row(ours, theirs, **more):
    return Row("x", "ms", {"polypod": ours, "containerd": theirs}, **more)


def test_medians_are_compared():
    assert row([1, 2, 90], [10, 20, 21]).ratio("containerd") == 0.1


@pytest.mark.parametrize(
    ("ours", "aim", "more", "reached"),
    [
        (1, None, False, None),
        (1, 1 / 10, False, True),
        (1.01, 1 / 10, False, False),
        (80, 8, True, True),
        (79, 8, True, False),
    ],
)
def test_an_aim_is_at_most_or_at_least(ours, aim, more, reached):
    assert row([ours], [10], aim=aim, more_is_better=more).reached("containerd") is reached


@pytest.mark.parametrize(
    ("value", "text"), [(0.08, "1/12.5"), (0.5, "1/2"), (1, "1x"), (9.25, "9.25x"), (0, "0x")]
)
def test_a_ratio_reads_as_people_say_it(value, text):
    assert as_ratio(value) == text


def test_rows_are_filled_in_turns():
    gathered = Gathered()
    for _ in range(2):
        gathered.add("polypod", "a", "ms", [1.0, 2.0], aim=0.5)
        gathered.add("containerd", "a", "ms", [4.0], aim=0.5)
    gathered.add("polypod", "only ours", "ms", [1.0])
    for side in ("polypod", "containerd"):
        gathered.add(side, "b", "1/s", [1.0], more_is_better=True)
    first, second = gathered.rows("containerd")
    assert first.values == {"polypod": [1, 2, 1, 2], "containerd": [4, 4]}
    assert (first.aim, second.what, second.more_is_better) == (0.5, "b", True)


def test_the_file_keeps_every_value(tmp_path, capsys):
    rows = [row([1.0, 3.0], [20.0], aim=1 / 10), row([5.0], [4.0])]
    path = table.write(rows, "containerd", {"before": {"load": 1}}, tmp_path)
    table.show(rows, "containerd", {"before": {"load": 1}}, path)
    first, second = json.loads(path.read_text())["results"]
    assert first["values"] == {"polypod": [1, 3], "containerd": [20]}
    assert (first["ratio"], first["reached"]) == (0.1, True)
    assert (second["ratio"], second["reached"]) == (1.25, None)
    shown = capsys.readouterr().out
    assert "1/10" in shown
    assert "yes" in shown
    assert path.name in shown
