"""fly without a kernel: what it declares, refuses and opens."""

from __future__ import annotations

from pathlib import Path

import pytest

from polypod.plugin import Feature, InvalidArgument, RootfsForm, RuntimeContext
from polypod.testing.fake_supervisor import FakeSupervisor
from polypod_fly.plugin import plugin


def context(place: Path, **options: object) -> RuntimeContext:
    return RuntimeContext("fly", options, place, place, "/polypod", FakeSupervisor())


def test_it_declares_no_isolation():
    (kind,) = plugin.polypod_runtime_types()
    assert kind.rootfs_forms[:2] == (RootfsForm.OVERLAY, RootfsForm.DIRECTORY)
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
