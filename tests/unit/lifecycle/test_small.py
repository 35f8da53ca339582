"""The small parts: failpoint grammar, prefix index, directory removal, explain, statistics."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from polypod.lifecycle.clock import SystemClock
from polypod.lifecycle.explain import Explain
from polypod.lifecycle.failpoints import Failpoints
from polypod.lifecycle.prefixes import PrefixIndex
from polypod.lifecycle.stats import Samples
from polypod.lifecycle.steps import step
from polypod.lifecycle.trees import remove_tree
from polypod.plugin.errors import BackendError, InvalidArgument, NotFound
from polypod.plugin.runtime import ContainerUsage


async def test_failpoint_chain_is_used_link_by_link():
    points = Failpoints(SystemClock(), "sandbox.ready=2*error(no luck)->1*enospc->off")
    for error in ("no luck", "no luck", "No space left"):
        with pytest.raises((BackendError, OSError), match=error):
            await points.hit("sandbox.ready")
    await points.hit("sandbox.ready")
    await points.hit("sandbox.created")


@pytest.mark.parametrize(
    "rules", ["nowhere=off", "sandbox.ready", "sandbox.ready=explode", "sandbox.ready=delay(x)"]
)
def test_failpoint_rules_that_make_no_sense_are_refused(rules):
    with pytest.raises(InvalidArgument):
        Failpoints(SystemClock(), rules)


def test_prefix_index_finds_unique_prefixes_alone():
    index: PrefixIndex[int] = PrefixIndex("thing")
    for number, name in enumerate(("abc", "abd", "b")):
        index.add(name, number)
    assert index.require("abd") == 1
    assert index.find("b") == 2
    assert index.find("x") is None
    assert list(index.newest_first()) == [2, 1, 0]
    with pytest.raises(InvalidArgument, match="ambiguous"):
        index.find("ab")
    index.discard("abd")
    index.discard("abd")
    assert index.find("ab") == 0
    with pytest.raises(NotFound, match="thing 'abd'"):
        index.require("abd")


def test_remove_tree_never_follows_a_link(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/file").write_text("y")
    (tree / "a/link").symlink_to(outside)
    (tree / "dangling").symlink_to("nowhere")
    remove_tree(tree)
    remove_tree(tree)
    assert not tree.exists()
    assert (outside / "precious").read_text() == "x"


def deep(place: Path, levels: int) -> None:
    """Make a chain of directories, each with a file: deeper than a path, and than descriptors, can be."""
    here = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=here)
        os.close(os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=here))
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def test_a_tree_of_any_depth_goes(tmp_path):
    """A container makes what it likes in its writable layer: also 10,000 levels."""
    (tmp_path / "tree").mkdir()
    deep(tmp_path / "tree", 10_000)
    before = len(os.listdir("/proc/self/fd"))
    remove_tree(tmp_path / "tree")
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_step_names_what_failed_and_keeps_the_errno():
    explain = Explain(SystemClock())

    def fail(error):
        with step(explain, "sandbox 1", "attach"):
            raise error

    with pytest.raises(OSError, match="sandbox 1: attach: No space") as caught:
        fail(OSError(28, "No space left on device"))
    assert caught.value.errno == 28
    with (
        pytest.raises(BackendError, match="attach: ZeroDivisionError"),
        step(explain, "sandbox 1", "attach"),
    ):
        raise ZeroDivisionError
    stages = explain.long()["stages"]
    assert [stage["name"] for stage in stages] == ["attach", "attach"]
    assert "No space" in stages[0]["error"]


def test_samples_give_a_rate_from_two_and_start_anew_when_a_counter_falls():
    def usage(seconds, cpu_ns):
        return ContainerUsage(int(seconds * 1e9), cpu_usage_core_ns=cpu_ns)

    first = Samples.of(usage(1, 100))
    assert first.nano_cores is None
    assert first.followed_by(usage(1.01, 200)).nano_cores is None
    assert first.followed_by(usage(3, 2_000_000_100)).nano_cores == 1_000_000_000
    assert first.followed_by(usage(3, 50)).nano_cores is None
    assert first.followed_by(usage(3, None)).nano_cores is None
