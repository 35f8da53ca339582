"""I13: verify, repair, gc, df; what is damaged is found at start; pinned images; removal in one rename."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging

import pytest

from polypod.plugin.errors import FailedPrecondition, InvalidArgument, NotFound
from polypod.plugin.ids import new_id
from polypod.plugin.rootfs import RootfsForm
from polypod_image import commands
from polypod_image.layers import disk_usage
from polypod_image.trash import Trash

pytestmark = pytest.mark.needs_root


@pytest.fixture
def server(tmp_path):
    """A server's root, as the commands know it; the store of `open_store` is its one."""
    (tmp_path / "server/images").mkdir(parents=True)
    (tmp_path / "server/images/content").symlink_to(tmp_path / "root")
    return tmp_path / "server"


@pytest.fixture
def run(server, capsys):
    """Run a command with ``--json``; return exit code and answer."""

    def run_(name, *words):
        parser = argparse.ArgumentParser()
        getattr(commands, f"configure_{name}")(parser)
        args = parser.parse_args(["--root", str(server), "--json", *words])
        code = getattr(commands, name)(args)
        return code, json.loads(capsys.readouterr().out)

    return run_


@pytest.fixture
def images(tars, tmp_path):
    """Two layouts that share their base layer."""
    base = tars.layer(tars.file(b"base", b"base" * 3000), tars.directory(b"d"))
    made = []
    for name in ("one", "two"):
        top = tars.layer(tars.file(b"d/" + name.encode(), name.encode() * 2000))
        layout = tars.Layout(base, top, name=f"localhost/{name}:v1")
        made.append(layout.write(tmp_path / name))
    return made


async def _filled(open_store, images, **options):
    store = await open_store(**options)
    found = [(await store.load(layout))[0] for layout in images]
    await _settled(store)
    return store, found


async def _settled(store):
    while store._tasks:
        await asyncio.sleep(0.01)


def _layer(store, image, number):
    return store._places.layer(store._catalog.images[image.id].chain[number])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


async def test_whole_store_beside_its_server_and_alone(open_store, images, run):
    store, _ = await _filled(open_store, images)
    for _ in range(2):
        code, answer = run("verify", "--deep")
        assert (code, answer) == (0, {"images": 2, "findings": []})
        assert run("gc", "--dry-run") == (0, {"bytes": 0, "deleted": False, "items": []})
        await store.close()
    assert run("repair") == (0, [])


async def test_one_image_can_be_verified(open_store, images, run):
    store, (one, _) = await _filled(open_store, images)
    _flip(_layer(store, one, 1) / "fs/d/one")
    assert run("verify", "--deep", "localhost/two:v1")[0] == 0
    assert run("verify", "--deep", "localhost/one:v1")[0] == 1
    with pytest.raises(NotFound, match="nothing"):
        run("verify", "localhost/nothing:v1")


async def test_a_flipped_bit_in_a_blob(open_store, images, run):
    """Both images have the base; both are named, dropped, and come back whole."""
    store, (one, _) = await _filled(open_store, images)
    digest = store._catalog.images[one.id].blobs[0][0]
    _flip(store._places.blob(digest))
    code, answer = run("verify")
    (finding,) = answer["findings"]
    assert (code, finding["kind"], finding["digest"]) == (1, "blob", digest)
    assert {"localhost/one:v1", "localhost/two:v1"} < set(finding["images"])
    with pytest.raises(FailedPrecondition, match="a server uses this store"):
        run("repair")
    await store.close()
    code, (mended,) = run("repair")
    assert (code, mended["left"]) == (0, False)
    assert "localhost/one:v1" in mended["done"]
    store, _ = await _filled(open_store, images)
    assert run("verify", "--deep")[0] == 0


async def test_a_damaged_layer_is_unpacked_again(open_store, images, run):
    store, (one, _) = await _filled(open_store, images)
    base = _layer(store, one, 0)
    (base / "fs/base").write_bytes(b"base" * 3000 + b"more")
    (base / "fs/new").touch()
    (_layer(store, one, 1) / "tree.gz").unlink()
    code, answer = run("verify")
    problems = {each["digest"]: each["problem"] for each in answer["findings"]}
    chain = store._catalog.images[one.id].chain
    assert code == 1
    assert "'base': size" in problems[chain[0]]
    assert "'new': nobody unpacked this" in problems[chain[0]]
    assert problems[chain[1]] == "tree.gz is missing"
    await store.close()
    code, mended = run("repair")
    assert (code, [each["done"] for each in mended]) == (0, ["unpacked again"] * 2)
    assert run("verify", "--deep")[0] == 0
    store = await open_store()
    assert len(await store.list()) == 2
    rootfs = await store.prepare(new_id(), one.id, RootfsForm.OVERLAY)
    assert (rootfs.lowers[1] / "base").read_bytes() == b"base" * 3000


