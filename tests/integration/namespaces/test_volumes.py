"""Volumes: access, propagation, what they may cover, what their sources are."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.containment_parts import security

from polypod.plugin.oci import OciMount
from polypod.plugin.requests import Mount, MountPropagation

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay, pytest.mark.needs_busybox]

_SLEEP = "echo ready; exec sleep 100"
_MS_SHARED, _MS_REC, _MNT_DETACH = 1 << 20, 0x4000, 2
_libc = ctypes.CDLL(None, use_errno=True)


def mount_tmpfs(path: Path, flags: int = 0) -> None:
    path.mkdir(exist_ok=True)
    done = _libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", ctypes.c_ulong(flags), b"size=1m")
    assert done == 0, os.strerror(ctypes.get_errno())


def unmount(path: Path) -> None:
    assert _libc.umount2(os.fsencode(path), _MNT_DETACH) == 0


@contextlib.contextmanager
def mounted(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """A tmpfs of the test's own mount namespace, with all that is mounted below it meanwhile."""
    mount_tmpfs(path)
    if shared:
        assert _libc.mount(b"", os.fsencode(path), b"", ctypes.c_ulong(_MS_SHARED), b"") == 0
    try:
        yield path
    finally:
        unmount(path)


@pytest.fixture
def source(tmp_path) -> Path:
    place = tmp_path / "source"
    place.mkdir()
    (place / "file").write_text("text\n")
    return place


async def test_read_write(pod, source):
    script = "cat /v/file; echo new > /v/made; chown 7:8 /v/made"
    result = await pod.run(script, mounts=(Mount("/v", str(source)),))
    assert result.out == "text\n"
    assert (source / "made").read_text() == "new\n"
    assert (source / "made").stat().st_uid == 7


async def test_read_only(pod, source):
    volume = Mount("/v", str(source), readonly=True)
    for asked in (security(), security(privileged=True)):
        script = "cat /v/file; touch /v/x; echo y > /v/file"
        result = await pod.run(script, mounts=(volume,), security=asked)
        assert result.out == "text\n"
        assert result.err.count("Read-only file system") == 2
    assert os.listdir(source) == ["file"]


async def test_read_only_is_the_top_mount_and_recursive_the_rest(pod, source):
    with mounted(source / "inner") as inner:
        plain = Mount("/v", str(source), readonly=True)
        result = await pod.run("touch /v/x; touch /v/inner/plain", mounts=(plain,))
        assert result.err.count("Read-only file system") == 1
        assert (inner / "plain").exists()
        deep = replace(plain, recursive_read_only=True)
        result = await pod.run("touch /v/x; touch /v/inner/deep", mounts=(deep,))
        assert result.err.count("Read-only file system") == 2
        assert not (inner / "deep").exists()
        # On the host it is as writable as before.
        (inner / "host").touch()


async def test_flags_of_a_volume(pod, source, bench):
    shutil.copy(bench.root / "bin/busybox", source / "busybox")
    volume = Mount("/v", str(source), mount_options=("noexec", "nosuid", "nodev"))
    result = await pod.run("/v/busybox true", mounts=(volume,))
    assert "Permission denied" in result.err
    result = await pod.run("awk '$5 == \"/v\" { print $6 }' /proc/self/mountinfo", mounts=(volume,))
    assert {"noexec", "nosuid", "nodev"} <= set(result.out.strip().split(","))


async def test_what_is_mounted_below_comes_along(pod, source):
    with mounted(source / "inner") as inner:
        (inner / "below").touch()
        assert (await pod.run("ls /v/inner", mounts=(Mount("/v", str(source)),))).out == "below\n"


async def test_single_file(pod, source):
    volume = Mount("/etc/app/config", str(source / "file"))
    result = await pod.run("cat /etc/app/config; echo more >> /etc/app/config", mounts=(volume,))
    assert result.out == "text\n"
    assert (source / "file").read_text() == "text\nmore\n"


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "/etc/hosts", "/bin/ls", "/dev/null", "/dev/extra"]
)
async def test_file_over_a_file(pod, source, target):
    volume = Mount(target, str(source / "file"))
    assert (await pod.run(f"cat {target}", mounts=(volume,))).out == "text\n"


@pytest.mark.parametrize(
    "target", ["/dev/shm", "/dev/mqueue", "/dev", "/tmp", "/etc", "/sys/fs/cgroup"]
)
async def test_volume_over_a_default_mount(pod, source, target):
    result = await pod.run(f"cat {target}/file", mounts=(Mount(target, str(source)),))
    assert result.out == "text\n"


async def test_device_and_socket_and_fifo(pod, tmp_path):
    os.mknod(tmp_path / "zero", 0o020666, os.makedev(1, 5))
    os.mkfifo(tmp_path / "fifo")
    listener = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(tmp_path)
    listener.bind("sock")
    os.chdir(here)
    volumes = tuple(
        Mount(f"/run/{name}", str(tmp_path / name)) for name in ("zero", "fifo", "sock")
    )
    result = await pod.run(
        "stat -c %F /run/zero /run/fifo /run/sock; head -c 1 /run/zero | wc -c", mounts=volumes
    )
    listener.close()
    assert result.lines == ["character special file", "fifo", "socket", "1"]


async def test_source_that_is_missing_is_made(pod, tmp_path):
    """A kubelet's hostPath without a type."""
    result = await pod.run("touch /v/x", mounts=(Mount("/v", str(tmp_path / "made/for/it")),))
    assert result.code == 0
    assert stat.S_IMODE((tmp_path / "made/for/it").stat().st_mode) == 0o755


