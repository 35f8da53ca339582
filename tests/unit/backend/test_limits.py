"""Limits of a living cgroup, on directories that look like version 2."""

from __future__ import annotations

import pytest

from polypod.backend import limits
from polypod.backend.cgroups import Cgroups, Hierarchies
from polypod.plugin.errors import BackendError, FailedPrecondition
from polypod.plugin.requests import Resources


@pytest.fixture
def group(tmp_path):
    """A cgroup of version 2 that uses 40 MB, 10 of them page cache."""
    place = tmp_path / "box"
    place.mkdir()
    for name, text in (
        ("memory.max", "max"),
        ("memory.swap.max", "max"),
        ("memory.current", "40000000"),
        ("memory.stat", "anon 30000000\nactive_file 4000000\ninactive_file 6000000\n"),
        ("cpu.weight", "100"),
        ("cpu.max", "max 100000"),
    ):
        (place / name).write_text(f"{text}\n")
    return place


@pytest.fixture
def cgroups(tmp_path):
    names = dict.fromkeys(("cpu", "memory", "pids", "cpuset"), tmp_path)
    return Cgroups(Hierarchies(2, names, (tmp_path,)))


def told(group, name: str) -> str:
    return (group / name).read_text().strip()


def test_only_what_is_asked_for_is_written(cgroups, group):
    limits.update(cgroups, "/box", Resources(cpu_shares=2048))
    assert told(group, "cpu.weight").startswith("1")
    assert told(group, "cpu.weight") != "100"
    assert told(group, "memory.max") == "max"


def test_memory_and_swap(cgroups, group):
    limits.update(
        cgroups,
        "/box",
        Resources(memory_limit_in_bytes=64_000_000, memory_swap_limit_in_bytes=80_000_000),
    )
    assert (told(group, "memory.max"), told(group, "memory.swap.max")) == ("64000000", "16000000")


def test_page_cache_can_be_given_back_and_the_rest_cannot(cgroups, group):
    limits.update(cgroups, "/box", Resources(memory_limit_in_bytes=35_000_000))
    assert told(group, "memory.max") == "35000000"
    with pytest.raises(FailedPrecondition, match="30000000 bytes are in use"):
        limits.update(cgroups, "/box", Resources(memory_limit_in_bytes=20_000_000, cpu_shares=9))
    assert told(group, "memory.max") == "35000000"
    assert told(group, "cpu.weight") == "100"


def test_a_refusal_in_the_middle_puts_back_what_was_written(cgroups, group):
    (group / "cpuset.cpus").mkdir()  # cannot be written
    with pytest.raises(BackendError, match=r"cpuset\.cpus"):
        limits.update(
            cgroups,
            "/box",
            Resources(memory_limit_in_bytes=64_000_000, cpu_shares=9, cpuset_cpus="0"),
        )
    # Files, unlike a kernel's, keep the tail of what was longer.
    assert told(group, "memory.max").startswith("max")
    assert told(group, "memory.swap.max").startswith("max")
    assert told(group, "cpu.weight").startswith("100")


def test_scores_of_processes_that_are_gone_are_no_error():
    limits.set_scores([2**22 + 1], 500)
