"""Networks by CNI: with plugins of ours that fail in every way, and with the field's own.

F16 (a failing, partial or slow ADD, a failing DEL, a namespace that is gone, no result): no address leaks.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
from support import networks

from polypod.plugin.errors import BackendError, InvalidArgument, Unavailable
from polypod.plugin.requests import PortMapping, Protocol

pytestmark = pytest.mark.needs_root


@pytest.fixture
async def cni(tmp_path, host):
    made = networks.Cni(tmp_path)
    yield made
    await made.close()
    assert made.bound() == []


def interfaces(pod):
    return pod.inside(lambda: {name for _, name in socket.if_nameindex()})


# Plugins that fail


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("fail", "network 'net': plugin 'faulty': ADD: the switch is on fire: rack 7 (code 999)"),
        ("crash", "panic: no such thing"),
        ("garbage", "it printed no JSON object: ready"),
        ("silent", "it printed no result"),
    ],
)
async def test_f16_a_failed_add_is_told_and_taken_back(cni, pods, plan, words):
    cni.configure(cni.script())
    cni.plan("ADD", plan)
    network, pod = await cni.open(), pods()
    with pytest.raises(BackendError) as caught:
        await network.attach(pod.request())
    assert words in str(caught.value)
    assert cni.calls() == ["ADD", "DEL"]
    assert await network.attached() == []
    cni.plan("ADD", "pass")
    assert (await network.attach(pod.request())).ips == ("10.9.9.9",)
    await network.detach(pod.id, None)


async def test_try_again_later_is_unavailable(cni, pods):
    cni.configure(cni.script())
    cni.plan("ADD", "again")
    network = await cni.open()
    with pytest.raises(Unavailable, match="not yet"):
        await network.attach(pods().request())


async def test_a_hanging_plugin_is_killed_with_its_children(cni, pods):
    cni.configure(cni.script())
    cni.plan("ADD", "hang")
    cni.timeout_s = 0.5
    network = await cni.open()
    with pytest.raises(BackendError, match=r"did not end within 0\.5 s and was killed"):
        await network.attach(pods().request())
    await gone(cni)
    assert await network.attached() == []


async def test_a_cancelled_attach_kills_the_plugin_and_takes_back(cni, pods):
    cni.configure(cni.script())
    cni.plan("ADD", "hang")
    network = await cni.open()
    task = asyncio.ensure_future(network.attach(pods().request()))
    while not (cni.bin / "hanging").exists() and not task.done():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone(cni)
    assert cni.calls() == ["ADD", "DEL"]
    assert await network.attached() == []


async def gone(cni):
    """Wait until no process of the hanging plugin is left."""
    for pid in (cni.bin / "hanging").read_text().split():
        for _ in range(500):
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            except (FileNotFoundError, ProcessLookupError):
                break
            if state == "Z":
                break
            await asyncio.sleep(0.01)
        else:
            pytest.fail(f"{pid} is still there")


async def test_a_daemon_that_keeps_the_output_is_not_waited_for(cni, pods):
    cni.configure(cni.script())
    cni.plan("ADD", "daemon")
    network, pod = await cni.open(), pods()
    assert (await network.attach(pod.request())).ips == ("10.9.9.9",)
    os.kill(int((cni.bin / "daemon").read_text()), signal.SIGKILL)
    await network.detach(pod.id, None)


async def test_output_without_end_is_not_kept(cni, pods):
    script = cni.bin / "talker"
    script.write_text("#!/bin/sh\n[ $CNI_COMMAND = DEL ] || { yes | head -c 20000000; exit 1; }\n")
    script.chmod(0o755)
    cni.configure({"type": "talker"})
    network = await cni.open()
    with pytest.raises(BackendError, match="ended with status 1") as caught:
        await network.attach(pods().request())
    assert len(str(caught.value)) < 5000


async def test_a_failed_del_is_tried_again_with_what_add_ran_with(cni, pods):
    plugin = {**cni.script(), "mtu": 9000, "capabilities": {"aliases": True}}
    cni.configure(plugin)
    network, pod = await cni.open(), pods()
    attachment = await network.attach(pod.request())
    cni.plan("DEL", "fail")
    with pytest.raises(BackendError, match="on fire"):
        await network.detach(pod.id, attachment)
    assert await network.attached() == [pod.id]
    # The configuration changes, the server restarts, the pod's namespace is gone.
    cni.configure({"type": "other"}, name="other")
    await network.close()
    network = await cni.open()
    assert await network.attached() == [pod.id]
    cni.plan("DEL", "pass")
    await network.detach(pod.id, None)
    assert await network.attached() == []
    told = cni.stdin("DEL")
    assert (told["name"], told["mtu"], told["runtimeConfig"]) == ("net", 9000, {"aliases": ["pod"]})
    assert told["prevResult"]["ips"] == [{"address": "10.9.9.9/24"}]


async def test_a_failed_del_after_a_failed_add_keeps_the_sandbox_listed(cni, pods):
    cni.configure(cni.script())
    cni.plan("ADD", "fail")
    cni.plan("DEL", "fail")
    network, pod = await cni.open(), pods()
    with pytest.raises(BackendError) as caught:
        await network.attach(pod.request())
    assert "tried again" in "".join(caught.value.__notes__)
    assert await network.attached() == [pod.id]
    assert cni.bound() == [f"polypod-{pod.id}"]
    cni.plan("DEL", "pass")
    await network.detach(pod.id, None)


async def test_every_plugin_gets_its_del_whichever_failed(cni, pods):
    cni.configure(cni.script("one"), cni.script("two"))
    network, pod = await cni.open(), pods()
    await network.attach(pod.request())
    (cni.bin / "two").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(BackendError, match="plugin 'two': DEL: it ended with status 1"):
        await network.detach(pod.id, None)
    lines = (cni.bin / "calls").read_text().splitlines()
    assert [line.split()[:2] for line in lines] == [["one", "ADD"], ["two", "ADD"], ["one", "DEL"]]
    cni.script("two")
    await network.detach(pod.id, None)


async def test_del_of_a_dead_namespace_has_no_path(cni):
    cni.configure(cni.script())
    network, pod = await cni.open(), networks.Pod()
    await network.attach(pod.request())
    pod.close()
    await networks_unbound(network, pod)
    await network.detach(pod.id, None)
    lines = (cni.bin / "calls").read_text().splitlines()
    assert f"netns={network.path(pod.id)} " in lines[0]
    assert "netns= " in lines[1]


async def networks_unbound(network, pod):
    """Play a reboot: the mount is gone, the file below it may stay."""
    networks.run("umount", str(network.path(pod.id)))


async def test_a_damaged_note_does_not_keep_a_sandbox_for_ever(cni, pods):
    cni.configure(cni.script())
    network, pod = await cni.open(), pods()
    await network.attach(pod.request())
    await network.close()
    (cni.path / "attachments" / f"{pod.id}.json").write_text("{")
    network = await cni.open()
    assert await network.attached() == [pod.id]
    await network.detach(pod.id, None)
    assert cni.calls() == ["ADD", "DEL"]
    assert await network.attached() == []


async def test_e22_only_programs_of_the_directories_are_executed(cni, pods):
    """E22: the type is looked up when it is executed, too; a missing plugin is named with the places."""
    cni.configure({"type": "absent"})
    network = await cni.open()
    with pytest.raises(BackendError, match=r"plugin 'absent': no such program in .*bin_dirs"):
        await network.attach(pods().request())
    status = await network.status()
    assert (status.ready, "absent" in status.message) == (False, True)


async def test_a_pod_name_that_would_be_an_argument_is_refused_before_anything(cni, pods):
    cni.configure(cni.script())
    network, pod = await cni.open(), pods()
    request = pod.request()
    evil = type(request.metadata)("a;K8S_POD_NAMESPACE=kube-system", "uid", "default")
    with pytest.raises(InvalidArgument):
        await network.attach(type(request)(pod.id, evil, pod.fd, pod.netlink.fileno()))
    assert cni.calls() == []
    assert await network.attached() == []


# Status, CHECK and GC


async def test_status_follows_the_directory(cni):
    network = await cni.open()
    status = await network.status()
    assert (status.ready, status.reason) == (False, "NetworkPluginNotReady")
    assert str(cni.conf) in status.message
    cni.configure(cni.script())
    assert (await network.status()).ready
    (cni.conf / "10-net.conflist").write_text("{")
    status = await network.status()
    assert not status.ready
    assert "10-net.conflist" in status.message


async def test_no_configuration_is_unavailable(cni, pods):
    network = await cni.open()
    with pytest.raises(Unavailable, match="no CNI configuration"):
        await network.attach(pods().request())
    assert await network.attached() == []


async def test_status_asks_plugins_that_know_it(cni):
    cni.configure(cni.script(), version="1.1.0")
    network = await cni.open(gc=False)
    assert (await network.status()).ready
    assert (await network.status()).ready
    assert cni.calls() == ["STATUS"]
    cni.plan("STATUS", "again")
    cni.configure(cni.script(), version="1.1.0", name="again")
    status = await network.status()
    assert (status.ready, "not yet" in status.message) == (False, True)


async def test_gc_names_what_is_valid(cni, pods):
    cni.configure(cni.script(), version="1.1.0")
    network, pod = await cni.open(), pods()
    await network.attach(pod.request())
    await network.close()
    network = await cni.open()
    await cni.inner._collected()
    assert cni.stdin("GC")["cni.dev/valid-attachments"] == [
        {"containerID": pod.id, "ifname": "eth0"}
    ]
    assert cni.calls() == ["VERSION", "GC", "ADD", "VERSION", "GC"]
    await network.detach(pod.id, None)


@pytest.mark.parametrize(
    ("version", "more", "options"),
    [("1.0.0", {}, {}), ("1.1.0", {"disableGC": True}, {}), ("1.1.0", {}, {"gc": False})],
)
async def test_gc_is_left_where_it_must_not_be(cni, version, more, options):
    cni.configure(cni.script(), version=version, **more)
    await cni.open(**options)
    if cni.inner._collecting is not None:
        await cni.inner._collected()
    assert "GC" not in cni.calls()


async def test_check_tells_whether_it_is_still_as_it_was(cni, pods):
    cni.configure(cni.script())
    network, pod = await cni.open(), pods()
    await network.attach(pod.request())
    await cni.inner.check(pod.id)
    assert cni.stdin("CHECK")["prevResult"]["ips"]
    cni.plan("CHECK", "fail")
    with pytest.raises(BackendError, match="CHECK: the switch is on fire"):
        await cni.inner.check(pod.id)
    await network.detach(pod.id, None)
    with pytest.raises(BackendError, match="not attached"):
        await cni.inner.check(pod.id)


async def test_a_second_attach_is_the_first_if_check_says_so(cni, pods):
    cni.configure(cni.script())
    network, pod = await cni.open(), pods()
    first = await network.attach(pod.request())
    assert await network.attach(pod.request()) == first
    cni.plan("CHECK", "fail")
    assert await network.attach(pod.request()) == first
    assert cni.calls() == ["ADD", "CHECK", "CHECK", "DEL", "ADD"]
    await network.detach(pod.id, None)


async def test_pod_cidrs_reach_plugins_that_ask_and_outlive_us(cni, pods):
    cni.configure({**cni.script(), "capabilities": {"ipRanges": True}})
    network = await cni.open()
    await network.configure(["10.7.0.0/24"])
    await network.close()
    network, pod = await cni.open(), pods()
    await network.attach(pod.request())
    assert cni.stdin("ADD")["runtimeConfig"] == {"ipRanges": [[{"subnet": "10.7.0.0/24"}]]}
    await network.detach(pod.id, None)


# The field's own plugins


@pytest.mark.needs_cni
async def test_pods_on_the_fields_bridge_reach_each_other(cni, pods):
    cni.configure(cni.bridge())
    network, one, two = await cni.open(), pods(), pods()
    first = await network.attach(one.request())
    second = await network.attach(two.request())
    for at, family in enumerate((socket.AF_INET, socket.AF_INET6)):
        wait_for_address(one, first.ips[at])
        with one.socket(family=family) as server, two.socket(family=family) as client:
            server.bind((first.ips[at], 8080))
            server.listen()
            client.settimeout(10)
            client.connect((first.ips[at], 8080))
            peer, address = server.accept()
            peer.close()
        assert address[0] == second.ips[at]
    await cni.inner.check(one.id)
    for pod in (one, two):
        await network.detach(pod.id, None)
        assert interfaces(pod) == {"lo"}
    assert cni.leases() == []


def wait_for_address(pod, address):
    """Let duplicate address detection end: CNI's bridge does it, ours does not."""

    def bound():
        for _ in range(500):
            if "tentative" not in networks.run("ip", "-o", "addr", "show", "to", address):
                return
            time.sleep(0.01)

    pod.inside(bound)


