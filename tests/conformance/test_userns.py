"""Pods with user namespaces: root inside is nobody on the host, and nothing that works elsewhere fails."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from conformance.pods import Pods, refused

from polypod.client import CriClient, pb
from polypod.plugin.runtime import Feature

HOST, SIZE = 200_000, 65_536
Context = pb.LinuxContainerSecurityContext


@pytest.fixture(autouse=True)
def able(handler) -> None:
    handler.needs_kernel()
    handler.needs(Feature.USER_NAMESPACES)


def mapping(host: int = HOST, inside: int = 0, length: int = SIZE) -> pb.IDMapping:
    return pb.IDMapping(host_id=host, container_id=inside, length=length)


def options(*ranges: pb.IDMapping, **modes: int) -> pb.NamespaceOption:
    """Namespace options with these ranges of users and groups."""
    given = list(ranges) or [mapping()]
    users = pb.UserNamespace(mode=pb.POD, uids=given, gids=given)
    return pb.NamespaceOption(**{"pid": pb.CONTAINER, **modes}, userns_options=users)


async def run_pod(pods: Pods, *ranges: pb.IDMapping, privileged: bool = False, **fields):
    modes = fields.pop("modes", {})
    security = pb.LinuxSandboxSecurityContext(
        namespace_options=options(*ranges, **modes), privileged=privileged
    )
    return await pods.run(security=security, **fields)


def host_ids(pid: int) -> tuple[int, int]:
    """Return user and group of a process as the host sees them."""
    rows = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    return int(rows["Uid"].split()[0]), int(rows["Gid"].split()[0])


# What it is


async def test_root_inside_is_nobody_on_the_host(pods: Pods):
    pod = await run_pod(pods)
    box = await pod.start()
    assert await pod.sh(box, "id -u; id -g") == "0\n0\n"
    assert (await pod.sh(box, "cat /proc/self/uid_map")).split() == ["0", str(HOST), str(SIZE)]
    assert (await pod.sh(box, "cat /proc/1/gid_map")).split() == ["0", str(HOST), str(SIZE)]
    assert host_ids((await pod.info(box))["pid"]) == (HOST, HOST)


async def test_users_and_groups_are_mapped(pods: Pods, cri: CriClient):
    pod = await run_pod(pods)
    context = Context(run_as_user=pb.Int64Value(value=1000), supplemental_groups=[5000])
    box = await pod.start(security=context)
    assert await pod.sh(box, "id -u; id -g") == "1000\n2000\n"
    assert host_ids((await pod.info(box))["pid"]) == (HOST + 1000, HOST + 2000)
    told = (await cri.container_status(box)).status.user.linux
    assert (told.uid, told.gid) == (1000, 2000)
    assert 5000 in told.supplemental_groups


async def test_the_files_of_the_image_are_roots(pods: Pods):
    pod = await run_pod(pods)
    script = (
        "stat -c %u:%g /bin/busybox /data/kept /; echo mine > /data/kept; mkdir /new; "
        "chown 7:8 /new; stat -c %u:%g /data/kept /new; cat /data/kept"
    )
    ended = await pod.run(script)
    assert ended.err == ""
    assert ended.out.split() == ["0:0", "0:0", "0:0", "0:0", "7:8", "mine"]


async def test_every_container_of_the_pod_is_in_it(pods: Pods):
    pod = await run_pod(pods, modes={"pid": pb.POD})
    first = await pod.start(name="one")
    second = await pod.start(name="two")
    links = {
        os.readlink(f"/proc/{(await pod.info(box))['pid']}/ns/{kind}")
        for box in (first, second)
        for kind in ("user", "pid")
    }
    assert len(links) == 2
    # Root of one may signal what the other runs.
    pid = (await pod.sh(second, "pidof sleep")).split()[-1]
    await pod.sh(first, f"kill -0 {pid}; test -r /proc/{pid}/root/data/kept")


async def test_other_pods_have_other_ids(pods: Pods):
    one, two = await run_pod(pods, name="one"), await run_pod(pods, mapping(900_000), name="two")
    boxes = [await one.start(), await two.start()]
    found = [
        host_ids((await pod.info(box))["pid"])[0]
        for pod, box in zip((one, two), boxes, strict=True)
    ]
    assert found == [HOST, 900_000]


async def test_the_mode_node_is_the_hosts(pods: Pods):
    users = pb.UserNamespace(mode=pb.NODE)
    modes = pb.NamespaceOption(pid=pb.CONTAINER, userns_options=users)
    security = pb.LinuxSandboxSecurityContext(namespace_options=modes)
    pod = await pods.run(security=security)
    assert (await pod.run("cat /proc/self/uid_map")).out.split() == ["0", "0", "4294967295"]


async def test_it_is_reported(pods: Pods, cri: CriClient):
    pod = await run_pod(pods)
    told = (await pod.status()).linux.namespaces.options
    assert told == options()
    status = await cri.status()
    ours = [each.features for each in status.runtime_handlers if each.name in ("", "namespaces")]
    assert ours
    assert all(features.user_namespaces for features in ours)
    assert status.features.user_namespaces_host_network


# What works as elsewhere


async def test_standard_mounts_and_devices(pods: Pods):
    pod = await run_pod(pods)
    script = (
        "for d in null zero full random urandom tty ptmx; do test -c /dev/$d || echo no $d; done; "
        "echo x > /dev/null && head -c 1 /dev/urandom > /dev/null && echo works; cat /proc/mounts"
    )
    ended = await pod.run(script)
    assert ended.err == ""
    words, *rows = ended.out.splitlines()
    assert words == "works"
    found = {row.split()[1]: row.split()[2] for row in rows}
    for place, kind in {
        "/proc": "proc",
        "/dev": "tmpfs",
        "/dev/pts": "devpts",
        "/dev/mqueue": "mqueue",
        "/dev/shm": "tmpfs",
        "/sys": "sysfs",
    }.items():
        assert found[place] == kind


async def test_the_pods_files_and_memory_are_roots(pods: Pods):
    pod = await run_pod(pods)
    script = (
        "for f in /etc/hosts /etc/hostname /etc/resolv.conf /dev/shm /dev/null /dev/pts /dev/mqueue; do "
        "stat -c '%u:%g' $f; done; echo 1.2.3.4 x >> /etc/hosts; hostname; echo x > /dev/shm/x"
    )
    ended = await pod.run(script)
    assert ended.err == ""
    assert ended.out.split() == ["0:0"] * 7 + ["pod"]


async def test_streams_can_be_opened_again(pods: Pods):
    pod = await run_pod(pods)
    script = "echo one > /dev/stdout; echo two > /dev/stderr"
    ended = await pod.run(script)
    assert (ended.out, ended.err) == ("one\n", "two\n")
    user = Context(run_as_user=pb.Int64Value(value=1000))
    ended = await pod.run(script, name="user", security=user)
    assert (ended.out, ended.err) == ("one\n", "two\n")
    box = await pod.start(name="exec")
    assert await pod.sh(box, "echo three > /dev/stdout") == "three\n"


async def test_a_terminal(pods: Pods):
    pod = await run_pod(pods)
    ended = await pod.run("tty; stat -c %u $(tty); echo x > /dev/tty", tty=True)
    assert ended.out.split() == ["/dev/pts/0", "0", "x"]


async def test_its_network_is_its_own(pods: Pods):
    pod = await run_pod(pods, sysctls={"net.ipv4.ip_unprivileged_port_start": "7"})
    wanted = pb.Capability(add_capabilities=["NET_ADMIN"])
    script = (
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; ip -4 addr show eth0 | grep -c inet; "
        "ip link set lo down && echo rights"
    )
    ended = await pod.run(script, security=Context(capabilities=wanted))
    assert ended.out.split() == ["7", "1", "rights"]


async def test_capabilities_are_over_the_pod_alone(pods: Pods):
    pod = await run_pod(pods)
    wanted = pb.Capability(add_capabilities=["ALL"])
    script = (
        "mount -t tmpfs t /tmp && echo mounts; hostname other && echo names; "
        "mknod /tmp/m c 1 1 2>/dev/null && echo nodes; "
        "echo 1 2>/dev/null > /proc/sys/kernel/panic && echo kernel; exit 0"
    )
    ended = await pod.run(script, security=Context(capabilities=wanted))
    assert ended.out.split() == ["mounts", "names"]


async def test_seccomp_and_masks(pods: Pods):
    pod = await run_pod(pods)
    context = Context(
        seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault),
        masked_paths=["/proc/timer_list", "/sys/firmware", "/data"],
        readonly_paths=["/proc/sys", "/bin"],
        no_new_privs=True,
        readonly_rootfs=True,
    )
    script = (
        "grep -E 'Seccomp:|NoNewPrivs' /proc/self/status; ls /data; cat /proc/timer_list; "
        "touch /bin/x 2>/dev/null || touch /x 2>/dev/null || echo closed"
    )
    ended = await pod.run(script, security=context)
    assert ended.err == ""
    assert ended.out.split() == ["NoNewPrivs:", "1", "Seccomp:", "2", "closed"]


async def test_limits_and_scores(pods: Pods):
    pod = await run_pod(pods)
    limits = pb.LinuxContainerResources(oom_score_adj=500, memory_limit_in_bytes=64 << 20)
    ended = await pod.run("cat /proc/self/oom_score_adj", resources=limits)
    assert ended.out == "500\n"


async def test_the_network_of_the_host(pods: Pods):
    pod = await run_pod(pods, modes={"network": pb.NODE})
    script = (
        "readlink /proc/self/ns/net; test -d /sys/class/net/lo && echo sysfs; id -u; touch /sys/x"
    )
    ended = await pod.run(script)
    assert ended.out.split() == [os.readlink("/proc/self/ns/net"), "sysfs", "0"]
    # Its root has no rights over a network that is the host's.
    wanted = pb.Capability(add_capabilities=["ALL"])
    down = await pod.run("ip link set lo down", name="down", security=Context(capabilities=wanted))
    assert down.code != 0


async def test_joining_the_processes_of_another_container(pods: Pods, handler):
    handler.needs(Feature.TARGET_PID)
    pod = await run_pod(pods)
    target = await pod.start("exec sleep 4711", name="target")
    modes = options(pid=pb.TARGET)
    modes.target_id = target
    ended = await pod.run(
        "tr '\\0' ' ' < /proc/1/cmdline",
        name="debug",
        security=Context(namespace_options=modes),
    )
    assert ended.out.split() == ["sleep", "4711"]


async def test_privileged_is_root_of_the_pod_alone(pods: Pods, handler):
    handler.needs(Feature.PRIVILEGED)
    pod = await run_pod(pods, privileged=True)
    script = "grep CapEff /proc/self/status; mount -t tmpfs t /tmp && echo mounted; echo 1 > /proc/sys/kernel/panic"
    ended = await pod.run(script, security=Context(privileged=True))
    words = ended.out.split()
    assert words[-1] == "mounted"
    assert int(words[1], 16) & (1 << 21)
    assert ended.err


async def test_devices_keep_their_owners(pods: Pods, handler):
    handler.needs(Feature.DEVICES)
    devices = [
        pb.Device(host_path="/dev/zero", container_path="/dev/deep/source", permissions="rwm"),
        pb.Device(host_path="/dev/null", container_path="/elsewhere", permissions="rwm"),
    ]
    pod = await run_pod(pods)
    script = "head -c 4 /dev/deep/source | wc -c; echo x > /elsewhere && test -c /elsewhere && echo there"
    ended = await pod.run(script, devices=devices)
    assert ended.out.split() == ["4", "there"], ended.err


# Volumes


def volume(where: Path, **fields) -> pb.Mount:
    mapped = {"uidMappings": [mapping()], "gidMappings": [mapping()]}
    return pb.Mount(host_path=str(where), container_path="/volume", **{**mapped, **fields})


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory that others may look into."""
    made = tmp_path / "volume"
    made.mkdir()
    made.chmod(0o755)
    return made


