"""E5 and E19: what an image or a volume links to is found inside the container, or not at all."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from support.containment_parts import Decoy
from support.racing import Racer

from polypod.plugin.images import ImageConfig
from polypod.plugin.oci import OciDevice, OciMount
from polypod.plugin.requests import Mount
from polypod.plugin.rootfs import DirectoryRootfs

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay, pytest.mark.needs_busybox]


@pytest.fixture
def layer(tmp_path) -> Path:
    place = tmp_path / "layer"
    place.mkdir()
    return place


def climbing(decoy: Decoy) -> str:
    """A relative way to the decoy that a resolution from anywhere on the host would find."""
    return "../" * 20 + str(decoy.path).lstrip("/")


@pytest.mark.parametrize("style", ["absolute", "climbing"])
@pytest.mark.parametrize(
    "name", ["dev", "etc", "tmp", "var", "run", "sys", "mnt", "dev/pts", "dev/shm", "sys/fs"]
)
async def test_e5_directory_is_a_link_to_the_host(pod, layer, decoy, tmp_path, name, style):
    target = str(decoy.path / "dir") if style == "absolute" else f"{climbing(decoy)}/dir"
    (layer / name).parent.mkdir(exist_ok=True)
    (layer / name).symlink_to(target)
    source = tmp_path / "source"
    source.mkdir()
    mounts = tuple(
        Mount(f"/{place}/volume", str(source)) for place in ("var/run", "mnt", "tmp", "etc")
    )
    result = await pod.run(
        "touch /dev/new /etc/new /tmp/new /var/new 2>/dev/null; echo ran",
        layers=[layer],
        mounts=mounts,
        devices=(),
    )
    # Where it may run at all, it ran on files of its own.
    assert result.error or result.lines == ["ran"]
    assert decoy.unchanged()
    assert not any(source.iterdir())


@pytest.mark.parametrize("name", ["hosts", "hostname", "resolv.conf", "mtab", "passwd"])
async def test_e5_file_is_a_link_to_the_host(pod, layer, decoy, name):
    (layer / "etc").mkdir()
    (layer / "etc" / name).symlink_to(decoy.path / "file")
    result = await pod.run(f"echo mine >> /etc/{name}; cat /etc/hostname", layers=[layer])
    assert result.code == 0, result
    assert "pod" in result.lines
    assert decoy.unchanged()


async def test_e5_device_node_of_the_image_is_replaced_not_followed(pod, layer, decoy):
    (layer / "dev").mkdir()
    for name in ("null", "zero", "tty", "full", "random", "urandom"):
        (layer / "dev" / name).symlink_to(decoy.path / "null")

    def without_tmpfs(config):
        kept = [item for item in config.mounts if not item.destination.startswith("/dev")]
        return replace(config, mounts=tuple(kept))

    result = await pod.run(
        "echo x > /dev/null; stat -c %F /dev/null /dev/zero", layers=[layer], adjust=without_tmpfs
    )
    assert result.lines == ["character special file"] * 2
    assert decoy.unchanged()


@pytest.mark.parametrize("place", ["/dev/fuse", "/opt/card", "/deep/down/card"])
async def test_e5_device_below_a_link_of_the_image(pod, layer, decoy, place):
    (layer / "opt").symlink_to(decoy.path)
    (layer / "deep").symlink_to(climbing(decoy))
    device = OciDevice(place, "c", 10, 229, 0o600)

    def with_device(config):
        return replace(config, linux=replace(config.linux, devices=(device,)))

    result = await pod.run(f"stat -c '%F %t:%T' {place}", layers=[layer], adjust=with_device)
    assert result.error or result.lines == ["character special file a:e5"]
    assert decoy.unchanged()


async def test_e5_mount_targets_are_made_below_links(pod, layer, decoy, tmp_path):
    """Absolute and relative links, chains, links to what is missing, links that climb."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "here").touch()
    (layer / "abs").symlink_to("/real")
    (layer / "chain").symlink_to("abs/../abs")
    (layer / "missing").symlink_to("/made/for/it")
    (layer / "climb").symlink_to(climbing(decoy))
    mounts = tuple(
        Mount(f"/{name}/volume", str(source)) for name in ("abs", "chain", "missing", "climb")
    )
    result = await pod.run(
        "ls /abs/volume /chain/volume /made/for/it/volume /climb/volume",
        layers=[layer],
        mounts=mounts[:1] + mounts[2:],
    )
    assert result.out.count("here") == 4, result
    assert decoy.unchanged()
    # The same place twice: the second lies on the first.
    assert (await pod.run("ls /real/volume", layers=[layer], mounts=mounts[:2])).out == "here\n"


async def test_e5_link_that_leads_in_circles(pod, layer, tmp_path):
    (layer / "a").symlink_to("b")
    (layer / "b").symlink_to("a")
    result = await pod.run("true", layers=[layer], mounts=(Mount("/a/volume", str(tmp_path)),))
    assert "Too many levels of symbolic links" in result.error or "too many links" in result.error


