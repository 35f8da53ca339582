"""Host ports of the bridge on a real kernel: who reaches a pod by the node's port, and who does not.

The host, a machine on its LAN and the pods are network namespaces of the test's own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading

import pytest
from support import networks
from support.networks import Pod

from polypod.plugin.errors import FailedPrecondition, InvalidArgument
from polypod.plugin.network import NetworkContext
from polypod.plugin.requests import PortMapping, Protocol
from polypod_network.bridge import open_bridge

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_nft]

V4, V6 = socket.AF_INET, socket.AF_INET6
FAMILIES = pytest.mark.parametrize("family", [V4, V6], ids=["IPv4", "IPv6"])
NODE = {V4: "192.0.2.1", V6: "2001:db8::1"}
LOOPBACK = {V4: "127.0.0.1", V6: "::1"}
PORT, TARGET = 8080, 80
KINDS = {
    "tcp": (Protocol.TCP, socket.SOCK_STREAM, 0),
    "udp": (Protocol.UDP, socket.SOCK_DGRAM, 0),
    "sctp": (Protocol.SCTP, socket.SOCK_STREAM, 132),
}
PATIENCE_S = 5
NOBODY = ("", "")
NEVER_S = 0.3
"""How long nothing may come where nothing can."""


@pytest.fixture
def lan(host):
    """A machine beside the host: 192.0.2.2 and 2001:db8::2."""
    other = Pod()
    networks.run("ip", "link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
    networks.run("ip", "addr", "add", f"{NODE[V4]}/24", "dev", "lan0")
    networks.run("ip", "addr", "add", f"{NODE[V6]}/64", "dev", "lan0", "nodad")
    networks.run("ip", "link", "set", "lan0", "up")
    networks.run("ip", "link", "set", "lan1", "netns", f"/proc/{os.getpid()}/fd/{other.fd}")

    def set_up():
        networks.run("ip", "addr", "add", "192.0.2.2/24", "dev", "lan1")
        networks.run("ip", "addr", "add", "2001:db8::2/64", "dev", "lan1", "nodad")
        networks.run("ip", "link", "set", "lan1", "up")
        networks.run("ip", "link", "set", "lo", "up")

    other.inside(set_up)
    yield other
    other.close()


@pytest.fixture
async def network(tmp_path, host):
    opened = await open_bridge(context(tmp_path))
    yield opened
    await opened.destroy()
    await opened.close()


def context(path):
    return NetworkContext({"subnets": ["10.213.7.0/28", "fd13:7::/64"]}, path, path)


def mapping(kind="tcp", host_ip="", port=PORT, target=TARGET):
    return PortMapping(KINDS[kind][0], target, port, host_ip)


@contextlib.contextmanager
def server(pod, kind="tcp", family=V4, name=b"pod"):
    """Answer whoever comes to the pod's port with a name and the address that he comes from."""
    _, type_, protocol = KINDS[kind]
    sock = pod.socket(type_, family, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("::" if family == V6 else "0.0.0.0", TARGET))
    if type_ == socket.SOCK_STREAM:
        sock.listen()
    stop = threading.Event()

    def serve():
        sock.settimeout(0.02)
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                if type_ == socket.SOCK_DGRAM:
                    _, peer = sock.recvfrom(1 << 16)
                    sock.sendto(name + b" " + peer[0].encode(), peer)
                else:
                    connection, peer = sock.accept()
                    with connection:
                        connection.sendall(name + b" " + peer[0].encode())

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        sock.close()


def ask(address, kind="tcp", *, machine=None, port=PORT, patience_s=PATIENCE_S):
    """Return who answers at an address, and what the caller's address is to him; nobody: ("", "")."""
    _, type_, protocol = KINDS[kind]
    family = V6 if ":" in address else V4
    if machine is None:
        sock = socket.socket(family, type_, protocol)
    else:
        sock = machine.socket(type_, family, protocol)
    with sock:
        sock.settimeout(patience_s)
        try:
            sock.connect((address, port))
            if type_ == socket.SOCK_DGRAM:
                sock.send(b"who are you")
            name, _, peer = sock.recv(1 << 16).decode().partition(" ")
        except OSError:
            return "", ""
        return name, peer


def skip_without_sctp(kind):
    if kind == "sctp":
        try:
            socket.socket(V4, socket.SOCK_STREAM, 132).close()
        except OSError as error:
            pytest.skip(f"the kernel has no SCTP: {error}")


@FAMILIES
@pytest.mark.parametrize("kind", KINDS)
async def test_the_lan_reaches_the_pod_and_is_seen(network, pods, lan, kind, family):
    skip_without_sctp(kind)
    pod = pods()
    await network.attach(pod.request(mapping(kind)))
    with server(pod, kind, family):
        assert ask(NODE[family], kind, machine=lan) == (
            "pod",
            NODE[family].removesuffix("1") + "2",
        )
    await network.detach(pod.id, None)


