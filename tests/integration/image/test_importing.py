"""Layouts and archives: what lies is refused, what is right is found under its names (I4, I5, I6)."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import tarfile

import pytest
import zstandard

from polypod.plugin.errors import (
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unsupported,
)
from polypod.plugin.ids import new_id
from polypod.plugin.rootfs import RootfsForm

pytestmark = pytest.mark.needs_root

OTHER = "sha256:" + "0" * 64


async def _refused(store, path, left, error=(InvalidArgument, Unsupported, NotFound), match=None):
    with pytest.raises(error, match=match):
        await store.load(path)
    assert await store.list() == ()
    while store._tasks:
        await asyncio.sleep(0.01)
    assert left() == []


def _good(t, **more):
    return t.Layout(t.layer(t.file(b"etc/passwd", b"root")), **more)


# What lies → how the layout is changed.
def lie_wrong_layer_digest(t, layout):
    layout.manifest["layers"][0]["digest"] = OTHER
    layout.seal_manifest()
    layout.blobs[OTHER] = next(iter(layout.blobs.values()))


def lie_wrong_layer_size(t, layout):
    layout.manifest["layers"][0]["size"] += 512
    layout.seal_manifest()


def lie_wrong_layer_content(t, layout):
    digest = layout.manifest["layers"][0]["digest"]
    layout.blobs[digest] = layout.blobs[digest].replace(b"root", b"r00t")


def lie_layer_longer_than_promised(t, layout):
    digest = layout.manifest["layers"][0]["digest"]
    layout.blobs[digest] += bytes(512)


def lie_missing_layer(t, layout):
    del layout.blobs[layout.manifest["layers"][0]["digest"]]


def lie_wrong_config_digest(t, layout):
    layout.manifest["config"]["digest"] = OTHER
    layout.seal_manifest()


def lie_wrong_config_content(t, layout):
    layout.blobs[layout.manifest["config"]["digest"]] = t.dumps({**layout.config, "os": "linuX"})


def lie_wrong_manifest_digest(t, layout):
    layout.index["manifests"][0]["digest"] = OTHER


def lie_wrong_manifest_size(t, layout):
    layout.index["manifests"][0]["size"] -= 1


def lie_wrong_diff_id(t, layout):
    layout.config["rootfs"]["diff_ids"] = [OTHER]
    layout.seal()


def lie_diff_ids_of_other_number(t, layout):
    layout.config["rootfs"]["diff_ids"] *= 2
    layout.seal()


def lie_rootfs_of_unknown_type(t, layout):
    layout.config["rootfs"]["type"] = "snapshots"
    layout.seal()


def lie_manifest_that_is_an_index(t, layout):
    layout.manifest["manifests"] = []
    layout.seal_manifest()


def lie_index_that_is_a_manifest(t, layout):
    layout.index["layers"] = []


def lie_type_in_document_differs(t, layout):
    layout.manifest["mediaType"] = t.INDEX
    layout.seal_manifest()


def lie_descriptor_says_index(t, layout):
    layout.index["manifests"][0]["mediaType"] = t.INDEX


def lie_unknown_manifest_type(t, layout):
    layout.index["manifests"][0]["mediaType"] = "application/x-nothing"


def lie_unknown_layer_type(t, layout):
    layout.manifest["layers"][0]["mediaType"] = "application/x-layer"
    layout.seal_manifest()


def lie_artifact(t, layout):
    layout.manifest["config"]["mediaType"] = "application/vnd.oci.empty.v1+json"
    layout.seal_manifest()


def lie_index_cycle(t, layout):
    raw = t.dumps({"schemaVersion": 2, "mediaType": t.INDEX, "manifests": []})
    inner = t.dumps(
        {
            "schemaVersion": 2,
            "mediaType": t.INDEX,
            "manifests": [t.descriptor(raw, t.INDEX)],
        }
    )
    layout.blobs |= {t.digest(raw): raw, t.digest(inner): inner}
    layout.index["manifests"] = [t.descriptor(inner, t.INDEX)]


def lie_digest_with_a_path(t, layout):
    layout.manifest["layers"][0]["digest"] = "sha256:../../../../etc/passwd"
    layout.seal_manifest()


def lie_algorithm_unknown(t, layout):
    layout.manifest["layers"][0]["digest"] = "md5:" + "0" * 32
    layout.seal_manifest()


def lie_a_million_layers(t, layout):
    layout.manifest["layers"] *= 2000
    layout.seal_manifest()


def lie_foreign_platform_only(t, layout):
    layout.index["manifests"][0]["platform"] = {"os": "plan9", "architecture": "mips"}
    layout.index["manifests"] *= 2


def lie_bad_name(t, layout):
    layout.annotations["org.opencontainers.image.ref.name"] = "UPPER/../case:x:y"
    layout.seal_manifest()


def lie_no_images(t, layout):
    layout.index["manifests"] = []


def lie_negative_size(t, layout):
    layout.manifest["layers"][0]["size"] = -1
    layout.seal_manifest()


LIES = [value for name, value in list(globals().items()) if name.startswith("lie_")]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
@pytest.mark.parametrize("form", ["directory", "archive"])
async def test_lying_layout_is_refused(lie, form, tars, store, left, tmp_path):
    layout = _good(tars)
    lie(tars, layout)
    path = tmp_path / "layout"
    (layout.write if form == "directory" else layout.archive)(path)
    await _refused(store, path, left)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("index.json", b"{"),
        ("index.json", b"[]"),
        ("index.json", b'{"manifests": [], "manifests": []}'),
        ("index.json", b'{"manifests": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        ("index.json", b'{"manifests": [' + b"{}," * (2 << 20) + b"{}]}"),
        ("oci-layout", b'{"imageLayoutVersion": "2.0.0"}'),
        ("oci-layout", b"x" * 10_000),
    ],
    ids=["cut", "list", "key-twice", "deep", "large", "version", "large-layout"],
)
async def test_malformed_document_is_refused(name, data, tars, store, left, tmp_path):
    path = _good(tars).write(tmp_path / "layout")
    (path / name).write_bytes(data)
    await _refused(store, path, left)


async def test_links_and_pipes_in_a_layout_are_not_followed(tars, store, left, tmp_path):
    layout = _good(tars)
    path = layout.write(tmp_path / "layout")
    blob = path / "blobs/sha256" / layout.manifest["layers"][0]["digest"][7:]
    for make in (lambda: blob.symlink_to("/etc/passwd"), lambda: os.mkfifo(blob)):
        blob.unlink()
        make()
        await _refused(store, path, left)
    blob.unlink()
    blob.mkdir()
    await _refused(store, path, left)


@pytest.mark.parametrize("what", ["nothing", "text", "empty-tar", "fifo", "missing"])
async def test_what_is_no_image_is_refused(what, store, left, tmp_path):
    path = tmp_path / "thing"
    if what == "nothing":
        path.mkdir()
    elif what == "text":
        path.write_text("hello " * 1000)
    elif what == "empty-tar":
        path.write_bytes(bytes(10240))
    elif what == "fifo":
        os.mkfifo(path)
    await _refused(store, path, left)


@pytest.mark.parametrize("member", [b"../index.json", b"blobs/../../x"])
async def test_archive_members_that_lead_out_are_refused(member, tars, store, left, tmp_path):
    path = tmp_path / "archive.tar"
    path.write_bytes(tars.layer(tars.file(member, b"{}")))
    await _refused(store, path, left, match="leads out")


async def test_archive_with_a_member_twice_is_refused(tars, store, left, tmp_path):
    parts = [tars.file(os.fsencode(name), data) for name, data in _good(tars).files().items()]
    path = tmp_path / "archive.tar"
    path.write_bytes(tars.layer(*parts, parts[1]))
    await _refused(store, path, left, match="twice")


# Bombs (I4)


def _bomb(t, how, megabytes):
    """A layer of zeros, packed small; nothing of it is in memory unpacked."""
    out = io.BytesIO()
    head = t.header(b"zeros", size=megabytes << 20)
    packer = (
        gzip.GzipFile(fileobj=out, mode="wb", mtime=0)
        if how == "gzip"
        else zstandard.ZstdCompressor(level=1).stream_writer(out, closefd=False)
    )
    packer.write(head)
    for _ in range(megabytes):
        packer.write(bytes(1 << 20))
    packer.write(t.END)
    packer.close()
    return out.getvalue()


@pytest.mark.parametrize("how", ["gzip", "zstd"])
@pytest.mark.parametrize("option", ["max_layer_bytes", "max_file_bytes"])
async def test_bomb_is_stopped(how, option, tars, open_store, left, tmp_path):
    store = await open_store(**{option: 8 << 20})
    packed = _bomb(tars, how, 64)
    assert len(packed) < 1 << 20
    layout = tars.Layout(b"", packed=[packed], media=f"{tars.LAYER}+{how}")
    await _refused(store, layout.write(tmp_path / "bomb"), left, match=option)


async def test_too_many_files_are_stopped(tars, open_store, left, tmp_path):
    store = await open_store(max_layer_inodes=100)
    layer = tars.layer(*(tars.file(b"%d" % number, b"") for number in range(101)))
    await _refused(store, tars.Layout(layer).write(tmp_path / "many"), left, match="100")


async def test_too_many_directories_on_the_way_are_stopped(tars, open_store, left, tmp_path):
    store = await open_store(max_layer_inodes=100)
    layer = tars.layer(*(tars.file(b"%d/" % number * 3 + b"x", b"") for number in range(40)))
    await _refused(store, tars.Layout(layer).write(tmp_path / "many"), left, match="100")


async def test_packed_archive_bomb_is_stopped(tars, open_store, left, tmp_path):
    store = await open_store(max_layer_bytes=8 << 20)
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(_bomb(tars, "gzip", 64))
    await _refused(store, path, left, match="max_layer_bytes")


async def test_free_space_floor_is_kept(tars, open_store, left, tmp_path):
    store = await open_store(min_free_bytes=1 << 60)
    path = _good(tars).write(tmp_path / "layout")
    await _refused(store, path, left, error=ResourceExhausted, match="min_free_bytes")


@pytest.mark.parametrize("damage", ["cut", "flipped", "garbage-behind"])
@pytest.mark.parametrize("how", ["gzip", "zstd"])
async def test_damaged_compression_is_refused(how, damage, tars, store, left, tmp_path):
    layer = tars.layer(tars.file(b"x", os.urandom(100_000)))
    packed = tars.gzipped(layer) if how == "gzip" else zstandard.ZstdCompressor().compress(layer)
    packed = {
        "cut": packed[: len(packed) // 2],
        "flipped": packed[:500] + bytes([packed[500] ^ 0xFF]) + packed[501:],
        "garbage-behind": packed + b"garbage that is no member",
    }[damage]
    layout = tars.Layout(layer, packed=[packed], media=f"{tars.LAYER}+{how}")
    await _refused(store, layout.write(tmp_path / "layout"), left)


# What is right


@pytest.mark.parametrize("how", ["", "gzip", "gzip-members", "zstd", "zstd-frames", "mislabelled"])
async def test_every_compression_unpacks(how, tars, store, tmp_path):
    layer = tars.layer(tars.file(b"data", bytes(range(256)) * 4000))
    half = len(layer) // 2
    zstd = zstandard.ZstdCompressor().compress
    packed, media = {
        "": (layer, ""),
        "gzip": (tars.gzipped(layer), "+gzip"),
        "gzip-members": (tars.gzipped(layer[:half]) + tars.gzipped(layer[half:]), "+gzip"),
        "zstd": (zstd(layer), "+zstd"),
        "zstd-frames": (zstd(layer[:half]) + zstd(layer[half:]), "+zstd"),
        "mislabelled": (layer, "+gzip"),
    }[how]
    layout = tars.Layout(layer, packed=[packed], media=tars.LAYER + media)
    (image,) = await store.load(layout.write(tmp_path / "layout"))
    assert await store.image_file(image.id, "/data", 2 << 20) == bytes(range(256)) * 4000


@pytest.mark.parametrize("packed", ["", "gzip", "zstd"])
async def test_archive_is_taken_packed_or_not(packed, tars, store, tmp_path):
    path = _good(tars).archive(tmp_path / "image.tar")
    if packed == "gzip":
        path.write_bytes(tars.gzipped(path.read_bytes()))
    elif packed == "zstd":
        path.write_bytes(zstandard.ZstdCompressor().compress(path.read_bytes()))
    (image,) = await store.load(path)
    assert image.repo_tags == ("localhost/evil:v1",)
    assert not list((tmp_path / "root" / "work").iterdir())


async def test_docker_archive_is_loaded_with_all_its_tags(tars, store, tmp_path):
    layers = (tars.layer(tars.file(b"a", b"a")), tars.layer(tars.file(b"b", b"b")))
    files = tars.docker_files(*layers, tags=["busybox:1", "localhost/b:2"], config={"User": "7"})
    (image,) = await store.load(tars.write_tar(tmp_path / "docker.tar", files))
    assert image.repo_tags == ("docker.io/library/busybox:1", "localhost/b:2")
    assert image.config.user == "7"
    assert image.id == tars.digest(files[next(iter(files))])
    assert (await store.find("busybox:1")).id == image.id


async def test_docker_archive_with_linked_layers(tars, store, tmp_path):
    """Docker wrote an equal layer once, and links to it."""
    layer = tars.layer(tars.file(b"a", b"a"))
    files = tars.docker_files(layer, layer)
    path = tmp_path / "docker.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            if name == "1/layer.tar":
                info.type, info.linkname = tarfile.SYMTYPE, "../0/layer.tar"
                tar.addfile(info)
                continue
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (image,) = await store.load(path)
    assert await store.image_file(image.id, "/a", 10) == b"a"


@pytest.mark.parametrize("to", ["../../etc/passwd", "/etc/passwd", "layer.tar"])
async def test_docker_archive_links_lead_nowhere_else(to, tars, store, left, tmp_path):
    files = tars.docker_files(tars.layer(tars.file(b"a")))
    path = tmp_path / "docker.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            if name == "0/layer.tar":
                info.type, info.linkname = tarfile.SYMTYPE, to
                tar.addfile(info)
                continue
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    await _refused(store, path, left, match="missing")


async def test_docker_archive_with_wrong_diff_id_is_refused(tars, store, left, tmp_path):
    files = tars.docker_files(tars.layer(tars.file(b"a")))
    files["0/layer.tar"] = tars.layer(tars.file(b"other"))
    await _refused(store, tars.write_tar(tmp_path / "docker.tar", files), left)


@pytest.mark.parametrize(
    ("name", "tags"),
    [
        ("busybox:1.36", ("docker.io/library/busybox:1.36",)),
        ("localhost/x", ("localhost/x:latest",)),
        ("v7", ("localhost/my-image:v7",)),
        ("", ("localhost/my-image:latest",)),
    ],
)
async def test_names_in_a_layout(name, tags, tars, store, tmp_path):
    (image,) = await store.load(_good(tars, name=name).write(tmp_path / "My_Image.oci"))
    assert image.repo_tags == tags


async def test_load_can_give_other_names(tars, store, tmp_path):
    path = _good(tars).write(tmp_path / "layout")
    (image,) = await store.load(path, names=["a.example/b:c", "busybox"])
    assert image.repo_tags == ("a.example/b:c", "docker.io/library/busybox:latest")


async def test_several_images_in_one_layout(tars, store, tmp_path):
    one = tars.Layout(tars.layer(tars.file(b"one", b"1")), name="localhost/one:v1")
    two = tars.Layout(tars.layer(tars.file(b"two", b"2")), name="localhost/two:v1")
    one.index["manifests"] += two.index["manifests"]
    one.blobs |= two.blobs
    path = one.write(tmp_path / "layout")
    with pytest.raises(InvalidArgument, match="2 images"):
        await store.load(path, names=["localhost/x:y"])
    assert len(await store.load(path)) == 2
    chosen = await store.pull(f"oci:{path}:localhost/two:v1")
    assert "localhost/two:v1" in chosen.repo_tags
    with pytest.raises(InvalidArgument, match="2 images"):
        await store.pull(f"oci:{path}")
    with pytest.raises(NotFound):
        await store.pull(f"oci:{path}:localhost/three:v1")


async def test_index_of_platforms_gives_this_hosts_image(tars, store, tmp_path):
    from polypod_image.platforms import host_platform

    here = host_platform()
    mine, other = (tars.Layout(tars.layer(tars.file(each))) for each in (b"mine", b"other"))
    entries = []
    for layout, architecture in ((other, "vax"), (mine, here.architecture)):
        entry = dict(layout.index["manifests"][0])
        del entry["annotations"]
        entries.append({**entry, "platform": {"os": "linux", "architecture": architecture}})
    raw = tars.dumps({"schemaVersion": 2, "mediaType": tars.INDEX, "manifests": entries})
    mine.blobs |= other.blobs | {tars.digest(raw): raw}
    mine.index["manifests"] = [tars.descriptor(raw, tars.INDEX, annotations=mine.annotations)]
    (image,) = await store.load(mine.write(tmp_path / "layout"))
    assert await store.image_file(image.id, "/mine", 10) == b"x"


# PullImage


async def test_pull_by_transport_is_found_again_by_it(tars, store, tmp_path):
    layout = _good(tars).write(tmp_path / "layout")
    archive = _good(tars).archive(tmp_path / "a:b.tar")
    docker = tars.write_tar(tmp_path / "d.tar", tars.docker_files(tars.layer(tars.file(b"a"))))
    for reference in (f"oci:{layout}", f"oci-archive:{archive}", f"docker-archive:{docker}"):
        assert await store.find(reference) is None
        image = await store.pull(reference)
        assert (await store.find(reference)).id == image.id
        assert reference not in image.repo_tags


@pytest.mark.parametrize("inside", [True, False])
async def test_pull_stays_below_the_configured_directories(inside, tars, open_store, tmp_path):
    (tmp_path / "allowed").mkdir()
    store = await open_store(oci_dirs=[str(tmp_path / "allowed")])
    _good(tars).write(tmp_path / "elsewhere")
    place = tmp_path / "allowed" / "image"
    if inside:
        _good(tars).write(place)
        assert await store.pull(f"oci:{place}")
        return
    place.symlink_to(tmp_path / "elsewhere")
    for path in (place, tmp_path / "allowed" / ".." / "elsewhere", tmp_path / "elsewhere"):
        with pytest.raises(InvalidArgument, match=r"images\.oci_dirs"):
            await store.pull(f"oci:{path}")


@pytest.mark.parametrize(
    ("reference", "error"),
    [
        ("localhost/not-here:v1", NotFound),
        ("oci:relative/path", (InvalidArgument, Unsupported)),
        ("oci:/no/such/path", NotFound),
        ("oci-archive:/dev/null", InvalidArgument),
        ("oci:/dev/null", InvalidArgument),
        ("docker-archive:/dev/zero", InvalidArgument),
        ("oci:/" + "x" * 5000, InvalidArgument),
        ("http://host/x", InvalidArgument),
        ("", InvalidArgument),
    ],
)
async def test_pull_refuses_and_says_why(reference, error, store):
    with pytest.raises(error):
        await store.pull(reference)


# Names


async def test_one_digest_under_two_names(tars, store, tmp_path):
    path = _good(tars).write(tmp_path / "layout")
    await store.load(path, names=["localhost/a:1"])
    (image,) = await store.load(path, names=["localhost/b:1"])
    assert image.repo_tags == ("localhost/a:1", "localhost/b:1")
    assert len(image.repo_digests) == 2
    assert len(await store.list()) == 1
    await store.remove(image.id)
    for name in ("localhost/a:1", "localhost/b:1", *image.repo_digests):
        assert await store.find(name) is None


async def test_a_moved_tag_leaves_the_old_image_with_its_digest(tars, store, tmp_path):
    old = _good(tars, name="localhost/x:v1")
    new = tars.Layout(tars.layer(tars.file(b"new")), name="localhost/x:v1")
    (first,) = await store.load(old.write(tmp_path / "old"))
    (second,) = await store.load(new.write(tmp_path / "new"))
    assert (await store.find("localhost/x:v1")).id == second.id
    (left,) = [each for each in await store.list() if each.id == first.id]
    assert left.repo_tags == ()
    assert left.repo_digests == first.repo_digests


async def test_find_knows_short_names_digests_and_both(tars, store, tmp_path):
    path = _good(tars).write(tmp_path / "layout")
    (image,) = await store.load(path, names=["docker.io/library/cafe:latest", "localhost/own:v2"])
    digest = image.manifest_digest
    for reference in ("cafe", "cafe:latest", "docker.io/cafe", "own:v2", f"cafe@{digest}",
                      f"cafe:other@{digest}", f"localhost/own@{digest}"):  # fmt: skip
        found = await store.find(reference)
        assert found is not None, reference
        assert found.id == image.id, reference
    for reference in (f"unknown@{digest}", "cafe:v9", "own:v3", digest):
        assert await store.find(reference) is None, reference


# Sharing


async def test_layers_are_shared_and_kept_while_somebody_has_them(tars, store, tmp_path, left):
    base = tars.layer(tars.file(b"base", b"b"))
    one = tars.Layout(base, tars.layer(tars.file(b"one")), name="localhost/one:1")
    two = tars.Layout(base, tars.layer(tars.file(b"two")), name="localhost/two:1")
    (first,) = await store.load(one.write(tmp_path / "one"))
    (second,) = await store.load(two.write(tmp_path / "two"))
    assert len([each for each in left() if each.startswith("layers/")]) == 3
    container = new_id()
    rootfs = await store.prepare(container, second.id, RootfsForm.OVERLAY)
    await store.remove(first.id)
    await store.remove(second.id)
    while store._tasks:
        await asyncio.sleep(0.01)
    assert len([each for each in left() if each.startswith("layers/")]) == 2
    assert (rootfs.lowers[1] / "base").read_bytes() == b"b"
    assert await store.prepare(container, second.id, RootfsForm.OVERLAY) == rootfs
    await store.release(container)
    while store._tasks:
        await asyncio.sleep(0.01)
    assert left() == []


async def test_reserved_labels_are_dropped(tars, store, tmp_path):
    """E21."""
    config = {"Labels": {"io.polypod.log": "x", "polypod.y": "z", "mine": "kept"}}
    (image,) = await store.load(_good(tars, config=config).write(tmp_path / "layout"))
    assert image.config.labels == {"mine": "kept"}