async def test_source_that_cannot_be(pod, source):
    for path, word in ((str(source / "file/x"), "Not a directory"), ("relative", "absolute")):
        result = await pod.run("true", mounts=(Mount("/v", path),))
        assert result.kind == "InvalidArgument"
        assert word in result.error


async def test_volumes_in_volumes_whatever_the_order(pod, tmp_path):
    for name in ("outer", "middle", "inner"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    volumes = (
        Mount("/v/b/c", str(tmp_path / "inner")),
        Mount("/v", str(tmp_path / "outer")),
        Mount("/v/b", str(tmp_path / "middle")),
    )
    result = await pod.run("ls -d /v/outer /v/b/middle /v/b/c/inner", mounts=volumes)
    assert result.code == 0, result


async def test_many_volumes(pod, tmp_path):
    for number in range(100):
        (tmp_path / str(number)).mkdir()
    volumes = tuple(Mount(f"/v/{number}", str(tmp_path / str(number))) for number in range(100))
    assert (await pod.run("grep -c ' /v/' /proc/self/mountinfo", mounts=volumes)).out == "100\n"
    more = tuple(Mount(f"/w/{number}", str(tmp_path / str(number))) for number in range(100))
    result = await pod.run("true", mounts=volumes + more)
    assert result.kind == "ResourceExhausted"
    assert "fewer mounts" in result.error


async def test_options_of_an_adjusted_config(pod, source):
    mount = OciMount("/v", "bind", str(source), ("bind", "ro", "noatime", "nosymfollow"))
    (source / "link").symlink_to("file")
    with mounted(source / "inner") as inner:
        (inner / "below").touch()
        result = await pod.run(
            "ls -A /v/inner; cat /v/link; awk '$5 == \"/v\" { print $6 }' /proc/self/mountinfo",
            adjust=lambda config: replace(config, mounts=(*config.mounts, mount)),
        )
    # A plain bind brings nothing along.
    (options,) = result.lines
    assert {"ro", "noatime", "nosymfollow"} <= set(options.split(","))


# Propagation


def volume_of(path: Path, how: MountPropagation) -> tuple[Mount, ...]:
    return (Mount("/v", str(path), propagation=how),)


async def mounts_below(box) -> str:
    return (await box.exec("awk '$5 ~ \"^/v/\" { print $5 }' /proc/self/mountinfo")).out


async def test_private_volume_sees_no_later_mount(pod, tmp_path):
    with mounted(tmp_path / "shared", shared=True) as place:
        box = await pod.start(_SLEEP, mounts=volume_of(place, MountPropagation.PRIVATE))
        await box.says("ready")
        mount_tmpfs(place / "later")
        assert await mounts_below(box) == ""
        unmount(place / "later")
        await box.delete()


async def test_host_to_container(pod, tmp_path):
    with mounted(tmp_path / "shared", shared=True) as place:
        box = await pod.start(
            _SLEEP,
            mounts=volume_of(place, MountPropagation.HOST_TO_CONTAINER),
            security=security(privileged=True),
        )
        await box.says("ready")
        mount_tmpfs(place / "later")
        assert await mounts_below(box) == "/v/later\n"
        # Not the other way round, whatever the container may do.
        result = await box.exec("mkdir /v/mine && mount -t tmpfs none /v/mine && touch /v/mine/x")
        assert result.code == 0, result
        assert not os.path.ismount(place / "mine")
        unmount(place / "later")
        assert await mounts_below(box) == "/v/mine\n"
        await box.delete()


async def test_bidirectional(pod, tmp_path):
    with mounted(tmp_path / "shared", shared=True) as place:
        box = await pod.start(
            _SLEEP,
            mounts=volume_of(place, MountPropagation.BIDIRECTIONAL),
            security=security(privileged=True),
        )
        await box.says("ready")
        mount_tmpfs(place / "later")
        assert await mounts_below(box) == "/v/later\n"
        result = await box.exec("mkdir /v/mine && mount -t tmpfs none /v/mine && touch /v/mine/x")
        assert result.code == 0, result
        assert (place / "mine/x").exists()
        for name in ("later", "mine"):
            unmount(place / name)
        assert await mounts_below(box) == ""
        await box.delete()


async def test_bidirectional_takes_a_privileged_container(pod, tmp_path):
    with mounted(tmp_path / "shared", shared=True) as place:
        result = await pod.run("true", mounts=volume_of(place, MountPropagation.BIDIRECTIONAL))
    assert result.kind == "InvalidArgument"
    assert "privileged" in result.error


@pytest.mark.parametrize(
    "how", [MountPropagation.BIDIRECTIONAL, MountPropagation.HOST_TO_CONTAINER], ids=str
)
async def test_propagation_that_the_host_cannot_give(pod, source, how):
    result = await pod.run(
        "true", mounts=volume_of(source, how), security=security(privileged=True)
    )
    assert result.kind == "InvalidArgument"
    assert "make-rshared" in result.error


async def test_volume_with_shared_mounts_does_not_leak_them(pod, tmp_path):
    """A private volume of a tree whose inner mounts are shared: what is mounted in there stays there."""
    (tmp_path / "tree").mkdir()
    with mounted(tmp_path / "tree/inner", shared=True) as inner:
        result = await pod.run(
            "mkdir /v/inner/mine && mount -t tmpfs none /v/inner/mine; cut -d' ' -f5,7 /proc/self/mountinfo | grep /v",
            mounts=(Mount("/v", str(tmp_path / "tree")),),
            security=security(privileged=True),
        )
        assert result.code == 0, result
        assert not os.path.ismount(inner / "mine")
        assert "shared" not in result.out