async def test_a_layer_in_use_stays_until_its_containers_are_gone(open_store, images, run):
    store, (one, _) = await _filled(open_store, images)
    user = new_id()
    await store.prepare(user, one.id, RootfsForm.OVERLAY)
    place = _layer(store, one, 1)
    (place / "fs/d/one").unlink()
    await store.close()
    code, (mended,) = run("repair")
    assert (code, mended["left"]) == (1, True)
    assert user[:13] in mended["done"]
    assert place.exists()
    store = await open_store()
    await store.release(user)
    await store.close()
    assert run("repair")[0] == 0
    assert run("verify", "--deep")[0] == 0


async def test_a_damaged_block_image_is_made_again(open_store, images, run):
    store, (one, _) = await _filled(open_store, images)
    rootfs = await store.prepare(new_id(), one.id, RootfsForm.BLOCK)
    assert run("verify")[0] == 0
    rootfs.path.write_bytes(rootfs.path.read_bytes()[:-4096])
    code, answer = run("verify")
    assert (code, [each["kind"] for each in answer["findings"]]) == (1, ["block"])
    await store.close()
    assert run("repair")[0] == 0
    store = await open_store()
    await store.prepare(new_id(), one.id, RootfsForm.BLOCK)
    assert run("verify")[0] == 0


# Found at start


@pytest.mark.parametrize("which", ["layer", "config", "manifest"])
@pytest.mark.parametrize("how", ["gone", "cut"])
async def test_a_damaged_blob_is_found_named_and_dropped_at_start(
    which, how, open_store, images, caplog
):
    store, (one, two) = await _filled(open_store, images)
    digest = {
        "layer": store._catalog.images[one.id].blobs[1][0],
        "config": one.id,
        "manifest": one.manifest_digest,
    }[which]
    blob = store._places.blob(digest)
    await store.close()
    blob.unlink() if how == "gone" else blob.write_bytes(blob.read_bytes()[:-1])
    with caplog.at_level(logging.ERROR):
        store = await open_store()
    assert [each.id for each in await store.list()] == [two.id]
    assert "localhost/one:v1" in caplog.text
    assert digest in caplog.text
    (again,) = await store.load(images[0])
    assert again.id == one.id


async def test_a_layer_without_its_tree_is_named_at_start_and_made_again(
    open_store, images, caplog
):
    store, (one, _) = await _filled(open_store, images)
    place = _layer(store, one, 0)
    await store.close()
    (place / "fs").rename(place / "other")
    with caplog.at_level(logging.ERROR):
        store = await open_store()
    assert f"layer {store._catalog.images[one.id].chain[0]} is missing" in caplog.text
    rootfs = await store.prepare(new_id(), one.id, RootfsForm.OVERLAY)
    assert (rootfs.lowers[1] / "base").exists()


# gc


async def test_gc_deletes_what_nobody_needs_and_nothing_else(open_store, images, run, tmp_path):
    store, (one, two) = await _filled(open_store, images)
    user = new_id()
    await store.prepare(user, two.id, RootfsForm.OVERLAY)
    await store.remove(two.id)  # its layers stay for its container
    await _settled(store)
    await store.close()
    stray = tmp_path / "root/blobs/sha256" / ("0" * 64)
    stray.write_bytes(b"stray")
    half = tmp_path / "root/work/layer-x"
    (half / "fs").mkdir(parents=True)
    lost = tmp_path / "root/layers" / ("1" * 64)
    (lost / "fs").mkdir(parents=True)
    _, looked = run("gc", "--dry-run")
    assert stray.exists()
    assert half.exists()
    what = sorted(each["what"] for each in looked["items"])
    assert what == [f"blob sha256:{'0' * 64}", f"layer {'1' * 64}", "work/layer-x"]
    _, done = run("gc")
    assert (done["deleted"], len(done["items"])) == (True, 3)
    assert not stray.exists()
    assert not half.exists()
    assert not lost.exists()
    assert run("verify", "--deep")[0] == 0
    store = await open_store()
    again = await store.prepare(user, two.id, RootfsForm.OVERLAY)
    assert all(each.is_dir() for each in again.lowers)
    assert [each.id for each in await store.list()] == [one.id]


async def test_gc_beside_a_server_only_looks(open_store, images, run):
    await _filled(open_store, images)
    with pytest.raises(FailedPrecondition, match="collects by itself"):
        run("gc")


# df, usage