async def test_a_volume_shows_the_owners_of_the_host(pods: Pods, place: Path):
    (place / "note").write_text("of root\n")
    pod = await run_pod(pods)
    script = "stat -c %u:%g /volume/note; echo more >> /volume/note; echo new > /volume/new"
    ended = await pod.run(script, mounts=[volume(place)])
    assert (ended.out, ended.err) == ("0:0\n", "")
    assert (place / "note").read_text() == "of root\nmore\n"
    assert (place / "new").stat().st_uid == 0


async def test_a_volume_without_mappings_shows_nobody(pods: Pods, place: Path):
    (place / "note").write_text("of root\n")
    pod = await run_pod(pods)
    plain = volume(place, uidMappings=[], gidMappings=[])
    ended = await pod.run("stat -c %u /volume/note; echo x > /volume/x", mounts=[plain])
    assert ended.out == "65534\n"
    assert "Permission denied" in ended.err


async def test_a_volume_with_mappings_of_its_own(pods: Pods, place: Path):
    (place / "note").write_text("")
    os.chown(place / "note", 5, 5)
    pod = await run_pod(pods)
    # Owner 5 on disk is user 7 inside.
    other = [mapping(HOST + 7, 5, 1)]
    mounts = [volume(place, uidMappings=other, gidMappings=other)]
    assert (await pod.run("stat -c %u:%g /volume/note", mounts=mounts)).out == "7:7\n"


