"""Paths of namespaces for networks that want them: there while they are needed, and not a moment longer."""

from __future__ import annotations

import os

import pytest
from support import networks

from polypod.boot.namespace_paths import NamespacePaths, bind, unbind
from polypod.plugin.errors import BackendError
from polypod.plugin.ids import new_id
from polypod.testing.memory_network import MemoryNetwork

pytestmark = pytest.mark.needs_root


class Looking(MemoryNetwork):
    """Notes what it finds at the path; fails on demand."""

    fails = False

    async def attach(self, request, /):
        self.seen = os.stat(request.path).st_ino
        if self.fails:
            raise BackendError("as told")
        return await super().attach(request)


@pytest.fixture
def inner():
    return Looking()


@pytest.fixture
def network(inner, tmp_path):
    return networks.with_paths(inner, tmp_path)


async def test_the_path_is_the_namespace_until_detach(network, inner, pods):
    pod = pods()
    attachment = await network.attach(pod.request())
    assert inner.seen == os.fstat(pod.fd).st_ino
    assert os.stat(network.path(pod.id)).st_ino == inner.seen
    await network.detach(pod.id, attachment)
    assert not network.path(pod.id).exists()
    await network.detach(pod.id, attachment)
    assert await network.attached() == []


async def test_a_failed_attach_leaves_no_path(network, inner, pods, tmp_path):
    inner.fails = True
    pod = pods()
    with pytest.raises(BackendError):
        await network.attach(pod.request())
    assert not network.path(pod.id).exists()
    assert await network.attached() == []


async def test_a_failed_detach_keeps_the_path(network, inner, pods):
    pod = pods()
    await network.attach(pod.request())
    inner.faults.fail("detach", BackendError("as told"))
    with pytest.raises(BackendError):
        await network.detach(pod.id, None)
    assert network.path(pod.id).exists()
    inner.faults.clear()
    await network.detach(pod.id, None)
    assert not network.path(pod.id).exists()


async def test_whoever_is_killed_between_marker_and_lease_is_listed(network, inner, pods, tmp_path):
    pod = pods()
    (tmp_path / "markers" / pod.id).touch()
    bind(pod.fd, network.path(pod.id))
    again = networks.with_paths(inner, tmp_path)
    assert await again.attached() == [pod.id]
    await again.detach(pod.id, None)
    assert await again.attached() == []
    assert not network.path(pod.id).exists()


async def test_what_is_bound_twice_is_unbound_at_once(pods, tmp_path):
    pod, path = pods(), tmp_path / "netns"
    bind(pod.fd, path)
    networks.run("mount", "--bind", f"/proc/{os.getpid()}/fd/{pod.fd}", str(path))
    unbind(path)
    assert not path.exists()
    unbind(path)


async def test_a_stale_path_is_replaced(network, pods):
    old, new = pods(), pods()
    bind(old.fd, network.path(new.id))
    await network.attach(new.request())
    assert os.stat(network.path(new.id)).st_ino == os.fstat(new.fd).st_ino
    await network.detach(new.id, None)


async def test_a_descriptor_that_is_no_namespace_leaves_no_path(inner, tmp_path):
    network = NamespacePaths(inner, tmp_path / "markers", tmp_path / "netns")
    pod = networks.Pod(new_id())
    request = pod.request()
    pod.close()
    with pytest.raises(OSError, match="bind a network namespace"):
        await network.attach(request)
    assert await network.attached() == []
    assert os.listdir(tmp_path / "netns") == []