@pytest.mark.needs_cni
async def test_the_loopback_of_the_pod_is_up(cni, pods):
    cni.configure(cni.bridge())
    network, pod = await cni.open(), pods()
    await network.attach(pod.request())

    def talk_to_oneself():
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), 5).close()

    pod.inside(talk_to_oneself)
    await network.detach(pod.id, None)


@pytest.mark.needs_cni
@pytest.mark.parametrize("plan", ["fail", "crash", "garbage", "silent", "hang"])
async def test_f16_no_address_leaks_when_the_last_plugin_fails(cni, pods, plan):
    """The address is host-local's by then; it is free again, and the interface is gone."""
    cni.configure(cni.bridge(), cni.script())
    cni.plan("ADD", plan)
    cni.timeout_s = 3.0
    network = await cni.open()
    for _ in range(2):
        pod = pods()
        with pytest.raises(BackendError):
            await network.attach(pod.request())
        assert cni.leases() == []
        assert interfaces(pod) == {"lo"}
    assert await network.attached() == []


@pytest.mark.needs_cni
async def test_f16_no_address_leaks_when_the_last_plugins_del_fails(cni, pods):
    cni.configure(cni.bridge(), cni.script())
    network, pod = await cni.open(), pods()
    await network.attach(pod.request())
    assert len(cni.leases()) == 2
    cni.plan("DEL", "fail")
    for _ in range(2):
        with pytest.raises(BackendError):
            await network.detach(pod.id, None)
        assert cni.leases() == []
    cni.plan("DEL", "pass")
    await network.detach(pod.id, None)


