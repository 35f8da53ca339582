"""What the containers of a pod share, seen from inside: network, names, processes, memory, parameters."""

from __future__ import annotations

import os

import pytest
from conformance.pods import Pods, eventually

from polypod.client import pb
from polypod.plugin.runtime import Feature


@pytest.fixture(autouse=True)
def real(handler) -> None:
    handler.needs_kernel()


def security(**modes: int) -> pb.LinuxSandboxSecurityContext:
    options = pb.NamespaceOption(**{"pid": pb.CONTAINER, **modes})
    return pb.LinuxSandboxSecurityContext(namespace_options=options)


async def addresses(pod) -> tuple[str, str]:
    network = (await pod.status()).network
    return network.ip, network.additional_ips[0].ip


SERVE = "mkdir /www && echo hello > /www/index.html && exec httpd -f -p {port} -h /www"


@pytest.mark.parametrize("family", [0, 1], ids=["v4", "v6"])
async def test_two_pods_talk_over_the_pod_network(pods: Pods, cri, family: int):
    server, client = await pods.run("server"), await pods.run("client")
    await server.start(SERVE.format(port=8080), name="web")
    address = (await addresses(server))[family]
    host = f"[{address}]" if family else address
    ask = f"until wget -q -O - http://{host}:8080/ 2>/dev/null; do sleep 0.05; done"
    assert (await client.run(f"{ask}; exit 0")).out == "hello\n"


async def test_two_containers_of_a_pod_share_its_network(pods: Pods):
    pod = await pods.run()
    await pod.start(SERVE.format(port=8081), name="web")
    ask = "until wget -q -O - http://127.0.0.1:8081/ 2>/dev/null; do sleep 0.05; done"
    assert (await pod.run(ask, name="ask")).out == "hello\n"
    links = await pod.run("ip -o addr", name="links")
    for address in await addresses(pod):
        assert f" {address}/" in links.out


async def test_the_host_reaches_a_pod(pods: Pods):
    import urllib.request

    pod = await pods.run()
    await pod.start(SERVE.format(port=8082), name="web")
    address, _v6 = await addresses(pod)

    async def answered() -> str:
        try:
            with urllib.request.urlopen(f"http://{address}:8082/", timeout=2) as answer:
                return answer.read().decode()
        except OSError:
            return ""

    assert await eventually(answered, "an answer") == "hello\n"


async def test_the_hosts_network(pods: Pods, handler):
    handler.needs(Feature.HOST_NETWORK)
    pod = await pods.run(security=security(network=pb.NODE), hostname="")
    ended = await pod.run("readlink /proc/self/ns/net; hostname")
    assert ended.out.splitlines() == [os.readlink("/proc/self/ns/net"), os.uname().nodename]


async def test_host_name_and_hosts(pods: Pods):
    pod = await pods.run("named-so")
    script = "hostname; cat /etc/hostname; cat /etc/hosts"
    name, file, *hosts = (await pod.run(script)).out.splitlines()
    assert (name, file) == ("named-so", "named-so")
    entries = [line.split() for line in hosts]
    assert ["127.0.0.1", "localhost"] in entries
    for address in await addresses(pod):
        assert [address, "named-so"] in entries


async def test_dns_config_is_in_resolv_conf(pods: Pods):
    config = pb.DNSConfig(
        servers=["10.1.2.3", "fd00::53"],
        searches=["a.example", "b.example"],
        options=["ndots:5", "edns0"],
    )
    pod = await pods.run(dns_config=config)
    lines = (await pod.run("cat /etc/resolv.conf")).out.splitlines()
    assert sorted(lines) == sorted(
        [
            "nameserver 10.1.2.3",
            "nameserver fd00::53",
            "search a.example b.example",
            "options ndots:5 edns0",
        ]
    )


async def test_without_a_dns_config_the_nodes_counts(pods: Pods):
    pod = await pods.run()
    with open("/etc/resolv.conf") as file:
        assert (await pod.run("cat /etc/resolv.conf")).out == file.read()


async def test_shared_processes(pods: Pods, handler):
    handler.needs(Feature.SHARED_PID)
    pod = await pods.run(security=security(pid=pb.POD))
    await pod.start("exec sleep 4321", name="one")
    seen = await pod.run("ps -o args", name="two")
    assert "sleep 4321" in seen.out
    assert (await pod.run("kill -0 1 && echo $$", name="three")).out != "1\n"


async def test_processes_of_its_own(pods: Pods):
    pod = await pods.run()
    await pod.start("exec sleep 4321", name="one")
    seen = await pod.run("echo $$; ps -o args", name="two")
    assert seen.out.startswith("1\n")
    assert "4321" not in seen.out


async def test_processes_of_another_container(pods: Pods, handler):
    handler.needs(Feature.TARGET_PID)
    pod = await pods.run()
    target = await pod.start("exec sleep 4321", name="target")
    options = pb.NamespaceOption(pid=pb.TARGET, target_id=target)
    context = pb.LinuxContainerSecurityContext(namespace_options=options)
    seen = await pod.run("ps -o args", name="debug", security=context)
    assert "sleep 4321" in seen.out


async def test_the_hosts_processes(pods: Pods, handler):
    handler.needs(Feature.HOST_PID)
    pod = await pods.run(security=security(pid=pb.NODE))
    ended = await pod.run("readlink /proc/self/ns/pid")
    assert ended.out.strip() == os.readlink("/proc/self/ns/pid")


async def test_shared_memory_is_the_pods(pods: Pods):
    pod, other = await pods.run("one"), await pods.run("two")
    await pod.start("echo here > /dev/shm/note; exec sleep 1000", name="writer")
    ask = "until test -s /dev/shm/note; do sleep 0.02; done; cat /dev/shm/note"
    assert (await pod.run(ask, name="reader")).out == "here\n"
    assert (await other.run("ls /dev/shm")).out == ""
    spaces = [
        (await each.run("readlink /proc/self/ns/ipc", name="space")).out for each in (pod, other)
    ]
    assert spaces[0] != spaces[1]


async def test_the_hosts_ipc(pods: Pods, handler):
    handler.needs(Feature.HOST_IPC)
    pod = await pods.run(security=security(ipc=pb.NODE))
    ended = await pod.run("readlink /proc/self/ns/ipc")
    assert ended.out.strip() == os.readlink("/proc/self/ns/ipc")


async def test_sysctls_hold_in_the_pod_and_not_on_the_host(pods: Pods, handler):
    handler.needs(Feature.SYSCTLS)
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as file:
        before = file.read()
    wanted = {"net.ipv4.ip_unprivileged_port_start": "321", "kernel.shm_rmid_forced": "1"}
    pod = await pods.run(sysctls=wanted)
    script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced"
    assert (await pod.run(script)).out.split() == ["321", "1"]
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as file:
        assert file.read() == before


async def test_an_init_reaps_what_containers_of_a_shared_pid_namespace_leave(pods, handler):
    handler.needs(Feature.SHARED_PID)
    pod = await pods.run(security=security(pid=pb.POD))
    box = await pod.start("(sleep 0.1 &) ; (sleep 0.1 &) ; echo started; exec sleep 1000")

    async def reaped() -> bool:
        told = await pod.sh(box, "ps -o stat,args")
        return "sleep 0.1" not in told and "Z " not in told

    await pod.said(box, "started")
    await eventually(reaped, "no zombie")