@FAMILIES
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["node", "loopback"])
async def test_the_host_itself_reaches_the_pod(network, pods, lan, kind, family, where):
    skip_without_sctp(kind)
    pod = pods()
    await network.attach(pod.request(mapping(kind)))
    with server(pod, kind, family):
        answer = ask({"node": NODE, "loopback": LOOPBACK}[where][family], kind)
    assert answer[0] == "pod"
    await network.detach(pod.id, None)


@FAMILIES
@pytest.mark.parametrize("kind", KINDS)
async def test_pods_reach_it_by_the_node_and_so_does_the_pod_itself(
    network, pods, lan, kind, family
):
    skip_without_sctp(kind)
    pod, neighbour = pods(), pods()
    await network.attach(pod.request(mapping(kind)))
    await network.attach(neighbour.request())
    with server(pod, kind, family):
        for machine in (neighbour, pod):
            answer = ask(NODE[family], kind, machine=machine)
            assert answer[0] == "pod"
    for each in (pod, neighbour):
        await network.detach(each.id, None)


async def test_pods_that_meet_directly_see_each_other(network, pods, lan):
    """Only what came by a host port is masqueraded."""
    pod, neighbour = pods(), pods()
    attachment = await network.attach(pod.request(mapping()))
    other = await network.attach(neighbour.request())
    with server(pod):
        direct = ask(attachment.ips[0], machine=neighbour, port=TARGET)
        assert direct == ("pod", other.ips[0])
    for each in (pod, neighbour):
        await network.detach(each.id, None)


async def test_a6_the_loopback_is_not_exposed(network, pods, lan):
    """A6: neither the node's own services on 127.0.0.1 nor a mapping of 127.0.0.1 is open to others."""
    pod, neighbour = pods(), pods()
    await network.attach(pod.request(mapping(host_ip="127.0.0.1"), mapping(port=9090)))
    await network.attach(neighbour.request())
    node_only = socket.create_server(("127.0.0.1", 7070))
    for machine, gate in ((lan, NODE[V4]), (neighbour, "10.213.7.1")):
        device = "lan1" if machine is lan else "eth0"

        def send_loopback_abroad(gate=gate, device=device):
            # As an attacker would: his own loopback is given up, 127.0.0.1 is routed to the node.
            networks.run("ip", "addr", "flush", "dev", "lo")
            networks.run("sysctl", "-qw", f"net.ipv4.conf.{device}.route_localnet=1")
            networks.run("ip", "route", "add", "127.0.0.1", "via", gate, "dev", device)

        machine.inside(send_loopback_abroad)
        with server(pod):
            for port in (PORT, 9090, 7070):
                assert ask("127.0.0.1", machine=machine, port=port, patience_s=NEVER_S) == NOBODY
            assert ask(NODE[V4], machine=machine, port=9090) != NOBODY
            assert ask(NODE[V4], machine=machine, patience_s=NEVER_S) == NOBODY
    with server(pod):
        assert ask("127.0.0.1") == ("pod", "10.213.7.1")
    node_only.close()
    for name in os.listdir("/proc/sys/net/ipv4/conf"):
        with open(f"/proc/sys/net/ipv4/conf/{name}/route_localnet") as file:
            assert file.read().strip() == "0"
    for each in (pod, neighbour):
        await network.detach(each.id, None)


@FAMILIES
async def test_a_host_ip_opens_that_address_alone(network, pods, lan, family):
    pod = pods()
    await network.attach(pod.request(mapping(host_ip=NODE[family])))
    other = {V4: "10.213.7.1", V6: "fd13:7::1"}[family]
    with server(pod, family=family):
        assert ask(NODE[family]) != NOBODY
        assert ask(other, patience_s=NEVER_S) == NOBODY
    await network.detach(pod.id, None)


async def test_what_the_node_itself_serves_stays_its_own(network, pods, lan):
    """A service of the node on another port is reached by its loopback and its address as ever."""
    pod = pods()
    await network.attach(pod.request(mapping()))
    with socket.create_server(("0.0.0.0", 7070)) as service:
        for address in (NODE[V4], "127.0.0.1"):
            with socket.create_connection((address, 7070), PATIENCE_S) as client:
                connection, peer = service.accept()
                assert peer == client.getsockname()
                connection.close()
    await network.detach(pod.id, None)


async def test_a_port_belongs_to_one_pod_until_it_is_detached(network, pods, lan):
    first, second = pods(), pods()
    await network.attach(first.request(mapping()))
    with pytest.raises(FailedPrecondition, match=f"host port 8080/TCP.*{first.id}"):
        await network.attach(second.request(mapping(host_ip=NODE[V4])))
    assert await network.attached() == [first.id]
    await network.detach(first.id, None)
    with server(first):
        assert ask(NODE[V4], patience_s=NEVER_S) == NOBODY
    await network.attach(second.request(mapping()))
    with server(second, name=b"second"):
        assert ask(NODE[V4])[0] == "second"
    await network.detach(second.id, None)


