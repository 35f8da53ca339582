"""fly without a kernel: what it declares, refuses and opens."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from polypod.plugin import Feature, InvalidArgument, RootfsForm, RuntimeContext, Stdio
from polypod.testing.fake_supervisor import FakeSupervisor
from polypod_fly.host import Group, Opened
from polypod_fly.plugin import plugin


def context(place: Path, **options: object) -> RuntimeContext:
    return RuntimeContext("fly", options, place, place, "/polypod", FakeSupervisor())


def test_it_declares_no_isolation():
    (kind,) = plugin.polypod_runtime_types()
    assert kind.rootfs_forms == (RootfsForm.OVERLAY, RootfsForm.DIRECTORY)
    assert kind.sandbox_namespaces == frozenset()
    isolating = {Feature.SECCOMP, Feature.RESOURCES, Feature.DEVICES, Feature.SHARED_PID}
    assert not isolating & kind.features


async def test_options_are_refused(tmp_path):
    (kind,) = plugin.polypod_runtime_types()
    with pytest.raises(InvalidArgument, match=r"handlers\.fly\.options"):
        await kind.open(context(tmp_path, path="x"))


async def test_an_opened_one_has_nothing_and_closes_twice(tmp_path):
    (kind,) = plugin.polypod_runtime_types()
    backend = await kind.open(context(tmp_path))
    found = await backend.list()
    assert (found.sandboxes, found.containers) == ({}, {})
    await backend.close()
    await backend.close()


def test_descriptors_are_numbered_and_only_our_own_closed():
    ours, lent = os.open("/dev/null", os.O_RDONLY), os.open("/dev/null", os.O_RDONLY)
    with Opened() as opened:
        assert (opened.take(ours), opened.lend(lent)) == ("fd:0", "fd:1")
        streams = opened.streams(Stdio(stdout=lent))
        assert (streams.stdin, streams.stdout, streams.stderr) == ("", "fd:2", "")
        assert opened.fds == [ours, lent, lent]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(ours)
    os.close(lent)


def test_a_group_that_is_not_there_has_nobody_and_is_removed():
    group = Group("/polypod-no-such-group/box")
    group.kill(9)
    group.remove()
