"""Mounts that could not do what they are asked for."""

from __future__ import annotations

import os

import pytest

from polypod.backend.mounts import check_propagation
from polypod.plugin import BackendError, InvalidArgument
from polypod.plugin.oci import OciMount


def table(path, optional: str) -> str:
    """Return a mountinfo in which the mount below a path has these optional fields."""
    fd = os.open(path, os.O_PATH)
    try:
        with open(f"/proc/self/fdinfo/{fd}") as file:
            number = next(line.split()[1] for line in file if line.startswith("mnt_id:"))
    finally:
        os.close(fd)
    return f"{number} 1 0:5 / / rw,relatime {optional} - ext4 /dev/sda rw\n"


def mount(path, option: str) -> tuple[OciMount, ...]:
    return (OciMount("/volume", "bind", str(path), ("rbind", option)),)


@pytest.mark.parametrize(
    ("option", "optional"),
    [
        ("rshared", "shared:7"),
        ("rslave", "shared:7"),
        ("rslave", "master:3"),
        ("rprivate", ""),
        ("ro", ""),
    ],
)
def test_what_can_propagate_is_taken(tmp_path, option, optional):
    check_propagation(mount(tmp_path, option), table(tmp_path, optional))


@pytest.mark.parametrize(
    ("option", "optional", "why"),
    [
        ("rshared", "", "not shared"),
        ("rshared", "master:3", "not shared"),
        ("rslave", "", "private mount"),
    ],
)
def test_what_cannot_is_refused(tmp_path, option, optional, why):
    with pytest.raises(InvalidArgument, match=f"/volume.*{why}"):
        check_propagation(mount(tmp_path, option), table(tmp_path, optional))


def test_a_source_that_is_gone_is_told(tmp_path):
    with pytest.raises(BackendError, match="gone"):
        check_propagation(mount(tmp_path / "gone", "rslave"))