async def test_a_udp_client_that_never_stops_reaches_the_new_pod(network, pods, lan):
    """One socket, one port: connection tracking would send it to the old pod for ever."""
    first, second = pods(), pods()
    client = lan.socket(socket.SOCK_DGRAM)
    client.settimeout(PATIENCE_S)
    client.connect((NODE[V4], PORT))
    # Before there is a mapping: an entry that leads to the host itself.
    client.send(b"anybody there?")
    with contextlib.suppress(OSError):
        client.recv(100)
    for pod, name in ((first, b"first"), (second, b"second")):
        await network.attach(pod.request(mapping("udp")))
        with server(pod, "udp", name=name):
            client.send(b"who are you")
            assert client.recv(100).split()[0] == name
        await network.detach(pod.id, None)
    client.close()


async def test_host_ports_survive_a_restart_and_a_flushed_ruleset(tmp_path, pods, lan):
    network = await open_bridge(context(tmp_path))
    pod = pods()
    await network.attach(pod.request(mapping()))
    await network.close()
    if shutil.which("nft"):
        networks.run("nft", "flush", "ruleset")
    network = await open_bridge(context(tmp_path))
    with server(pod):
        assert ask(NODE[V4], machine=lan) != NOBODY
        if shutil.which("nft"):
            networks.run("nft", "flush", "ruleset")
            assert (await network.status()).ready
            assert ask(NODE[V4], machine=lan) != NOBODY
    await network.detach(pod.id, None)
    with server(pod):
        assert ask(NODE[V4], patience_s=NEVER_S) == NOBODY
    await network.destroy()
    await network.close()


async def test_an_attach_after_a_flushed_ruleset_mends_it(network, pods, lan):
    if shutil.which("nft") is None:
        pytest.skip("nft(8), which flushes, is not installed")
    first, second = pods(), pods()
    await network.attach(first.request(mapping()))
    networks.run("nft", "flush", "ruleset")
    await network.attach(second.request(mapping(port=8081)))
    with server(first, name=b"first"), server(second, name=b"second"):
        assert ask(NODE[V4])[0] == "first"
        assert ask(NODE[V4], port=8081)[0] == "second"
    for each in (first, second):
        await network.detach(each.id, None)


async def test_two_host_ports_may_lead_to_one_port(network, pods, lan):
    pod = pods()
    await network.attach(pod.request(mapping(), mapping(port=8081), mapping()))
    with server(pod):
        assert ask(NODE[V4])[0] == ask(NODE[V4], port=8081)[0] == "pod"
    await network.detach(pod.id, None)
    await network.detach(pod.id, None)


async def test_without_masquerading_host_ports_work_all_the_same(tmp_path, pods, lan):
    options = {"subnets": ["10.213.7.0/28"], "masquerade": False}
    network = await open_bridge(NetworkContext(options, tmp_path, tmp_path))
    pod, neighbour = pods(), pods()
    await network.attach(pod.request(mapping()))
    await network.attach(neighbour.request())
    with server(pod):
        for machine in (None, lan, neighbour, pod):
            assert ask(NODE[V4], machine=machine)[0] == "pod"
    for each in (pod, neighbour):
        await network.detach(each.id, None)
    await network.destroy()
    await network.close()


async def test_people_can_read_the_tables(network, pods):
    if shutil.which("nft") is None:
        pytest.skip("nft(8), which reads the table back, is not installed")
    pod = pods()
    attachment = await network.attach(
        pod.request(mapping(), mapping("udp", "192.0.2.1", 53), mapping("sctp", port=9))
    )
    table = network._options.table
    listing = networks.run("nft", "-n", "list", "table", "ip", table)
    pod4, pod6 = attachment.ips
    assert f"6 . 8080 : {pod4} . 80" in listing
    assert f"192.0.2.1 . 17 . 53 : {pod4} . 80" in listing
    assert f"132 . 9 : {pod4} . 80" in listing
    assert f"6 . 8080 : {pod6} . 80" in networks.run("nft", "-n", "list", "table", "ip6", table)
    assert "fib daddr type local jump host_ports" in listing or "fib daddr type 2" in listing
    await network.detach(pod.id, None)
    assert pod4 not in networks.run("nft", "list", "table", "ip", table)


async def test_what_cannot_be_mapped_takes_no_address(network, pods):
    pod = pods()
    with pytest.raises(InvalidArgument, match="no IP address"):
        await network.attach(pod.request(mapping(host_ip="lan")))
    assert await network.attached() == []
