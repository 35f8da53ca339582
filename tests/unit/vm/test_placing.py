"""What runs a machine is put into its pod's cgroup."""

from __future__ import annotations

import pytest

from polypod.backend.cgroups import Cgroups, Hierarchies
from polypod.plugin import BackendError
from polypod_vm.placing import PodCgroups


@pytest.fixture
def placed(tmp_path):
    """Two hierarchies in a directory."""
    mounts = {name: tmp_path / name for name in ("memory", "pids")}
    for mount in mounts.values():
        (mount / "ours/pod").mkdir(parents=True)
    made = PodCgroups("/ours")
    made.cgroups = Cgroups(Hierarchies(1, mounts, tuple(mounts.values()), None))
    return made


def test_a_process_is_put_into_every_hierarchy(placed, tmp_path):
    (tmp_path / "pid").write_text("4711\n")
    placed.add("/ours/pod", tmp_path / "pid")
    for name in ("memory", "pids"):
        assert (tmp_path / name / "ours/pod/cgroup.procs").read_text() == "4711"


@pytest.mark.parametrize("text", [None, "", "no number"], ids=["no file", "empty", "no number"])
def test_one_that_nobody_knows_is_an_error(placed, tmp_path, text):
    if text is not None:
        (tmp_path / "pid").write_text(text)
    with pytest.raises(BackendError, match="cgroup /ours/pod"):
        placed.add("/ours/pod", tmp_path / "pid")


def test_a_cgroup_that_is_gone_needs_no_end(placed):
    placed.end("/ours/pod")
    placed.end("/ours/pod")