@pytest.mark.needs_cni
async def test_f16_no_address_leaks_when_the_namespace_is_gone(cni):
    cni.configure(cni.bridge())
    network, pod = await cni.open(), networks.Pod()
    await network.attach(pod.request())
    pod.close()
    await networks_unbound(network, pod)
    await network.close()
    network = await cni.open()
    await network.detach(pod.id, None)
    assert cni.leases() == []


@pytest.mark.needs_cni
async def test_f16_a_full_range_fails_and_recovers(cni, pods):
    cni.configure(cni.bridge())
    network = await cni.open()
    made = [pods() for _ in range(14)]
    for pod in made[:13]:
        await network.attach(pod.request())
    with pytest.raises(BackendError, match=r"plugin 'bridge': ADD: .*no IP addresses available"):
        await network.attach(made[13].request())
    await network.detach(made[0].id, None)
    await network.attach(made[13].request())
    for pod in made:
        await network.detach(pod.id, None)
    assert cni.leases() == []


@pytest.mark.needs_cni
@pytest.mark.parametrize("version", ["0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"])
async def test_every_version_of_a_configuration(cni, pods, version):
    plugin = cni.bridge()
    if version == "0.2.0":
        plugin["ipam"] = {
            "type": "host-local",
            "dataDir": str(cni.ipam),
            "subnet": "10.214.0.0/28",
        }
    cni.configure(plugin, version=version)
    network, pod = await cni.open(), pods()
    attachment = await network.attach(pod.request())
    assert attachment.ips[0] == "10.214.0.2"
    assert attachment.result["cni"]["cniVersion"] == version
    assert "eth0" in interfaces(pod)
    await network.detach(pod.id, attachment)
    assert cni.leases() == []


