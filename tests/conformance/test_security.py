"""Who a program is and what it may: security contexts, seen from inside."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest
from conformance import images
from conformance.pods import Pods, refused
from conformance.subjects import host_lacks, host_offers

from polypod.client import CriClient, pb
from polypod.plugin.runtime import Feature

Context = pb.LinuxContainerSecurityContext


@pytest.fixture(autouse=True)
def real(handler) -> None:
    handler.needs_kernel()


def user(number: int) -> pb.Int64Value:
    return pb.Int64Value(value=number)


def status_of(text: str) -> dict[str, str]:
    """Return the fields of a /proc/PID/status."""
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


async def ids(pod, context: Context | None = None, **fields) -> tuple[int, int, list[int]]:
    """Return uid, gid and supplementary groups of a program."""
    ended = await pod.run("cat /proc/self/status", security=context, **fields)
    found = status_of(ended.out)
    groups = sorted(map(int, found["Groups"].split()))
    told = ended.status.user.linux
    actual = (int(found["Uid"].split()[0]), int(found["Gid"].split()[0]), groups)
    # What ContainerStatus reports is what the program has.
    assert (told.uid, told.gid, sorted({*told.supplemental_groups})) == (
        *actual[:2],
        sorted({*groups}),
    )
    return actual


# Users and groups


async def test_by_default_it_is_root(pods: Pods):
    uid, gid, _groups = await ids(await pods.run())
    assert (uid, gid) == (0, 0)


async def test_run_as_user_has_the_group_of_the_images_database(pods: Pods):
    uid, gid, groups = await ids(await pods.run(), Context(run_as_user=user(1000)))
    assert (uid, gid) == (1000, 2000)
    assert {3000, 3001} <= set(groups)


async def test_run_as_user_that_the_image_does_not_know(pods: Pods):
    uid, gid, groups = await ids(await pods.run(), Context(run_as_user=user(4711)))
    assert (uid, gid) == (4711, 0)
    assert not {3000, 3001} & set(groups)


async def test_run_as_username(pods: Pods):
    uid, gid, groups = await ids(await pods.run(), Context(run_as_username="app"))
    assert (uid, gid) == (1000, 2000)
    assert {3000, 3001} <= set(groups)


async def test_run_as_group(pods: Pods):
    context = Context(run_as_user=user(1000), run_as_group=user(4000))
    uid, gid, _groups = await ids(await pods.run(), context)
    assert (uid, gid) == (1000, 4000)


async def test_groups_are_merged_with_the_images(pods: Pods):
    context = Context(run_as_user=user(1000), supplemental_groups=[5000, 5001])
    _uid, _gid, groups = await ids(await pods.run(), context)
    assert {3000, 3001, 5000, 5001} <= set(groups)


async def test_groups_are_strictly_those_asked_for(pods: Pods):
    context = Context(
        run_as_user=user(1000),
        supplemental_groups=[5000, 5001],
        supplemental_groups_policy=pb.Strict,
    )
    _uid, _gid, groups = await ids(await pods.run(), context)
    assert {5000, 5001} <= set(groups) <= {2000, 5000, 5001}


@pytest.mark.parametrize(
    ("declared", "expected"),
    [("1000", (1000, 2000)), ("app", (1000, 2000)), ("app:extra", (1000, 3000)), ("7:8", (7, 8))],
)
async def test_the_images_user_counts_when_none_is_asked_for(
    pods: Pods, cri: CriClient, tmp_path: Path, declared: str, expected: tuple[int, int]
):
    layout = images.write_layout(
        tmp_path / "layout",
        [images.busybox_layer()],
        {"User": declared},
        name="localhost/user:latest",
    )
    image_id = await cri.pull_image(f"oci:{layout}")
    image = (await cri.image_status(image_id)).image
    if declared[0].isdigit():
        assert (image.uid.value, image.username) == (expected[0], "")
    else:
        assert (image.HasField("uid"), image.username) == (False, "app")
    pod = await pods.run()
    assert (await ids(pod, image=pb.ImageSpec(image=image_id)))[:2] == expected
    await cri.remove_image(image_id)


async def test_an_exec_is_who_the_container_is(pods: Pods):
    pod = await pods.run()
    box = await pod.start(security=Context(run_as_user=user(1000), supplemental_groups=[5000]))
    found = status_of(await pod.sh(box, "cat /proc/self/status"))
    assert (found["Uid"].split()[0], found["Gid"].split()[0]) == ("1000", "2000")
    assert {"3000", "5000"} <= set(found["Groups"].split())


# The root file system


async def test_a_root_that_is_read_only(pods: Pods):
    pod = await pods.run()
    script = "touch /data/x && echo written; touch /dev/shm/x && echo shm; touch /tmp/x && echo tmp"
    ended = await pod.run(script, security=Context(readonly_rootfs=True))
    assert ended.out == "shm\n"
    assert "Read-only file system" in ended.err


async def test_a_root_that_is_written_is_the_containers_own(pods: Pods):
    pod = await pods.run()
    first = await pod.run("echo mine > /data/kept; cat /data/kept", name="one")
    second = await pod.run("cat /data/kept", name="two")
    assert (first.out, second.out) == ("mine\n", "from the image\n")


@pytest.mark.parametrize("path", ["/proc/kcore", "/proc/timer_list", "/sys/firmware"])
async def test_masked_paths_hide(pods: Pods, path: str):
    pod = await pods.run()
    context = Context(masked_paths=[path, "/data", "/no/such/path"])
    script = f"if test -d {path}; then ls {path}; else cat {path}; fi; ls /data"
    ended = await pod.run(script, security=context)
    assert ended.out == ""


async def test_readonly_paths_cannot_be_written(pods: Pods):
    pod = await pods.run()
    context = Context(readonly_paths=["/data", "/no/such/path"])
    ended = await pod.run("cat /data/kept; touch /data/x", security=context)
    assert ended.out == "from the image\n"
    assert "Read-only file system" in ended.err


async def test_proc_and_sys_of_a_plain_container_cannot_change_the_host(pods: Pods):
    pod = await pods.run()
    script = (
        "for f in /proc/sysrq-trigger /proc/sys/kernel/core_pattern /sys/kernel/uevent_helper; do "
        "if test -e $f && echo x > $f; then echo wrote $f; fi; done"
    )
    paths = ["/proc/sys", "/proc/sysrq-trigger"]  # as the kubelet asks
    ended = await pod.run(script, security=Context(readonly_paths=paths))
    assert ended.out == ""


# Capabilities


def caps(field: str) -> int:
    return int(field, 16)


CHOWN, NET_ADMIN, NET_RAW, SYS_ADMIN, SYS_TIME = 1 << 0, 1 << 12, 1 << 13, 1 << 21, 1 << 25


async def capabilities(pod, context: Context | None = None) -> dict[str, int]:
    ended = await pod.run("cat /proc/self/status", security=context)
    fields = status_of(ended.out)
    return {name: caps(fields[f"Cap{name}"]) for name in ("Bnd", "Eff", "Prm", "Inh", "Amb")}


async def test_capabilities_by_default(pods: Pods):
    found = await capabilities(await pods.run())
    assert found["Bnd"] == found["Eff"] == found["Prm"]
    assert found["Eff"] & (CHOWN | NET_RAW) == CHOWN | NET_RAW
    assert not found["Eff"] & (NET_ADMIN | SYS_ADMIN | SYS_TIME)
    assert found["Inh"] == found["Amb"] == 0


@pytest.mark.parametrize("name", ["NET_ADMIN", "CAP_NET_ADMIN", "net_admin"])
async def test_a_capability_that_is_added(pods: Pods, name: str):
    context = Context(capabilities=pb.Capability(add_capabilities=[name]))
    found = await capabilities(await pods.run(), context)
    assert found["Eff"] & NET_ADMIN
    assert not found["Eff"] & SYS_TIME


async def test_a_capability_that_is_dropped(pods: Pods):
    context = Context(capabilities=pb.Capability(drop_capabilities=["NET_RAW"]))
    found = await capabilities(await pods.run(), context)
    assert not found["Bnd"] & NET_RAW
    assert found["Eff"] & CHOWN


async def test_all_dropped_and_one_added(pods: Pods):
    wanted = pb.Capability(drop_capabilities=["ALL"], add_capabilities=["CHOWN"])
    found = await capabilities(await pods.run(), Context(capabilities=wanted))
    assert found["Bnd"] == found["Eff"] == CHOWN


async def test_all_added_and_one_dropped(pods: Pods):
    wanted = pb.Capability(add_capabilities=["ALL"], drop_capabilities=["NET_RAW"])
    found = await capabilities(await pods.run(), Context(capabilities=wanted))
    assert found["Eff"] & SYS_ADMIN
    assert not found["Eff"] & NET_RAW


async def test_ambient_capabilities_reach_a_user(pods: Pods):
    wanted = pb.Capability(add_ambient_capabilities=["NET_ADMIN"])
    context = Context(run_as_user=user(1000), capabilities=wanted)
    found = await capabilities(await pods.run(), context)
    assert found["Amb"] == found["Eff"] == NET_ADMIN


async def test_an_unknown_capability_is_left_out(pods: Pods):
    wanted = pb.Capability(add_capabilities=["FLY", "NET_ADMIN"])
    found = await capabilities(await pods.run(), Context(capabilities=wanted))
    assert found["Eff"] & NET_ADMIN


async def test_an_exec_has_no_more_than_the_container(pods: Pods):
    pod = await pods.run()
    wanted = pb.Capability(drop_capabilities=["ALL"], add_capabilities=["CHOWN"])
    box = await pod.start(security=Context(capabilities=wanted, no_new_privs=True))
    found = status_of(await pod.sh(box, "cat /proc/self/status"))
    assert {caps(found[f"Cap{name}"]) for name in ("Bnd", "Eff", "Prm")} == {CHOWN}
    assert found["NoNewPrivs"] == "1"


# Privileges


@pytest.mark.parametrize("bound", [False, True])
async def test_no_new_privs_takes_the_effect_of_set_user_id_away(pods: Pods, bound: bool):
    if platform.machine() != "x86_64":
        host_lacks("the program is for x86-64")
    pod = await pods.run()
    context = Context(run_as_user=user(42), no_new_privs=bound)
    ended = await pod.run(["/bin/as-app"], security=context)
    assert ended.code == (42 if bound else 1000 % 256)


def privileged() -> pb.LinuxSandboxSecurityContext:
    options = pb.NamespaceOption(pid=pb.CONTAINER)
    return pb.LinuxSandboxSecurityContext(privileged=True, namespace_options=options)


async def test_privileged_has_all_that_can_be_granted(pods: Pods, handler):
    handler.needs(Feature.PRIVILEGED)
    pod = await pods.run(security=privileged())
    script = (
        "cat /proc/self/status; mount -t tmpfs t /tmp && echo mounted; "
        "test -c /dev/kmsg && echo devices; touch /proc/sys/kernel/hostname && echo proc"
    )
    ended = await pod.run(script, security=Context(privileged=True))
    fields = status_of(ended.out)
    own = status_of(Path("/proc/self/status").read_text())
    assert caps(fields["CapEff"]) == caps(own["CapBnd"])
    assert fields["Seccomp"] == "0"
    words = ended.out.splitlines()[-3:]
    expected = (
        ["mounted", "devices", "proc"] if os.path.exists("/dev/kmsg") else ["mounted", "proc"]
    )
    assert [word for word in words if word in {"mounted", "devices", "proc"}] == expected


async def test_plain_containers_of_a_privileged_pod_stay_plain(pods: Pods, handler):
    handler.needs(Feature.PRIVILEGED)
    found = await capabilities(await pods.run(security=privileged()))
    assert not found["Eff"] & SYS_ADMIN


# Seccomp


def profile(kind: int, reference: str = "") -> Context:
    found = pb.SecurityProfile(profile_type=kind, localhost_ref=reference)
    return Context(seccomp=found)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [(pb.SecurityProfile.RuntimeDefault, "2"), (pb.SecurityProfile.Unconfined, "0")],
)
async def test_seccomp_modes(pods: Pods, handler, kind: int, mode: str):
    handler.needs(Feature.SECCOMP)
    pod = await pods.run()
    ended = await pod.run("cat /proc/self/status", security=profile(kind))
    assert status_of(ended.out)["Seccomp"] == mode


async def test_the_default_profile_stops_what_a_container_never_needs(pods: Pods, handler):
    handler.needs(Feature.SECCOMP)
    pod = await pods.run()
    # unshare needs no capability for a user namespace, but the profile forbids it.
    ended = await pod.run("unshare -U true", security=profile(pb.SecurityProfile.RuntimeDefault))
    assert ended.code != 0
    assert "not permitted" in ended.err


async def test_a_profile_of_the_node(pods: Pods, handler, tmp_path: Path):
    handler.needs(Feature.SECCOMP)
    place = tmp_path / "no-mkdir.json"
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}
    place.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    pod = await pods.run()
    context = profile(pb.SecurityProfile.Localhost, str(place))
    ended = await pod.run("mkdir /tmp/x; touch /tmp/y && echo touched", security=context)
    assert ended.out == "touched\n"
    assert "Permission denied" in ended.err


async def test_an_exec_is_filtered_as_the_container(pods: Pods, handler):
    handler.needs(Feature.SECCOMP)
    pod = await pods.run()
    box = await pod.start(security=profile(pb.SecurityProfile.RuntimeDefault))
    assert status_of(await pod.sh(box, "cat /proc/self/status"))["Seccomp"] == "2"


async def test_apparmor_is_refused_where_the_host_has_none(pods: Pods, handler):
    if Path("/sys/module/apparmor/parameters/enabled").exists():
        host_offers("AppArmor")
    found = pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault)
    pod = await pods.run()
    with refused("FAILED_PRECONDITION", "AppArmor"):
        await pod.create(security=Context(apparmor=found))


async def test_selinux_options_are_refused_where_no_label_can_be_given(pods: Pods, handler):
    handler.lacks(Feature.SELINUX)
    options = pb.SELinuxOption(type="container_t", level="s0:c1,c2")
    pod = await pods.run()
    with refused("FAILED_PRECONDITION", "SELinux"):
        await pod.create(security=Context(selinux_options=options))
    security = pb.LinuxSandboxSecurityContext(selinux_options=options)
    with refused("FAILED_PRECONDITION", "SELinux"):
        await pods.run(name="labelled", security=security)