async def test_a_volume_is_mapped_without_a_user_namespace(pods: Pods, place: Path):
    (place / "note").write_text("")
    pod = await pods.run()
    ended = await pod.run("stat -c %u:%g /volume/note", mounts=[volume(place)])
    assert ended.out == f"{HOST}:{HOST}\n"


async def test_a_volume_that_cannot_be_mapped_is_refused(pods: Pods, tmp_path: Path):
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    what = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    subprocess.run(
        ["mount", "-t", "overlay", "-o", what, "overlay", tmp_path / "merged"], check=True
    )
    try:
        pod = await run_pod(pods)
        with refused("UNKNOWN", "/volume", "merged", "cannot be idmapped"):
            await pod.start(mounts=[volume(tmp_path / "merged")])
        await pods.remove_all()
    finally:
        subprocess.run(["umount", tmp_path / "merged"], check=True)


@pytest.mark.parametrize(
    "fields", [{"uidMappings": []}, {"uidMappings": [mapping(), mapping()]}], ids=["half", "twice"]
)
async def test_mappings_of_a_volume_that_are_malformed(pods: Pods, tmp_path: Path, fields):
    pod = await run_pod(pods)
    with refused("INVALID_ARGUMENT", "apping"):
        await pod.start(mounts=[volume(tmp_path, **fields)])


