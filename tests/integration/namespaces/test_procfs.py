"""E3: kernel files are written through a procfs of our own, whatever a container has at ``/proc``."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from support.containment_parts import security
from support.racing import Racer

from polypod.plugin.requests import Mount, Resources
from polypod.plugin.rootfs import DirectoryRootfs

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay, pytest.mark.needs_busybox]

_OOM = 700


@pytest.fixture
def layer(tmp_path) -> Path:
    place = tmp_path / "layer"
    place.mkdir()
    return place


def with_sysctl(config):
    """As an OCI config may ask: a sysctl of a namespace of the container's own."""
    kept = [item for item in config.linux.namespaces if item.type != "uts"]
    own = replace(next(item for item in config.linux.namespaces if item.type == "uts"), path="")
    sysctl = {"kernel.domainname": "set-by-config"}
    return replace(config, linux=replace(config.linux, namespaces=(*kept, own), sysctl=sysctl))


@pytest.mark.parametrize("name", ["proc", "sys"])
@pytest.mark.parametrize("target", ["/tmp", "tmp/x", "/proc2", "../../../../tmp", "self"])
async def test_e3_kernel_file_system_on_a_link_is_refused(pod, layer, name, target):
    (layer / name).symlink_to(target)
    result = await pod.run("echo ran", layers=[layer])
    assert f"/{name}" in result.error
    assert "mount" in result.error
    assert result.out == ""


@pytest.mark.parametrize("name", ["proc", "sys"])
async def test_e3_kernel_file_system_on_a_file_is_refused(pod, layer, name):
    (layer / name).write_text("not a directory\n")
    result = await pod.run("echo ran", layers=[layer])
    assert f"/{name}" in result.error
    assert result.out == ""


async def test_e3_missing_mount_points_are_made(pod, tmp_path, bench):
    """An image of one file: busybox."""
    root = tmp_path / "small"
    (root / "bin").mkdir(parents=True)
    (root / "bin/busybox").hardlink_to(bench.root / "bin/busybox")
    result = await pod.run(
        ("/bin/busybox", "ls", "/proc/self/status", "/sys/kernel", "/dev/null"),
        root=DirectoryRootfs(root),
    )
    assert result.code == 0, result


def fake_proc(place: Path) -> dict[str, Path]:
    """A tree with the files that a launch writes."""
    files = {}
    for name in ("1", "self", "thread-self"):
        directory = place / name
        directory.mkdir(parents=True)
        for each in ("oom_score_adj", "uid_map", "setgroups", "comm"):
            files[f"{name}/{each}"] = directory / each
        (directory / "attr").mkdir()
        files[f"{name}/attr/exec"] = directory / "attr/exec"
    (place / "sys/kernel").mkdir(parents=True)
    files["sys/kernel/domainname"] = place / "sys/kernel/domainname"
    files["sysrq-trigger"] = place / "sysrq-trigger"
    for file in files.values():
        file.write_text("fake\n")
    return files


async def test_e3_nothing_is_written_into_a_fake_procfs(pod, tmp_path):
    files = fake_proc(tmp_path / "fake")
    box = await pod.start(
        "echo ready; exec sleep 100",
        mounts=(Mount("/proc", str(tmp_path / "fake")),),
        resources=Resources(oom_score_adj=_OOM),
        adjust=with_sysctl,
        security=security(seccomp=None),
    )
    await box.says("ready")
    pid = await box.pid()
    # All was applied, to the real process and the real namespace.
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == str(_OOM)
    assert domainname(pid) == "set-by-config"
    assert {file.read_text() for file in files.values()} == {"fake\n"}


def domainname(pid: int) -> str:
    """Ask the namespace itself: the container's procfs is a fake."""
    command = ["nsenter", f"--uts=/proc/{pid}/ns/uts", "cat", "/proc/sys/kernel/domainname"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("target", ["/proc/self", "/proc/1", "/proc/sys", "/proc/sys/kernel"])
async def test_e3_volume_inside_proc_redirects_nothing(pod, tmp_path, target):
    files = fake_proc(tmp_path / "fake")
    below = target.removeprefix("/proc/")
    source = tmp_path / "fake" / ("1" if below in ("self", "1") else below)
    result = await pod.run(
        "cat /proc/thread-self/../../oom_score_adj; exit 0",
        mounts=(Mount(target, str(source)),),
        resources=Resources(oom_score_adj=_OOM),
        adjust=with_sysctl,
    )
    assert {file.read_text() for file in files.values()} == {"fake\n"}
    # Where it runs, it runs with what was asked for.
    assert result.error or str(_OOM) in result.out


@pytest.mark.parametrize("link", ["/proc", "/proc/self", "/proc/sys", "/proc/1/task/1"])
async def test_e3_link_may_not_lead_a_volume_into_proc(pod, layer, tmp_path, link):
    (layer / "way").symlink_to(link)
    (tmp_path / "source").mkdir()
    name = {"/proc": "sys", "/proc/sys": "kernel"}.get(link, "attr")
    mounts = (Mount(f"/way/{name}", str(tmp_path / "source")),)
    result = await pod.run("echo ran", layers=[layer], mounts=mounts)
    assert "leads into /proc by a link of the image" in result.error


async def test_e3_race_into_proc(pod, tmp_path):
    """Two containers share a volume; one swaps a directory of it for a link into /proc."""
    shared, source = tmp_path / "shared", tmp_path / "source"
    (shared / "here/sys").mkdir(parents=True)
    (shared / "there").symlink_to("/proc")
    source.mkdir()
    mounts = (Mount("/mnt", str(shared)), Mount("/mnt/here/sys", str(source)))
    refused = ran = 0
    with Racer(shared, "here", "there") as racer:
        for _ in range(60):
            result = await pod.run("grep -c ' /proc/sys ' /proc/self/mountinfo", mounts=mounts)
            # One is ours: the read-only /proc/sys.
            assert result.error or result.out == "1\n"
            refused += "leads into /proc" in result.error
            ran += not result.error
        await racer.swapped_often()
    assert refused
    assert ran


async def test_e3_exec_writes_nothing_through_the_containers_proc(pod, tmp_path):
    files = fake_proc(tmp_path / "fake")
    box = await pod.start(
        "echo ready; exec sleep 100",
        mounts=(Mount("/proc", str(tmp_path / "fake")),),
        resources=Resources(oom_score_adj=_OOM),
    )
    await box.says("ready")
    session, output = await box.session("echo there; exec sleep 100")
    try:
        while b"there" not in (await output.collect())[0]:
            continue
        pids = [pid for pid in _children_with(box.id) if pid != await box.pid()]
        assert pids
        for pid in pids:
            assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == str(_OOM)
    finally:
        await session.kill(9)
        output.close()
    assert {file.read_text() for file in files.values()} == {"fake\n"}


def _children_with(container_id: str) -> list[int]:
    """Return the pids in a container's cgroup and below."""
    found: list[int] = []
    for file in Path("/sys/fs/cgroup").glob(f"*/polypod-test-*/*/{container_id}/**/cgroup.procs"):
        found += map(int, file.read_text().split())
    return sorted(set(found))