async def test_e5_volume_on_a_file_of_the_image_and_the_reverse(pod, layer, tmp_path):
    (layer / "directory").mkdir()
    (layer / "file").touch()
    (tmp_path / "config").write_text("text\n")
    on_directory = (Mount("/directory", str(tmp_path / "config")),)
    result = await pod.run("true", layers=[layer], mounts=on_directory)
    assert "/directory: the volume is a file, the target is not" in result.error
    on_file = (Mount("/file", str(layer)),)
    result = await pod.run("true", layers=[layer], mounts=on_file)
    assert "/file: the volume is a directory, the target is not" in result.error


async def _race(pod, decoy: Decoy, place: Path, tries: int, **options) -> list[str]:
    """Run containers while the place is swapped; return what each said, or why it did not start."""
    (place / "here").mkdir()
    (place / "there").symlink_to(decoy.path / "dir")
    seen = []
    with Racer(place, "here", "there") as racer:
        for _ in range(tries):
            result = await pod.run("ls /mnt/here 2>&1 | head -3", **options)
            seen.append(result.error or result.out)
        await racer.swapped_often()
    return seen


async def test_e5_rename_race_in_the_root(pod, bench, decoy, tmp_path):
    """A root that somebody else changes while mounts are made below it."""
    root = tmp_path / "root"
    subprocess.run(["cp", "-al", bench.root, root], check=True)
    (root / "mnt").mkdir()
    source = tmp_path / "source"
    source.mkdir()
    mounts = (
        Mount("/mnt/here/deep/volume", str(source)),
        Mount("/mnt/here/file", "/etc/hostname"),
    )
    seen = await _race(
        pod, decoy, root / "mnt", 60, root=DirectoryRootfs(root), mounts=mounts, working_dir="/mnt/here/w"
    )  # fmt: skip
    assert decoy.unchanged()
    assert any("deep" in each for each in seen), seen


async def test_e5_rename_race_in_a_shared_volume(pod, decoy, tmp_path):
    """A volume that another container writes to, and a volume that is mounted inside it."""
    shared, source = tmp_path / "shared", tmp_path / "source"
    shared.mkdir()
    source.mkdir()
    mounts = (Mount("/mnt", str(shared)), Mount("/mnt/here/deep/volume", str(source)))
    seen = await _race(pod, decoy, shared, 60, mounts=mounts)
    assert decoy.unchanged()
    assert any("deep" in each for each in seen), seen


# E19


@pytest.mark.parametrize("path", ["/../../etc", "../../etc", "/a/../../b", "/..", ""])
async def test_e19_mount_target_may_not_climb(pod, tmp_path, path):
    result = await pod.run("true", mounts=(Mount(path, str(tmp_path)),))
    assert result.kind == "InvalidArgument"
    assert "container_path" in result.error


async def test_e19_mount_target_of_an_adjusted_config_may_not_climb(pod, tmp_path):
    bad = OciMount("/../../etc", "bind", str(tmp_path), ("rbind",))

    def climb(config):
        return replace(config, mounts=(*config.mounts, bad))

    result = await pod.run("true", adjust=climb)
    assert result.kind == "InvalidArgument"


@pytest.mark.parametrize("path", ["/../../etc", "../../etc"])
async def test_e19_working_directory_may_not_climb(pod, decoy, path):
    result = await pod.run("pwd", image=ImageConfig(working_dir=path))
    assert result.kind == "InvalidArgument"
    result = await pod.run("pwd", working_dir=path)
    assert result.kind == "InvalidArgument"


async def test_e19_working_directory_is_a_link_to_the_host(pod, layer, decoy):
    (layer / "srv").symlink_to(decoy.path)
    result = await pod.run(
        "pwd; touch made", layers=[layer], image=ImageConfig(working_dir="/srv/dir/x")
    )
    assert result.error or result.lines == [f"{decoy.path}/dir/x"]
    assert decoy.unchanged()


async def test_e19_volumes_of_the_image_reach_nothing_of_the_host(pod, layer, decoy):
    """CVE-2022-23648: a VOLUME of the image that climbs, or that is a link, copied the host's files."""
    (layer / "data").symlink_to(decoy.path / "dir")
    volumes = ("/../../etc", f"{climbing(decoy)}/dir", "/data", str(decoy.path))
    result = await pod.run(
        f"cat /data/file {decoy.path}/file; touch /data/new; echo ran",
        layers=[layer],
        image=ImageConfig(volumes=volumes),
    )
    assert result.error or result.lines == ["ran"]
    assert decoy.unchanged()


async def test_deep_mount_target(pod, tmp_path):
    deep = "/a" * 400
    volume = Mount(deep, str(tmp_path))
    assert (await pod.run(f"cd {deep} && pwd -P", mounts=(volume,))).out == f"{deep}\n"
    result = await pod.run("true", mounts=(Mount(f"/{'b' * 256}", str(tmp_path)),))
    assert "File name too long" in result.error
    result = await pod.run("true", mounts=(Mount("/a" * 3000, str(tmp_path)),))
    assert result.kind == "InvalidArgument"


async def test_e19_a_volumes_link_is_resolved_on_the_host_by_who_asked(pod, decoy, tmp_path):
    """The host path is the client's own word; a link *below* it is the container's and leads nowhere."""
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "out").symlink_to(decoy.path)
    result = await pod.run("cat /v/out/file", mounts=(Mount("/v", str(volume)),))
    assert result.code == 1
    assert "decoy" not in result.out
    assert decoy.unchanged()