# What is refused


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        ([mapping(inside=1)], ["container id 0 is not mapped"]),
        ([mapping(length=0)], ["length"]),
        ([mapping(), mapping()], ["two ranges"]),
        ([mapping(), mapping(inside=SIZE)], ["host_id", "two ranges"]),
        ([mapping(host=2**32 - 10)], ["no range of ids"]),
        ([mapping(host=n * 10, inside=n, length=1) for n in range(400)], ["340"]),
    ],
    ids=["no root", "empty", "twice", "same on the host", "beyond", "too many"],
)
async def test_malformed_mappings_are_refused(pods: Pods, ranges, words):
    with refused("INVALID_ARGUMENT", *words):
        await run_pod(pods, *ranges)


@pytest.mark.parametrize("mode", [pb.CONTAINER, pb.TARGET])
async def test_modes_that_do_not_exist(pods: Pods, mode: int):
    users = pb.UserNamespace(mode=mode, uids=[mapping()], gids=[mapping()])
    modes = pb.NamespaceOption(pid=pb.CONTAINER, userns_options=users)
    with refused("INVALID_ARGUMENT", "userns_options.mode"):
        await pods.run(security=pb.LinuxSandboxSecurityContext(namespace_options=modes))


@pytest.mark.parametrize("kind", ["pid", "ipc"])
async def test_what_is_the_hosts_cannot_be_shared(pods: Pods, kind: str):
    with refused("INVALID_ARGUMENT", kind, "user namespace"):
        await run_pod(pods, modes={kind: pb.NODE})


async def test_a_container_must_agree_with_its_pod(pods: Pods):
    pod = await run_pod(pods)
    for other in (options(mapping(host=700_000)), pb.NamespaceOption(pid=pb.CONTAINER)):
        if not other.HasField("userns_options"):
            other.userns_options.mode = pb.NODE
        with refused("INVALID_ARGUMENT", "userns_options differ"):
            await pod.create(security=Context(namespace_options=other))
    plain = await pods.run(name="plain")
    with refused("INVALID_ARGUMENT", "userns_options differ"):
        await plain.create(security=Context(namespace_options=options()))


async def test_a_user_that_is_not_mapped(pods: Pods):
    pod = await run_pod(pods, mapping(length=100))
    with refused("INVALID_ARGUMENT", "user 1000 is not mapped"):
        await pod.create(security=Context(run_as_user=pb.Int64Value(value=1000)))
    context = Context(supplemental_groups=[5000])
    with refused("INVALID_ARGUMENT", "group 5000 is not mapped"):
        await pod.create(security=context)
