"""Directories, locks and the note for `polypod down`."""

import os

import pytest

from polypod import config
from polypod.boot import places
from polypod.plugin.errors import FailedPrecondition, InvalidArgument


def test_make_closes_the_directories_to_others(tmp_path):
    (tmp_path / "root").mkdir(mode=0o755)
    made = places.make(tmp_path / "root", tmp_path / "a" / "state")
    assert made.root.stat().st_mode & 0o777 == 0o700
    assert made.state.stat().st_mode & 0o777 == 0o700


def test_make_refuses_relative_paths_and_files(tmp_path):
    with pytest.raises(InvalidArgument, match="absolute"):
        places.make(places.Path("x"), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(FailedPrecondition, match=r"server\.root"):
        places.make(tmp_path / "file", tmp_path / "state")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b"])
def test_own_refuses_names_that_lead_elsewhere(tmp_path, name):
    made = places.make(tmp_path / "r", tmp_path / "s")
    with pytest.raises(InvalidArgument):
        made.own("handlers", name)


@pytest.mark.parametrize("shared", ["root", "state"])
def test_claim_names_the_pid_of_the_other_server(tmp_path, shared):
    mine = places.make(tmp_path / "root", tmp_path / "state")
    other = {"root": tmp_path / "root2", "state": tmp_path / "state2"} | {shared: tmp_path / shared}
    theirs = places.make(other["root"], other["state"])
    with (
        places.claim(mine),
        pytest.raises(FailedPrecondition, match=f"pid {os.getpid()}"),
        places.claim(theirs),
    ):
        pass
    with places.claim(theirs):
        pass


def test_holder_is_the_pid_while_the_claim_lasts(tmp_path):
    mine = places.make(tmp_path / "root", tmp_path / "state")
    assert places.holder(mine.root) is None
    with places.claim(mine):
        assert places.holder(mine.root) == os.getpid()
    assert places.holder(mine.root) is None


def test_noted_is_what_was_noted_with_what_was_set(tmp_path):
    mine = places.make(tmp_path / "root", tmp_path / "state")
    assert places.noted(mine.root) is None
    wanted = config.load(None, ["handlers.sim.type=simulator", "network.subnets=['10.1.0.0/24']"])
    places.note(mine, wanted)
    found = places.noted(mine.root)
    assert found == wanted
    assert found.is_set("handlers.sim.type")
    assert not found.is_set("handlers.sim.image_store")


def test_a_damaged_note_is_said(tmp_path):
    (tmp_path / "server.json").write_text("{")
    with pytest.raises(InvalidArgument, match=r"server\.json"):
        places.noted(tmp_path)