async def test_df_tells_shared_from_unique(open_store, images, run):
    store, (one, two) = await _filled(open_store, images)
    _, answer = run("df")
    shares = {each["id"]: each for each in answer["images"]}
    base = _layer(store, one, 0)
    for image in (one, two):
        top = _layer(store, image, 1)
        share = shares[image.id]
        layers = [disk_usage(str(place / "fs"))[0] for place in (base, top)]
        blobs = [path.stat().st_size for path in _blobs(store, image)]
        assert share["layers"] == sum(layers)
        assert share["blobs"] == sum(blobs)
        assert share["unique"] < sum(layers) + sum(blobs)
        assert share["unique"] >= layers[1] + blobs[1]
    assert answer["total"] >= sum(each["unique"] for each in answer["images"])


def _blobs(store, image):
    return [store._places.blob(digest) for digest, _ in store._catalog.images[image.id].blobs]


async def test_usage_counts_every_form_and_goes_back(open_store, images):
    """ImageFsInfo: what lies in blobs and layers, block images among it, as du(1) has it."""
    store, (one, two) = await _filled(open_store, images)
    empty = await store.filesystem_usage()
    users = [new_id() for _ in RootfsForm]
    for user, form in zip(users, RootfsForm, strict=True):
        await store.prepare(user, one.id, form)
    usage = await store.filesystem_usage()
    on_disk = sum(
        disk_usage(str(room))[0] - room.stat().st_blocks * 512
        for room in (store._places.layers, store._places.blobs / "sha256")
    )
    # The directory of each layer, which holds tree, record and block image, is not counted.
    spare = len(list(store._places.layers.iterdir())) * 4096
    assert on_disk - spare <= usage.used_bytes <= on_disk
    assert usage.used_bytes > empty.used_bytes  # the block image
    for user in users:
        await store.release(user)
    for image in (one, two):
        await store.remove(image.id)
    await _settled(store)
    gone = await store.filesystem_usage()
    assert (gone.used_bytes, gone.inodes_used) == (0, 0)


async def test_one_image_in_all_forms_at_once(open_store, images):
    store, (one, _) = await _filled(open_store, images)
    overlay = await store.prepare(new_id(), one.id, RootfsForm.OVERLAY)
    directory = await store.prepare(new_id(), one.id, RootfsForm.DIRECTORY)
    block = await store.prepare(new_id(), one.id, RootfsForm.BLOCK)
    assert (overlay.lowers[0] / "d/one").read_bytes() == b"one" * 2000
    assert (directory.path / "d/one").read_bytes() == b"one" * 2000
    assert (directory.path / "base").read_bytes() == b"base" * 3000
    assert block.path.stat().st_size > 0
    assert len(list(store._places.layers.iterdir())) == 3


async def test_what_a_new_container_takes_is_known_before_the_first_round(open_store, images):
    store, (one, _) = await _filled(open_store, images, usage_interval_s=3600)
    empty, copied = new_id(), new_id()
    await store.prepare(empty, one.id, RootfsForm.OVERLAY)
    made = await store.prepare(copied, one.id, RootfsForm.DIRECTORY)
    await _settled(store)
    layer, directory = [await store.writable_usage(each) for each in (empty, copied)]
    assert layer.inodes_used == 1
    assert layer.limit_bytes == directory.limit_bytes > 0
    assert (directory.used_bytes, directory.inodes_used) == disk_usage(str(made.path))
    assert directory.inodes_used == 4  # the root, base, d and d/one


# Pinned


async def test_pinned_images_are_reported_as_such(open_store, images):
    digest = "sha256:" + "0" * 64
    store, (one, two) = await _filled(
        open_store, images, pinned=["one:v1", f"localhost/x@{digest}"]
    )
    assert {each.id: each.pinned for each in await store.list()} == {one.id: True, two.id: False}
    await store.close()
    store = await open_store(pinned=[f"localhost/two@{two.manifest_digest}"])
    assert {each.id: each.pinned for each in await store.list()} == {one.id: False, two.id: True}


async def test_a_bad_pinned_reference_is_refused(open_store):
    with pytest.raises(InvalidArgument, match=r"images\.pinned"):
        await open_store(pinned=["no name"])


# Removal


async def test_removal_moves_whole_trees_and_deletes_nothing_itself(
    open_store, tars, tmp_path, monkeypatch
):
    """However many files an image has: one commit in the answer, one rename for each layer behind it."""
    layer = tars.layer(*(tars.file(b"%05d" % number, b"x") for number in range(10_000)))
    store = await open_store()
    (image,) = await store.load(tars.Layout(layer).write(tmp_path / "big"))
    await _settled(store)
    thrown = []
    real = Trash.throw
    monkeypatch.setattr(Trash, "throw", lambda self, path: thrown.append(path) or real(self, path))
    monkeypatch.setattr(Trash, "empty", lambda _self: None)
    place = _layer(store, image, 0)
    await store.remove(image.id)
    assert await store.list() == ()
    await _settled(store)
    assert place in thrown
    assert len(thrown) == 4  # the layer, its blob, config, manifest
    assert not place.exists()
