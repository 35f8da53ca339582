"""Mounts, devices, the mounts that every container has, and what a program may not see of the host."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from conformance.pods import Pods, eventually, refused

from polypod.client import CriClient, pb
from polypod.plugin.runtime import Feature


@pytest.fixture(autouse=True)
def real(handler) -> None:
    handler.needs_kernel()


@pytest.fixture
def volume(handler, tmp_path: Path) -> Path:
    handler.needs(Feature.HOST_PATH_MOUNTS)
    place = tmp_path / "volume"
    place.mkdir()
    (place / "note").write_text("of the host\n")
    return place


def mount(source: Path, target: str = "/volume", **fields) -> list[pb.Mount]:
    return [pb.Mount(host_path=str(source), container_path=target, **fields)]


async def test_a_volume_is_the_hosts_directory(pods: Pods, volume: Path):
    pod = await pods.run()
    ended = await pod.run("cat /volume/note; echo back > /volume/answer", mounts=mount(volume))
    assert ended.out == "of the host\n"
    assert (volume / "answer").read_text() == "back\n"


async def test_a_volume_that_is_read_only(pods: Pods, volume: Path):
    pod = await pods.run()
    mounts = mount(volume, readonly=True)
    ended = await pod.run("cat /volume/note; touch /volume/x", mounts=mounts)
    assert ended.out == "of the host\n"
    assert "Read-only file system" in ended.err


async def test_a_volume_that_is_one_file(pods: Pods, volume: Path):
    pod = await pods.run()
    ended = await pod.run("cat /data/kept", mounts=mount(volume / "note", "/data/kept"))
    assert ended.out == "of the host\n"


async def test_volumes_within_volumes(pods: Pods, volume: Path, tmp_path: Path):
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "note").write_text("inner\n")
    (volume / "deep").mkdir()
    pod = await pods.run()
    # Out of order on purpose: the outer one must not hide the inner.
    mounts = [*mount(inner, "/volume/deep"), *mount(volume)]
    ended = await pod.run("cat /volume/note /volume/deep/note", mounts=mounts)
    assert ended.out == "of the host\ninner\n"


async def test_a_target_that_is_missing_is_made(pods: Pods, volume: Path):
    pod = await pods.run()
    mounts = [*mount(volume, "/not/there/yet"), *mount(volume / "note", "/some/file")]
    ended = await pod.run("cat /not/there/yet/note /some/file", mounts=mounts)
    assert ended.out == "of the host\n" * 2


async def test_a_source_that_is_missing_is_made(pods: Pods, volume: Path):
    pod = await pods.run()
    ended = await pod.run("echo made > /volume/x", mounts=mount(volume / "new/one"))
    assert ended.code == 0
    assert (volume / "new/one/x").read_text() == "made\n"


async def test_a_source_that_is_a_link_is_followed_on_the_host(pods: Pods, volume: Path, tmp_path):
    (tmp_path / "link").symlink_to(volume)
    pod = await pods.run()
    assert (await pod.run("cat /volume/note", mounts=mount(tmp_path / "link"))).code == 0


async def test_a_volume_replaces_a_file_of_the_pod(pods: Pods, volume: Path):
    pod = await pods.run()
    ended = await pod.run("cat /etc/hosts", mounts=mount(volume / "note", "/etc/hosts"))
    assert ended.out == "of the host\n"


async def test_mounts_are_reported(pods: Pods, cri: CriClient, volume: Path):
    pod = await pods.run()
    mounts = [*mount(volume, "/one"), *mount(volume, "/two", readonly=True)]
    box = await pod.start(mounts=mounts)
    assert list((await cri.container_status(box)).status.mounts) == mounts


@pytest.mark.parametrize(
    ("options", "script"),
    [
        (["noexec"], "/volume/program"),
        (["nosuid"], "grep -q ' /volume .*nosuid' /proc/self/mountinfo && exit 126"),
        (["nodev", "nosuid"], "grep -q ' /volume .*nosuid,nodev' /proc/self/mountinfo && exit 126"),
    ],
)
async def test_mount_options(pods: Pods, volume: Path, options: list[str], script: str):
    program = volume / "program"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    pod = await pods.run()
    ended = await pod.run(script, mounts=mount(volume, mount_options=options))
    assert ended.code == 126


# Propagation


async def test_private_volumes_do_not_see_later_mounts(pods: Pods, volume, shared_mount: Path, cri):
    (shared_mount / "sub").mkdir()
    pod = await pods.run()
    box = await pod.start(mounts=mount(shared_mount))
    _mount_into(shared_mount / "sub")
    try:
        assert await pod.sh(box, "ls /volume/sub") == ""
        await cri.remove_container(box)
    finally:
        subprocess.run(["umount", shared_mount / "sub"], check=True)


async def test_host_to_container_volumes_see_later_mounts(pods: Pods, volume, shared_mount, cri):
    (shared_mount / "sub").mkdir()
    pod = await pods.run()
    mode = pb.PROPAGATION_HOST_TO_CONTAINER
    box = await pod.start(mounts=mount(shared_mount, propagation=mode))
    _mount_into(shared_mount / "sub")
    try:
        assert await pod.sh(box, "ls /volume/sub") == "later\n"
        await cri.remove_container(box)
    finally:
        subprocess.run(["umount", shared_mount / "sub"], check=True)


async def test_host_to_container_of_a_private_mount_is_refused(pods: Pods, volume: Path):
    pod = await pods.run()
    mode = pb.PROPAGATION_HOST_TO_CONTAINER
    with refused("INVALID_ARGUMENT", "private"):
        await pod.start(mounts=mount(volume, propagation=mode))


async def test_bidirectional_volumes_give_mounts_to_the_host(pods, handler, shared_mount: Path):
    handler.needs(Feature.BIDIRECTIONAL_MOUNTS, Feature.PRIVILEGED)
    options = pb.NamespaceOption(pid=pb.CONTAINER)
    context = pb.LinuxSandboxSecurityContext(privileged=True, namespace_options=options)
    pod = await pods.run(security=context)
    (shared_mount / "sub").mkdir()
    mode = pb.PROPAGATION_BIDIRECTIONAL
    box = await pod.start(
        mounts=mount(shared_mount, propagation=mode),
        security=pb.LinuxContainerSecurityContext(privileged=True),
    )
    await pod.sh(box, "mount -t tmpfs t /volume/sub && touch /volume/sub/given")
    assert (shared_mount / "sub/given").exists()
    await pod.sh(box, "umount /volume/sub")
    assert not (shared_mount / "sub/given").exists()


async def test_recursive_read_only(pods: Pods, handler, volume, shared_mount: Path):
    handler.needs(Feature.RECURSIVE_READ_ONLY)
    (shared_mount / "sub").mkdir()
    _mount_into(shared_mount / "sub")
    pod = await pods.run()
    mounts = [
        *mount(shared_mount, "/plain", readonly=True),
        *mount(shared_mount, "/deep", readonly=True, recursive_read_only=True),
    ]
    script = "touch /plain/sub/x && echo plain; touch /deep/sub/x && echo deep; exit 0"
    try:
        assert (await pod.run(script, mounts=mounts)).out == "plain\n"
        await pods.remove_all()
    finally:
        subprocess.run(["umount", shared_mount / "sub"], check=True)


def _mount_into(place: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    (place / "later").write_text("")


# Devices


async def test_a_device_is_there_with_its_permissions(pods: Pods, handler):
    handler.needs(Feature.DEVICES)
    devices = [
        pb.Device(host_path="/dev/null", container_path="/dev/hole", permissions="r"),
        pb.Device(host_path="/dev/zero", container_path="/dev/source", permissions="rwm"),
    ]
    pod = await pods.run()
    script = "head -c 4 /dev/source | wc -c; test -c /dev/hole && echo there"
    assert (await pod.run(script, devices=devices)).out.split() == ["4", "there"]


async def test_a_directory_of_devices(pods: Pods, handler, tmp_path: Path):
    handler.needs(Feature.DEVICES)
    for place, minor in (("one", 5), ("deep/two", 7)):
        path = tmp_path / "nodes" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
    (tmp_path / "nodes/plain").write_text("no device")
    (tmp_path / "link").symlink_to(tmp_path / "nodes")
    device = pb.Device(host_path=str(tmp_path / "link"), container_path="/dev/all", permissions="r")
    pod = await pods.run()
    script = (
        "cd /dev/all; head -c 4 one | wc -c; head -c 4 deep/two | wc -c; find . -type f | wc -l"
    )
    ended = await pod.run(script, devices=[device])
    assert (ended.out.split(), ended.err) == (["4", "4", "0"], "")


async def test_devices_that_are_not_given_cannot_be_made(pods: Pods):
    pod = await pods.run()
    # Number 1:11 is the kernel's log.
    ended = await pod.run("mknod /tmp/kmsg c 1 11 && head -c 1 /tmp/kmsg && echo read")
    assert "read" not in ended.out


@pytest.mark.parametrize("name", ["null", "zero", "full", "random", "urandom", "tty", "ptmx"])
async def test_standard_devices(pods: Pods, name: str):
    pod = await pods.run()
    assert (await pod.run(f"test -c /dev/{name}")).code == 0


async def test_standard_mounts(pods: Pods):
    pod = await pods.run()
    rows = [line.split() for line in (await pod.run("cat /proc/mounts")).out.splitlines()]
    found = {row[1]: row[2] for row in rows}
    for place, kind in {
        "/proc": "proc",
        "/dev": "tmpfs",
        "/dev/pts": "devpts",
        "/dev/mqueue": "mqueue",
        "/dev/shm": "tmpfs",
        "/sys": "sysfs",
    }.items():
        assert found[place] == kind
    options = {row[1]: row[3].split(",") for row in rows}
    assert "ro" in options["/sys"]
    assert {"nosuid", "noexec", "nodev"} <= set(options["/proc"])


async def test_nothing_of_the_host_is_mounted(pods: Pods, server):
    pod = await pods.run()
    told = (await pod.run("cat /proc/self/mountinfo; ls /proc/self/fd")).out
    assert "/old" not in told
    sources = [line.split()[3] for line in told.splitlines() if " - ext4 " in line]
    # Of the host's disk only files of the pod are there, each below the server's own directory.
    assert all(str(server.place).removeprefix("/tmp") in each for each in sources), sources


async def test_a_working_directory_that_is_missing_is_made(pods: Pods):
    pod = await pods.run()
    assert (await pod.run("pwd", working_dir="/a/new/one")).out == "/a/new/one\n"


async def test_it_is_gone_with_the_container(pods: Pods, cri: CriClient, volume: Path):
    pod = await pods.run()
    box = await pod.start("exec sleep 1000", mounts=mount(volume))
    pid = (await pod.info(box))["pid"]
    await cri.remove_container(box)

    async def gone() -> bool:
        return not Path(f"/proc/{pid}").exists()

    await eventually(gone, "its end")
    assert (volume / "note").read_text() == "of the host\n"