@pytest.mark.needs_cni
async def test_host_ports_by_the_fields_portmap(cni, pods):
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": False}
    cni.configure(cni.bridge(), portmap)
    network, pod = await cni.open(), pods()
    if shutil.which("iptables") is None:
        pytest.skip("iptables, which portmap executes, is not installed")
    attachment = await network.attach(pod.request(PortMapping(Protocol.TCP, 80, 8080)))
    with pod.socket() as server:
        server.bind((attachment.ips[0], 80))
        server.listen()
        socket.create_connection(("10.214.0.1", 8080), 5).close()
    await network.detach(pod.id, None)
    with pytest.raises(OSError, match=r"."):
        socket.create_connection(("10.214.0.1", 8080), 0.5)


@pytest.mark.needs_cni
async def test_bandwidth_by_the_fields_plugin(cni, pods):
    bandwidth = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
    cni.configure(cni.bridge(), bandwidth)
    network, pod = await cni.open(), pods()
    annotations = {"kubernetes.io/ingress-bandwidth": "10M"}
    try:
        await network.attach(pod.request(**annotations))
    except BackendError as error:
        # It makes tbf queues and ifb devices, which not every kernel has.
        pytest.skip(f"bandwidth does not work here: {error}")
    assert "tbf" in networks.run("tc", "qdisc", "show")
    await network.detach(pod.id, None)
