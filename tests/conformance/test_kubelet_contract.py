"""The lines of F.2 that need no crash: what kubelets were seen to rely on, one test each.

From 10 on they are in ``test_kubelet_contract_2.py``, 14 in ``test_restart.py``, 16 in
``test_failures.py``.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import os
from pathlib import Path

import pytest
from conformance.pods import Pod, Pods, eventually, refused

from polypod.client import CriClient, pb
from polypod.plugin.runtime import Feature

MODES = {"POD": pb.POD, "CONTAINER": pb.CONTAINER, "NODE": pb.NODE}
NODE_FEATURES = {
    "network": Feature.HOST_NETWORK,
    "pid": Feature.HOST_PID,
    "ipc": Feature.HOST_IPC,
}


def security(**modes: int) -> pb.LinuxSandboxSecurityContext:
    options = pb.NamespaceOption(**{"pid": pb.CONTAINER, **modes})
    return pb.LinuxSandboxSecurityContext(namespace_options=options)


# 1


@pytest.mark.parametrize("directory", ["", "given"])
@pytest.mark.parametrize("path", ["", "box.log", "box/0.log", "deep/er/box.log"])
async def test_f2_01_log_path_is_absolute_and_inside_a_directory_of_ours(
    pods: Pods, server, cri: CriClient, tmp_path: Path, directory: str, path: str
):
    given = str(tmp_path / directory) if directory else ""
    pod = await pods.run(log_directory=given)
    box = await pod.start("echo here", log_path=path)
    status = (await pod.ended(box)).status
    where = Path(status.log_path)
    assert where.is_absolute()
    inside = where.relative_to(given or server.root)
    assert str(inside).endswith(path or "box_0.log")
    assert not given or str(inside) == (path or "box_0.log")
    assert b"here" in where.read_bytes()
    await cri.remove_container(box)


@pytest.mark.parametrize("path", ["../box.log", "a/../../box.log", "/etc/passwd", ".."])
async def test_f2_01_a_log_path_that_leads_out_is_refused(pods: Pods, path: str):
    pod = await pods.run()
    with refused("INVALID_ARGUMENT", "log_path"):
        await pod.create(log_path=path)


async def test_f2_01_removing_the_container_leaves_the_log_to_the_kubelet(pods, cri: CriClient):
    pod = await pods.run()
    ended = await pod.run("echo here")
    await cri.remove_container(ended.status.id)
    assert ended.out == "here\n"


# 2


@pytest.mark.parametrize(
    ("network", "pid", "ipc"), [*itertools.product(["POD", "NODE"], MODES, ["POD", "NODE"])]
)
async def test_f2_02_namespace_modes_equal_the_request(
    pods: Pods, handler, network: str, pid: str, ipc: str
):
    asked = {"network": network, "pid": pid, "ipc": ipc}
    handler.needs(*(NODE_FEATURES[kind] for kind, mode in asked.items() if mode == "NODE"))
    context = security(**{kind: MODES[mode] for kind, mode in asked.items()})
    hostname = "" if network == "NODE" else "pod"
    pod = await pods.run(security=context, hostname=hostname)
    told = (await pod.status()).linux.namespaces.options
    assert told == context.namespace_options


# 3


async def test_f2_03_a_ready_sandbox_has_an_address(pods: Pods, handler):
    pod = await pods.run()
    status = await pod.status()
    assert status.state == pb.SANDBOX_READY
    handler.needs_network()
    addresses = [status.network.ip, *(each.ip for each in status.network.additional_ips)]
    assert [ipaddress.ip_address(each).version for each in addresses] == [4, 6]


async def test_f2_03_no_network_message_on_the_hosts_network_or_after_the_stop(
    pods: Pods, handler, cri: CriClient
):
    handler.needs(Feature.HOST_NETWORK)
    on_host = await pods.run("host", security=security(network=pb.NODE), hostname="")
    assert not (await on_host.status()).HasField("network")
    pod = await pods.run("own")
    await cri.stop_sandbox(pod.id)
    assert not (await pod.status()).HasField("network")


# 4


async def test_f2_04_a_dead_sandbox_shows_notready_at_the_next_list(
    pods: Pods, handler, cri: CriClient
):
    handler.needs_this_kernel()
    handler.needs(Feature.SHARED_PID)
    pod = await pods.run(security=security(pid=pb.POD))
    box = await pod.start()
    os.kill(_init_of((await pod.info(box))["pid"]), 9)

    async def not_ready() -> bool:
        (listed,) = await cri.list_sandboxes()
        return listed.state == pb.SANDBOX_NOTREADY

    await eventually(not_ready, "NOTREADY")
    await pod.ended(box)
    await cri.stop_sandbox(pod.id)
    await cri.remove_sandbox(pod.id)


def _init_of(pid: int) -> int:
    """Return the process that is number 1 where another one lives."""
    space = os.readlink(f"/proc/{pid}/ns/pid")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.readlink(entry / "ns/pid") != space:
                    continue
                lines = (entry / "status").read_text().splitlines()
            except OSError:
                continue
            numbers = next(line for line in lines if line.startswith("NSpid:")).split()
            if numbers[-1] == "1":
                return int(entry.name)
    raise AssertionError(f"no init in the namespace of {pid}")


# 5


async def test_f2_05_no_container_of_an_unlisted_sandbox_is_listed(pods: Pods, cri: CriClient):
    made = [await pods.run(f"pod-{number}") for number in range(6)]
    for pod in made:
        await asyncio.gather(*(pod.start(name=f"box-{number}") for number in range(2)))
    gone = asyncio.gather(*(_gone(cri, pod) for pod in made))
    while not gone.done():
        # Nothing is made meanwhile: who is not in the first list is not in the second.
        listed = {each.id for each in await cri.list_sandboxes()}
        assert {each.pod_sandbox_id for each in await cri.list_containers()} <= listed
    await gone


async def _gone(cri: CriClient, pod: Pod) -> None:
    await cri.stop_sandbox(pod.id)
    await cri.remove_sandbox(pod.id)


# 6


async def test_f2_06_unknown_ids_are_not_found_by_status_and_stopped_by_stop(cri: CriClient):
    unknown = "0123456789abcdef" * 4
    with refused("NOT_FOUND", unknown):
        await cri.container_status(unknown)
    with refused("NOT_FOUND", unknown):
        await cri.sandbox_status(unknown)
    with refused("NOT_FOUND", unknown):
        await cri.container_stats(unknown)
    for _again in range(2):
        await cri.stop_container(unknown, 0)
        await cri.remove_container(unknown)
        await cri.stop_sandbox(unknown)
        await cri.remove_sandbox(unknown)


async def test_f2_06_stop_and_remove_succeed_again(pods: Pods, cri: CriClient):
    pod = await pods.run()
    box = await pod.start()
    for _again in range(2):
        await cri.stop_container(box, 0)
    for _again in range(2):
        await cri.remove_container(box)
        await cri.stop_container(box, 0)
    for _again in range(2):
        await cri.stop_sandbox(pod.id)
    for _again in range(2):
        await cri.remove_sandbox(pod.id)
        await cri.stop_sandbox(pod.id)


async def test_a5_08_a_container_just_removed_is_not_found(pods: Pods, cri: CriClient):
    pod = await pods.run()
    box = await pod.start()
    await cri.remove_container(box)
    with refused("NOT_FOUND", box):
        await cri.container_status(box)
    with refused("NOT_FOUND", box):
        await cri.container_stats(box)
    await cri.stop_sandbox(pod.id)
    await cri.remove_sandbox(pod.id)
    with refused("NOT_FOUND", pod.id):
        await pod.status()


# 7


async def test_f2_07_a_late_exec_is_killed_and_nothing_else(pods: Pods, cri: CriClient, handler):
    pod = await pods.run()
    box = await pod.start()
    with refused("DEADLINE_EXCEEDED"):
        await cri.exec_sync(box, ["sh", "-c", "sleep 4321"], 1)
    assert (await cri.container_status(box)).status.state == pb.CONTAINER_RUNNING
    assert await pod.sh(box, "echo still here") == "still here\n"
    if not handler.simulated:
        assert "4321" not in await pod.sh(box, "ps -o args")


# 8


async def test_f2_08_imagefsinfo_works_without_images(pods: Pods, cri: CriClient):
    for image in await cri.list_images():
        await cri.remove_image(image.id)
    answer = await cri.image_filesystem()
    (usage,) = answer.image_filesystems
    assert usage.timestamp > 0
    assert os.statvfs(usage.fs_id.mountpoint).f_blocks > 0
    assert len(answer.container_filesystems) <= 1


# 9


async def test_f2_09_an_image_has_one_id_in_all_four_fields(
    pods: Pods, cri: CriClient, reference: str, image: str
):
    pulled = await cri.pull_image(reference)
    (listed,) = await cri.list_images(image)
    pod = await pods.run()
    box = await pod.start()
    (container,) = await cri.list_containers()
    status = (await cri.container_status(box)).status
    assert {pulled, listed.id, container.image_id, status.image_id} == {pulled}
    assert status.image_ref in {*listed.repo_digests, pulled}
    assert container.image_ref == status.image_ref
    assert status.image.image == container.image.image == image


async def test_f2_09_the_tags_of_an_image_are_removed_together(
    pods: Pods, cri: CriClient, reference: str, image: str
):
    image_id = await cri.pull_image(reference)
    (listed,) = await cri.list_images(image)
    for name in (*listed.repo_tags, *listed.repo_digests, image_id):
        assert (await cri.image_status(name)).image.id == image_id
    await cri.remove_image(listed.repo_tags[0])
    for name in (*listed.repo_tags, *listed.repo_digests, image_id):
        assert not (await cri.image_status(name)).HasField("image")
    assert image_id not in {each.id for each in await cri.list_images()}
