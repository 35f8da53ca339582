"""Kernels before 6.15 take as layers, and copy, only mounts that are attached somewhere: what is done there."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
from support.containment_parts import OWN_PIDS

from polypod.backend import mountapi
from polypod.backend.users import Stage
from polypod.plugin.oci import OciDevice, OciIdMapping
from polypod.plugin.requests import IdMapping, NamespaceMode, UserNamespace
from polypod.plugin.services import IdMaps

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay, pytest.mark.needs_busybox]

_RANGES = (IdMapping(300_000, 0, 65_536),)
_USERS = UserNamespace(NamespaceMode.POD, _RANGES, _RANGES)


def is_attached(fd: int) -> bool:
    """Tell whether the mount of a descriptor is in our mount namespace."""
    facts = Path(f"/proc/self/fdinfo/{fd}").read_text()
    number = next(line.split()[1] for line in facts.splitlines() if line.startswith("mnt_id:"))
    table = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[0] == number for line in table)


def refuse() -> OSError:
    return OSError(errno.EINVAL, "as an older kernel")


@pytest.fixture(params=["6.7", "6.1"])
def older(monkeypatch, request):
    """A kernel that refuses what these refused; with 6.1 it does not know ``lowerdir+`` either."""
    mount, copy = mountapi.mount_detached, mountapi.open_tree

    def mount_detached(fstype, options, **others):
        for key, value in options:
            if key == "lowerdir+" and request.param == "6.1":
                raise refuse()
            for place in value.split(":") if key.startswith("lowerdir") else ():
                fd = os.open(place, os.O_PATH)
                try:
                    if not is_attached(fd):
                        raise refuse()
                finally:
                    os.close(fd)
        return mount(fstype, options, **others)

    def open_tree(directory, path, flags):
        if not path and not is_attached(directory):
            raise refuse()
        return copy(directory, path, flags)

    monkeypatch.setattr(mountapi, "mount_detached", mount_detached)
    monkeypatch.setattr(mountapi, "open_tree", open_tree)


async def test_a_pod_with_a_user_namespace(bench, older, tmp_path):
    pod = await bench.pod(replace(OWN_PIDS, userns=_USERS))
    nodes = (OciDevice("/one", "c", 1, 5), OciDevice("/two", "c", 1, 3))

    def with_nodes(config):
        return replace(config, linux=replace(config.linux, devices=nodes))

    layer = tmp_path / "layer"
    (layer / "more").mkdir(parents=True)
    script = "stat -c %u /more /bin; touch /more/x && head -c 2 /one | wc -c && echo x > /two"
    result = await pod.run(script, adjust=with_nodes, layers=(layer,))
    assert result.error == ""
    assert result.out.split() == ["0", "0", "2"], result.err
    assert list((bench.directory / "handler/stage").iterdir()) == []


async def test_parts_of_a_mount(bench, older, tmp_path):
    stage = Stage(tmp_path / "stage")
    (tmp_path / "tree/deep").mkdir(parents=True)
    (tmp_path / "tree/deep/file").write_text("found")
    (tmp_path / "tree/link").symlink_to("/deep")
    flags = mountapi.OPEN_TREE_CLONE | mountapi.OPEN_TREE_CLOEXEC
    whole = mountapi.open_tree(mountapi.AT_FDCWD, str(tmp_path / "tree"), flags)
    parts = stage.parts_of(whole, ["link/file", "deep"])
    assert Path(f"/proc/self/fd/{parts[0]}").read_text() == "found"
    assert os.listdir(f"/proc/self/fd/{parts[1]}") == ["file"]
    for fd in (whole, *parts):
        os.close(fd)
    assert list((tmp_path / "stage").iterdir()) == []


async def test_what_a_killed_daemon_left_is_unmounted(bench, tmp_path):
    """Its directories are removed, never what was mounted on them."""
    (tmp_path / "layer").mkdir()
    (tmp_path / "layer/file").write_text("kept")
    place = tmp_path / "stage/left"
    place.mkdir(parents=True)
    flags = mountapi.OPEN_TREE_CLONE | mountapi.OPEN_TREE_CLOEXEC
    fd = mountapi.open_tree(mountapi.AT_FDCWD, str(tmp_path / "layer"), flags)
    users = await bench.host.supervisor.map_ids(
        IdMaps((OciIdMapping(0, 7, 1),), (OciIdMapping(0, 7, 1),))
    )
    mountapi.idmap(fd, users)
    mountapi.move_mount(fd, str(place))
    os.close(fd)
    os.close(users)
    Stage(tmp_path / "stage")
    assert list((tmp_path / "stage").iterdir()) == []
    assert (tmp_path / "layer/file").read_text() == "kept"
