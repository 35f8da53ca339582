"""A real server whose pods are attached by CNI: paths, restarts, failures, and nothing left at the end."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from support import networks
from support.server import Server

from polypod.client import CriClient, CriError
from polypod.client.messages import pb

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_overlay,
    pytest.mark.needs_nft,
    pytest.mark.needs_cni,
]
NETNS = Path("/run/netns")


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def grpc_is_awake():
    """gRPC opens descriptors with its first channel: before tests are compared, and until the end."""
    grpc.aio.init_grpc_aio()


@pytest.fixture
def cni(tmp_path):
    return networks.Cni(tmp_path)


@pytest.fixture
async def server(cni, host):
    bin_dirs = [str(cni.bin), *networks.CNI_BIN_DIRS]
    made = Server(
        [
            "handlers.namespaces.type=namespaces",
            "server.default_handler=namespaces",
            "network.type=cni",
            f"network.cni.conf_dir={cni.conf}",
            f"network.cni.bin_dirs={bin_dirs}",
        ]
    )
    made.launch()
    await made.ready()
    yield made
    await asyncio.to_thread(made.take_down)
    assert cni.leases() == []
    assert paths() == []


@pytest.fixture
async def cri(server):
    async with CriClient(server.endpoint) as client:
        yield client


def paths():
    return sorted(each.name for each in NETNS.glob("polypod-*")) if NETNS.is_dir() else []


def sandbox(name, *ports):
    metadata = pb.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="default")
    mappings = [pb.PortMapping(host_port=one, container_port=two) for one, two in ports]
    return pb.PodSandboxConfig(
        metadata=metadata,
        hostname=name,
        port_mappings=mappings,
        linux=pb.LinuxPodSandboxConfig(),
    )


async def network_ready(cri):
    conditions = (await cri.status()).status.conditions
    return next(each for each in conditions if each.type == "NetworkReady")


async def test_a_pod_by_cni_from_start_to_end(server, cri, cni):
    condition = await network_ready(cri)
    assert (condition.status, condition.reason) == (False, "NetworkPluginNotReady")
    with pytest.raises(CriError, match="no CNI configuration"):
        await cri.run_sandbox(sandbox("early"))
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": False}
    plugins = [portmap] if shutil.which("iptables") else []
    cni.configure(cni.bridge(), *plugins)
    assert (await network_ready(cri)).status
    pod = await cri.run_sandbox(sandbox("web", (8080, 80)))
    status = (await cri.sandbox_status(pod)).status.network
    assert (status.ip, [each.ip for each in status.additional_ips]) == ("10.214.0.2", ["fd14::2"])
    assert paths() == [f"polypod-{pod}"]
    if plugins:
        reach(pod, status.ip)
    # Killed, it finds everything again; the pod's connection was never touched.
    server.kill()
    server.launch()
    await server.ready()
    assert (await cri.sandbox_status(pod)).status.network.ip == "10.214.0.2"
    await cri.stop_sandbox(pod)
    assert (cni.leases(), paths()) == ([], [])
    await cri.remove_sandbox(pod)


def reach(pod, address):
    """Connect to a host port; the pod answers."""

    def listen():
        namespace = os.open(NETNS / f"polypod-{pod}", os.O_RDONLY)
        networks.enter(namespace)
        os.close(namespace)
        return socket.create_server((address, 80))

    with networks.in_thread(listen) as listener:
        socket.create_connection(("10.214.0.1", 8080), 5).close()
        listener.accept()[0].close()


@pytest.mark.parametrize("plan", ["fail", "silent"])
async def test_f16_a_pod_whose_add_fails_leaves_nothing(server, cri, cni, plan):
    cni.configure(cni.bridge(), cni.script())
    cni.plan("ADD", plan)
    with pytest.raises(CriError, match="network 'net': plugin 'faulty': ADD"):
        await cri.run_sandbox(sandbox("web"))
    assert (list(await cri.list_sandboxes()), cni.leases(), paths()) == ([], [], [])
    cni.plan("ADD", "pass")
    await cri.run_sandbox(sandbox("web"))


async def test_f16_a_pod_whose_del_fails_is_removable_later(server, cri, cni):
    cni.configure(cni.bridge(), cni.script())
    pod = await cri.run_sandbox(sandbox("web"))
    cni.plan("DEL", "fail")
    for _ in range(2):
        with pytest.raises(CriError, match="plugin 'faulty': DEL: the switch is on fire"):
            await cri.stop_sandbox(pod)
        assert paths() == [f"polypod-{pod}"]
    cni.plan("DEL", "pass")
    await cri.remove_sandbox(pod)
    assert (cni.leases(), paths()) == ([], [])


async def test_f16_a_server_killed_during_add_takes_it_back(server, cri, cni):
    cni.configure(cni.bridge(), cni.script())
    cni.plan("ADD", "hang")
    running = asyncio.ensure_future(cri.run_sandbox(sandbox("web")))
    while not (cni.bin / "hanging").exists() and not running.done():
        await asyncio.sleep(0.01)
    assert len(cni.leases()) == 2
    server.kill()
    for pid in (cni.bin / "hanging").read_text().split():
        os.kill(int(pid), 9)  # our own plugin: with the server nobody is left to end it
    with pytest.raises(CriError):
        await running
    cni.plan("ADD", "pass")
    server.launch()
    await server.ready()
    for pod in await cri.list_sandboxes():
        await cri.remove_sandbox(pod.id)
    assert (cni.leases(), paths()) == ([], [])
