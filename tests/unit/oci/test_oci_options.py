"""Options of a handler: right ones are read, wrong ones refused with their names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from polypod.plugin import InvalidArgument, RuntimeContext, Unsupported
from polypod.testing.fake_supervisor import FakeSupervisor
from polypod_oci.options import read_options


def context(**options: object) -> RuntimeContext:
    place = Path("/nowhere")
    return RuntimeContext("mine", options, place, place / "state", "/polypod", FakeSupervisor())


def test_defaults():
    found = read_options(context(path=sys.executable))
    assert found.path == sys.executable
    assert found.name == Path(sys.executable).name
    assert found.root == Path("/nowhere/state/runtime")
    assert found.arguments == ()
    assert not found.restore


def test_everything_said():
    found = read_options(context(path="sh", root="/run/mine", arguments=["--systemd-cgroup"]))
    assert found.path.startswith("/")
    assert found.path.endswith("/sh")
    assert (found.root, found.arguments) == (Path("/run/mine"), ("--systemd-cgroup",))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, InvalidArgument, r"options\.path"),
        ({"path": "sh", "restore": 1}, InvalidArgument, r"options\.restore: must be true or false"),
        ({"path": 3}, InvalidArgument, r"options\.path: must be a string"),
        ({"path": "sh", "root": "here"}, InvalidArgument, "no absolute path"),
        ({"path": "sh", "arguments": "-x"}, InvalidArgument, "list of strings"),
        ({"path": "sh", "arguments": [1]}, InvalidArgument, "list of strings"),
        ({"path": "sh", "binary": "x"}, InvalidArgument, "binary"),
        ({"path": "/no/such/runtime"}, Unsupported, "/no/such/runtime is not installed"),
    ],
)
def test_wrong_ones_are_refused(options, error, words):
    with pytest.raises(error, match=words) as refusal:
        read_options(context(**options))
    assert str(refusal.value).startswith("handlers.mine.options")
