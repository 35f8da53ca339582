"""Mounts of a container."""

import dataclasses

import pytest

from polypod.plugin.errors import InvalidArgument, Unsupported
from polypod.plugin.oci import OciIdMapping
from polypod.plugin.requests import IdMapping, ImageSpec, Mount, MountPropagation
from polypod.spec.mounts import MountInputs, SandboxFiles, container_mounts, rootfs_propagation

FILES = SandboxFiles("/run/s/hostname", "/run/s/hosts", "/run/s/resolv.conf", "/run/s/shm")
PLAIN = MountInputs(files=FILES)


def mounts(*requested, inputs=PLAIN):
    return {item.destination: item for item in container_mounts(tuple(requested), inputs)}


def test_default_mounts():
    found = mounts()
    assert list(found)[:3] == ["/proc", "/dev", "/sys"]
    assert set(found) == {
        "/proc",
        "/dev",
        "/sys",
        "/dev/pts",
        "/dev/mqueue",
        "/dev/shm",
        "/sys/fs/cgroup",
        "/etc/hostname",
        "/etc/hosts",
        "/etc/resolv.conf",
    }
    assert found["/dev/shm"].source == "/run/s/shm"
    assert {"nosuid", "noexec", "nodev"} <= set(found["/proc"].options)


def test_own_shm_without_the_sandboxes():
    shm = mounts(inputs=MountInputs())["/dev/shm"]
    assert (shm.type, "size=67108864" in shm.options) == ("tmpfs", True)
    assert "/etc/hosts" not in mounts(inputs=MountInputs())


def test_e6_kernel_file_systems_are_read_only_unless_privileged():
    for path in ("/sys", "/sys/fs/cgroup"):
        assert "ro" in mounts()[path].options
        assert "ro" not in mounts(inputs=dataclasses.replace(PLAIN, privileged=True))[path].options


def test_files_follow_a_read_only_root():
    assert "rw" in mounts()["/etc/hosts"].options
    assert (
        "ro"
        in mounts(inputs=dataclasses.replace(PLAIN, readonly_rootfs=True))["/etc/hosts"].options
    )


def test_devpts_without_a_mapped_tty_group():
    assert "gid=5" in mounts()["/dev/pts"].options
    options = mounts(inputs=MountInputs(devpts_gid=None))["/dev/pts"].options
    assert not any(item.startswith("gid=") for item in options)


def test_requested_mount_replaces_a_default_one():
    found = mounts(Mount("/etc/hosts", "/srv/hosts"), Mount("/dev/shm/", "/srv/shm"))
    assert found["/etc/hosts"].source == "/srv/hosts"
    assert found["/dev/shm"].source == "/srv/shm"
    assert len(found) == len(container_mounts((Mount("/etc/hosts", "/srv/hosts"),), PLAIN))


def test_parents_come_before_children_and_equals_stay_in_order():
    requested = (Mount("/a/b/c", "/1"), Mount("/a", "/2"), Mount("/a/b", "/3"), Mount("/z", "/4"))
    order = [item.destination for item in container_mounts(requested, MountInputs())]
    assert [path for path in order if path in ("/a", "/a/b", "/a/b/c", "/z")] == [
        "/a",
        "/z",
        "/a/b",
        "/a/b/c",
    ]
    twice = container_mounts((Mount("/a", "/1"), Mount("/a", "/2")), MountInputs())
    assert [item.source for item in twice if item.destination == "/a"] == ["/1", "/2"]


@pytest.mark.parametrize(
    ("mount", "options"),
    [
        (Mount("/v", "/s"), ("rbind", "rprivate", "rw")),
        (Mount("/v", "/s", readonly=True), ("rbind", "rprivate", "ro")),
        (
            Mount("/v", "/s", readonly=True, recursive_read_only=True),
            ("rbind", "rprivate", "rro"),
        ),
        (
            Mount("/v", "/s", propagation=MountPropagation.HOST_TO_CONTAINER),
            ("rbind", "rslave", "rw"),
        ),
        (
            Mount("/v", "/s", mount_options=("nodev", "noexec", "nodev")),
            ("rbind", "rprivate", "rw", "nodev", "noexec"),
        ),
    ],
)
def test_options_of_a_requested_mount(mount, options):
    assert mounts(mount)["/v"].options == options


def test_mappings_of_an_idmapped_mount():
    mount = Mount(
        "/v", "/s", uid_mappings=(IdMapping(100, 0, 10),), gid_mappings=(IdMapping(200, 0, 10),)
    )
    found = mounts(mount)["/v"]
    assert found.uid_mappings == (OciIdMapping(0, 100, 10),)
    assert found.gid_mappings == (OciIdMapping(0, 200, 10),)


BIDIRECTIONAL = Mount("/v", "/s", propagation=MountPropagation.BIDIRECTIONAL)


def test_bidirectional_takes_a_privileged_container_without_user_namespace():
    allowed = dataclasses.replace(PLAIN, privileged=True)
    assert "rshared" in mounts(BIDIRECTIONAL, inputs=allowed)["/v"].options
    for inputs in (PLAIN, dataclasses.replace(allowed, user_namespace=True)):
        with pytest.raises(InvalidArgument, match="bidirectional"):
            mounts(BIDIRECTIONAL, inputs=inputs)


def test_root_has_the_propagation_of_the_most_open_mount():
    slave = Mount("/v", "/s", propagation=MountPropagation.HOST_TO_CONTAINER)
    assert rootfs_propagation(()) == "rprivate"
    assert rootfs_propagation((Mount("/v", "/s"), slave)) == "rslave"
    assert rootfs_propagation((BIDIRECTIONAL, slave)) == "rshared"


def test_image_volume():
    mount = Mount("/v", image=ImageSpec("sha256:1"))
    inputs = MountInputs(image_volumes={"/v": "/run/image"})
    found = mounts(mount, inputs=inputs)["/v"]
    assert (found.source, "ro" in found.options) == ("/run/image", True)
    with pytest.raises(Unsupported, match="ImageVolumeMountFailed"):
        mounts(mount)
    with pytest.raises(InvalidArgument, match="exclude each other"):
        mounts(dataclasses.replace(mount, host_path="/s"), inputs=inputs)


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        (Mount("", "/s"), "container_path: must not be empty"),
        (Mount("/", "/s"), "the root itself"),
        (Mount("/a/..", "/s"), "the root itself"),
        (Mount("/../etc", "/s"), "climbs above"),
        (Mount("/v\0", "/s"), "NUL"),
        (Mount("/v", ""), "host_path: must not be empty"),
        (Mount("/v", "srv"), "must be an absolute path"),
        (Mount("/v", "/../etc"), "climbs above"),
        (Mount("/v", "/s", recursive_read_only=True), "recursive_read_only"),
        (
            Mount(
                "/v",
                "/s",
                readonly=True,
                recursive_read_only=True,
                propagation=MountPropagation.HOST_TO_CONTAINER,
            ),
            "recursive_read_only",
        ),
        (Mount("/v", "/s", mount_options=("suid",)), "mount_options"),
        (Mount("/v", "/s", mount_options=("nosuid,dev",)), "mount_options"),
        (Mount("/v", "/s", uid_mappings=(IdMapping(0, 0, 0),)), "uidMappings"),
    ],
)
def test_e19_malformed_mount_is_refused(mount, words):
    with pytest.raises(InvalidArgument, match=words):
        mounts(mount)
