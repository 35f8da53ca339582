"""Notes and exits that outlive the keeper."""

import os
import stat

import pytest

from polypod.supervisor.ledger import Ledger


@pytest.fixture
def state(tmp_path):
    return str(tmp_path)


def test_notes_and_exits_come_back(state):
    ledger = Ledger(state)
    ledger.note("a", {"pid": 1})
    ledger.note("b", {"pid": 2})
    ledger.record("a", {"code": 3})
    again = Ledger(state)
    assert again.processes() == {"a": {"pid": 1}, "b": {"pid": 2}}
    assert again.exits() == {"a": {"code": 3}}
    again.forget("a")
    again.forget("a")
    assert Ledger(state).processes() == {"b": {"pid": 2}}
    assert Ledger(state).exits() == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"1"])
def test_what_is_broken_is_left_out(state, tmp_path, content):
    ledger = Ledger(state)
    ledger.record("good", {"code": 0})
    (tmp_path / "exits/bad").write_bytes(content)
    (tmp_path / "exits/.new").write_bytes(b'{"code": 0}')
    (tmp_path / "exits/link").symlink_to(tmp_path / "exits/good")
    (tmp_path / "exits/directory").mkdir()
    assert ledger.exits() == {"good": {"code": 0}}


def test_an_exit_is_there_as_a_whole_or_not_at_all(state, tmp_path):
    ledger = Ledger(state)
    ledger.record("a", {"code": 1})
    seen = os.stat(tmp_path / "exits/a").st_ino
    ledger.record("a", {"code": 2})
    assert os.stat(tmp_path / "exits/a").st_ino != seen
    assert ledger.exits() == {"a": {"code": 2}}


def test_directories_are_private(state, tmp_path):
    Ledger(state)
    for name in ("processes", "exits"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o700


def test_a_disk_that_takes_nothing_is_told_and_no_error(state, tmp_path, capsys):
    ledger = Ledger(state)
    os.rmdir(tmp_path / "exits")
    ledger.record("a", {"code": 1})
    assert "a: could not be written down" in capsys.readouterr().err
