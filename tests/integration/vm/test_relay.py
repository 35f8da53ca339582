"""The relay takes a pod's own interface, and only a pod's."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import pytest

from polypod.plan import channel
from polypod.plugin.ids import ProcessId, SandboxId, new_id
from polypod.processes.host import ProcessHost
from polypod_vm import child
from polypod_vm.link import RelayLink

pytestmark = [pytest.mark.needs_root]
ADDRESS = "10.99.0.2/24"


def run(*words: str, netns: int = -1) -> str:
    into = ["nsenter", f"--net=/proc/self/fd/{netns}"] if netns >= 0 else []
    done = subprocess.run(
        [*into, *words],
        pass_fds=[netns] if netns >= 0 else [],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.fixture
async def host(tmp_path):
    made = await ProcessHost.open(tmp_path / "processes")
    yield made
    await made.shutdown()


@pytest.fixture
async def pod(host):
    """A network namespace with an interface as a CRI network leaves it."""
    sandbox = SandboxId(new_id())
    made = await host.supervisor.make_namespaces(sandbox, frozenset({"network"}))
    netns = made.fds["network"]
    run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far", netns=netns)
    run("ip", "addr", "add", ADDRESS, "dev", "eth0", netns=netns)
    run("ip", "link", "set", "eth0", "up", netns=netns)
    run("ip", "link", "set", "far", "up", netns=netns)
    run("ip", "route", "add", "default", "via", "10.99.0.1", netns=netns)
    yield netns
    await host.supervisor.drop_namespaces(sandbox)
    for fd in [netns, *([made.netlink] if made.netlink is not None else [])]:
        os.close(fd)


@contextlib.asynccontextmanager
async def relay(host, directory: Path, words: list[str], netns: int = -1):
    """A relay, and a connection to it."""
    name = ProcessId("relay-test")
    log = os.open(directory / "log", os.O_WRONLY | os.O_CREAT, 0o600)
    source = "fd:1" if netns >= 0 else ""
    plan = child.plan("relay", str(directory), "test", "", *words, log="fd:0", network=source)
    fds = [log, *([netns] if netns >= 0 else [])]
    launched = await host.supervisor.execute(name, plan, fds=fds)
    os.close(launched.pidfd)
    os.close(log)
    link = RelayLink(lambda _message: None, lambda: None)
    try:
        await link.open(directory, wait=True)
        yield link
    finally:
        with contextlib.suppress(Exception):
            await link.ask("quit")
        link.close()
        await host.supervisor.wait(name)
        await host.supervisor.forget(name)


def own_network() -> str:
    return str(os.stat("/proc/self/ns/net").st_ino)


async def test_a_pods_interface_is_read_and_joined_to_a_tap(host, pod, tmp_path):
    async with relay(host, tmp_path, [own_network()], pod) as link:
        facts, fds = await link.ask("network")
        assert facts["addresses"] == [["10.99.0.2", 24]]
        assert facts["routes"] == [["0.0.0.0", 0, "10.99.0.1"]]
        assert facts["mtu"] == 1500
        assert facts["mac"] in run("ip", "link", "show", "eth0", netns=pod)
        assert len(fds) == 1
        channel.close_all(fds)
        links = run("ip", "-br", "link", netns=pod)
        assert "polypodtap0" in links
        for name in ("eth0", "polypodtap0"):
            shown = run("tc", "filter", "show", "dev", name, "parent", "ffff:", netns=pod)
            assert "mirred" in shown
            assert "Redirect to device" in shown
    assert "polypodtap0" not in run("ip", "-br", "link", netns=pod)


async def test_the_hosts_own_network_is_left_alone(host, tmp_path):
    before = run("tc", "qdisc", "show")
    async with relay(host, tmp_path, []) as link:
        facts, fds = await link.ask("network")
        assert fds == []
        assert facts["mac"] == ""
    assert run("tc", "qdisc", "show") == before
    assert "polypodtap" not in run("ip", "-br", "link")


async def test_a_relay_that_is_told_to_take_the_hosts_network_refuses(tmp_path):
    before = run("tc", "qdisc", "show")
    from polypod_vm_child.splice import Splice

    with pytest.raises(PermissionError, match="host's own"):
        Splice(own_network())
    assert run("tc", "qdisc", "show") == before


async def test_a_guest_that_never_comes_is_told(host, tmp_path):
    async with relay(host, tmp_path, []) as link:
        with pytest.raises(Exception, match="booting"):
            await link.call({"op": "list"})
