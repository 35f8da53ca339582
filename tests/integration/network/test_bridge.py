"""The bridge on a real kernel, in a network namespace of the test's own."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess

import pytest
from support.networks import Pod

from polypod.plugin.errors import ResourceExhausted
from polypod.plugin.network import AttachRequest, NetworkContext
from polypod.plugin.requests import PodMetadata
from polypod_network.bridge import link_name, open_bridge

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_nft]


@pytest.fixture
async def network(tmp_path, host):
    options = {"subnets": ["10.213.7.0/28", "fd13:7::/64"]}
    opened = await open_bridge(NetworkContext(options=options, root=tmp_path, state=tmp_path))
    yield opened
    await opened.destroy()
    await opened.close()


def _table(network):
    if shutil.which("nft") is None:
        pytest.skip("nft(8), which reads the table back, is not installed")
    answer = subprocess.run(
        ["nft", "list", "table", "ip", network._options.table],
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_attached_pods_reach_each_other(network, pods, family):
    one, two = pods(), pods()
    at = 0 if family == socket.AF_INET else 1
    first = await network.attach(one.request())
    second = await network.attach(two.request())
    assert first.ips != second.ips
    with one.socket(family=family) as server, two.socket(family=family) as client:
        server.bind((first.ips[at], 8080))
        server.listen()
        client.settimeout(5)
        client.connect((first.ips[at], 8080))
        peer, address = server.accept()
        peer.close()
    assert address[0] == second.ips[at]
    await network.detach(one.id, first)
    await network.detach(two.id, second)


async def test_attach_twice_gives_the_same_addresses_once(network, pods):
    pod = pods()
    attachment = await network.attach(pod.request())
    assert len(attachment.ips) == 2
    assert await network.attached() == [pod.id]
    await network.detach(pod.id, attachment)
    await network.detach(pod.id, attachment)
    assert await network.attached() == []


async def test_failed_attach_leaves_neither_lease_nor_link(network, pods):
    pod = pods()
    broken = AttachRequest(pod.id, PodMetadata("a", "b", "c"), os.open("/dev/null", 0), 0)
    with pytest.raises(OSError, match="veth"):
        await network.attach(broken)
    os.close(broken.namespace)
    assert await network.attached() == []
    assert link_name(pod.id) not in [name for _, name in socket.if_nameindex()]


async def test_cancelled_attach_leaves_neither_lease_nor_link(network, pods):
    pod = pods()
    task = asyncio.ensure_future(network.attach(pod.request()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await network.attached() == []
    assert link_name(pod.id) not in [name for _, name in socket.if_nameindex()]


async def test_full_subnet_is_resource_exhausted(network, pods):
    made = [pods() for _ in range(14)]
    for pod in made[:13]:
        await network.attach(pod.request())
    with pytest.raises(ResourceExhausted):
        await network.attach(made[13].request())
    for pod in made[:13]:
        await network.detach(pod.id, None)


async def test_detach_works_when_the_namespace_is_gone(network):
    pod = Pod()
    attachment = await network.attach(pod.request())
    pod.close()
    await network.detach(pod.id, attachment)
    assert await network.attached() == []


async def test_firewall_set_follows_the_pods(network, pods):
    pod = pods()
    attachment = await network.attach(pod.request())
    assert attachment.ips[0] in _table(network)
    assert "masquerade" in _table(network)
    await network.detach(pod.id, attachment)
    assert attachment.ips[0] not in _table(network)


async def test_reopened_network_knows_its_leases(tmp_path, pods):
    options = {"subnets": ["10.213.8.0/24"]}
    context = NetworkContext(options=options, root=tmp_path, state=tmp_path)
    first = await open_bridge(context)
    pod = pods()
    attachment = await first.attach(pod.request())
    await first.close()
    second = await open_bridge(context)
    assert await second.attached() == [pod.id]
    assert (await second.status()).ready
    await second.detach(pod.id, attachment)
    await second.destroy()
    await second.close()


async def test_status_says_when_the_bridge_is_gone(network):
    await network.destroy()
    status = await network.status()
    assert (status.ready, status.reason) == (False, "BridgeMissing")


async def test_attach_makes_a_deleted_bridge_again(network, pods):
    await network.destroy()
    pod = pods()
    attachment = await network.attach(pod.request())
    assert (await network.status()).ready
    await network.detach(pod.id, attachment)


async def test_configure_takes_pod_cidrs_only_without_own_subnets(tmp_path, network):
    await network.configure(["10.99.0.0/24"])
    assert str(network._options.subnets[0]) == "10.213.7.0/28"
    (tmp_path / "other").mkdir()
    other = await open_bridge(NetworkContext(options={}, root=tmp_path / "other", state=tmp_path))
    await other.configure(["10.213.9.0/24"])
    assert str(other._options.subnets[0]) == "10.213.9.0/24"
    await other.destroy()
    await other.close()
