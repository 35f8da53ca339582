"""Mount options of runtime-spec, sorted by what becomes of them."""

from __future__ import annotations

import pytest

from polypod.plugin.errors import InvalidArgument
from polypod.spec import mount_options as mo
from polypod.spec.mount_options import parse_mount_options, parse_propagation


def test_a_volume():
    found = parse_mount_options(("rbind", "rslave", "ro", "nosuid"), "/data")
    assert (found.bind, found.recursive) == (True, True)
    assert (found.propagation, found.propagation_recursive) == (mo.MS_SLAVE, True)
    assert (found.set_, found.recursive_set) == (mo.RDONLY | mo.NOSUID, 0)


def test_a_later_option_wins():
    assert parse_mount_options(("ro", "rw"), "/x").set_ == 0
    assert parse_mount_options(("ro", "rw"), "/x").clear == mo.RDONLY
    assert parse_mount_options(("rw", "ro"), "/x").set_ == mo.RDONLY


def test_atime_needs_the_whole_mask_cleared():
    found = parse_mount_options(("noatime",), "/x")
    assert (found.set_, found.clear) == (mo.NOATIME, mo.ATIME_MASK)


@pytest.mark.parametrize(("option", "bits"), [("rro", mo.RDONLY), ("rnosuid", mo.NOSUID)])
def test_recursive_forms(option, bits):
    found = parse_mount_options((option,), "/x")
    assert (found.set_, found.recursive_set) == (0, bits)


def test_relatime_is_not_the_recursive_form_of_something():
    assert parse_mount_options(("relatime",), "/x").data == ()


def test_what_is_left_is_for_the_file_system():
    found = parse_mount_options(("mode=755", "newinstance", "bind"), "/x")
    assert found.data == (("mode", "755"), ("newinstance", None))


@pytest.mark.parametrize("option", ["idmap", "tmpcopyup", "=x", "a\0b"])
def test_refused(option):
    with pytest.raises(InvalidArgument, match="/x"):
        parse_mount_options((option,), "/x")


def test_propagation_of_the_root():
    assert parse_propagation("") == 0
    assert parse_propagation("rshared") == parse_propagation("shared") == mo.MS_SHARED
    with pytest.raises(InvalidArgument):
        parse_propagation("sharing")
