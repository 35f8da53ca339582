"""The part of ``make bench`` that compares handlers, on a real server with one that works and one that does not."""

import pytest

from bench import handlers
from bench.handlers import Turns

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay, pytest.mark.needs_busybox]
ABSENT = ("type=oci", "options.path=/nowhere/absent")


@pytest.fixture
def absent(monkeypatch):
    monkeypatch.setitem(handlers.KINDS, "absent", ABSENT)


async def test_usable_handlers_are_measured_and_the_others_are_named(absent, capsys):
    turns = Turns(rounds=2, pods=2, execs=3)
    rows = await handlers.measure(turns, ["namespaces", "fly", "absent"])
    assert [(row.what, len(row.values)) for row in rows] == [
        ("namespaces: pod_ready", 4),
        ("fly: pod_ready", 4),
        ("namespaces: stop and remove", 4),
        ("fly: stop and remove", 4),
        ("namespaces: ExecSync(true)", 6),
        ("fly: ExecSync(true)", 6),
        ("namespaces: CPU per pod cycle", 4),
        ("fly: CPU per pod cycle", 4),
    ]
    assert all(row.minimum > 0 for row in rows)
    said = capsys.readouterr().err
    assert "handler absent is unusable here" in said
    assert "/nowhere/absent is not installed" in said


async def test_no_usable_handler_is_an_error_and_leaves_nothing(absent):
    with pytest.raises(RuntimeError, match="no usable handler among absent"):
        await handlers.measure(Turns(), ["absent"])
