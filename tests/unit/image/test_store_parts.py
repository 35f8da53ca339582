"""Trash, pins, blobs, catalog, samples, JSON: the store's parts, each alone."""

from __future__ import annotations

import fcntl
import os
import sys
import threading
from pathlib import Path

import pytest

from polypod.plugin.errors import InvalidArgument
from polypod_image import containers, jsondoc
from polypod_image.blobs import Blobs
from polypod_image.catalog import DIGEST, TAG, Catalog, LayerRow, StoredImage
from polypod_image.digests import digest_of
from polypod_image.documents import parse_config
from polypod_image.layers import disk_usage
from polypod_image.merged import MergedView
from polypod_image.pins import Pins
from polypod_image.places import Places
from polypod_image.sampling import Sampler
from polypod_image.trash import Trash


@pytest.fixture
def places(tmp_path):
    found = Places(tmp_path / "root")
    found.make()
    return found


def test_trash_removes_trees_that_are_deeper_than_the_stack(places):
    top = places.work / "deep"
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        os.symlink("/", "l", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    trash = Trash(places.trash)
    assert trash.throw(top)
    trash.empty()
    assert not list(places.trash.iterdir())


def test_trash_does_not_follow_links(places, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("x")
    (places.work / "thing").mkdir()
    (places.work / "thing/link").symlink_to(tmp_path / "outside")
    trash = Trash(places.trash)
    trash.throw(places.work / "thing")
    (places.trash / "direct").symlink_to(tmp_path / "outside")
    trash.empty()
    assert (tmp_path / "outside/file").exists()
    assert not list(places.trash.iterdir())


def test_trash_leaves_off_when_told(places):
    (places.work / "thing/inner/more").mkdir(parents=True)
    trash = Trash(places.trash)
    trash.throw(places.work / "thing")
    trash.close()
    trash.empty()
    assert len(list(places.trash.iterdir())) == 1
    Trash(places.trash).empty()
    assert not list(places.trash.iterdir())


def test_trash_of_nothing_is_no_error(places):
    assert not Trash(places.trash).throw(places.work / "nothing")


def test_pinned_paths_are_not_collected(places):
    path = places.blobs / "sha256" / "x"
    path.write_text("x")
    pins, gone = Pins(), []

    def throw(each):
        gone.append(each)
        return True

    with pins.lease() as one:
        with pins.lease() as two:
            assert one.hold(path)
            assert two.hold(path)
            assert not pins.collect(path, throw)
        assert not pins.collect(path, throw)
    assert pins.collect(path, throw)
    assert gone == [path]


def test_makers_of_one_path_take_turns(places):
    pins = Pins()
    with pins.maker(places.work):
        assert pins.maker(places.work).locked()
        assert not pins.maker(places.trash).locked()
    seen = []

    def make():
        with pins.maker(places.work):
            seen.append(1)

    threads = [threading.Thread(target=make) for _ in range(5)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(seen) == 5


def pieces(*parts):
    left = iter((*parts, b""))
    return lambda: next(left)


def test_blob_has_its_name_only_when_it_is_right(places):
    blobs, pins = Blobs(places, 0), Pins()
    digest = digest_of(b"hello")
    with pins.lease() as lease:
        for wrong in ((b"hell",), (b"hello", b"o"), (b"jello",)):
            with pytest.raises(InvalidArgument, match=digest):
                blobs.put(lease, pieces(*wrong), digest, 5)
        assert blobs.sizes() == {}
        blobs.put(lease, pieces(b"he", b"llo"), digest, 5)
        assert blobs.sizes() == {digest: 5}
        assert blobs.read(digest, 5) == b"hello"
        with pytest.raises(InvalidArgument):
            blobs.read(digest, 4)
        with pytest.raises(InvalidArgument, match="its descriptor says 6"):
            blobs.put(lease, pieces(b"hello"), digest, 6)
    assert not list(places.work.iterdir())


def test_sha512_blobs(places):
    import hashlib

    digest = "sha512:" + hashlib.sha512(b"x").hexdigest()
    with Pins().lease() as lease:
        Blobs(places, 0).put(lease, pieces(b"x"), digest, 1)
    assert Blobs(places, 0).sizes() == {digest: 1}


def test_sizes_go_on_when_a_blob_is_removed_meanwhile(places, monkeypatch):
    digest = digest_of(b"x")
    with Pins().lease() as lease:
        Blobs(places, 0).put(lease, pieces(b"x"), digest, 1)
    walk = Path.iterdir

    def with_one_that_is_gone(directory):
        if directory != places.blobs:
            yield directory / ("0" * 64)
        yield from walk(directory)

    monkeypatch.setattr(Path, "iterdir", with_one_that_is_gone)
    assert Blobs(places, 0).sizes() == {digest: 1}


def test_blob_of_unknown_digest_is_bounded(places):
    blobs = Blobs(places, 0)
    with Pins().lease() as lease:
        assert blobs.put_unknown(lease, pieces(b"abc"), 10) == (digest_of(b"abc"), 3)
        assert blobs.put_unknown(lease, pieces(b"abc"), 10) == (digest_of(b"abc"), 3)
        with pytest.raises(InvalidArgument, match="more than the 2 bytes"):
            blobs.put_unknown(lease, pieces(b"abc"), 2)
    assert not list(places.work.iterdir())


RAW = b'{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}'


def stored(name):
    return StoredImage(
        id=digest_of(name),
        seq=0,
        manifest_digest=digest_of(b"m" + name),
        size_bytes=9,
        blobs=((digest_of(name), ""),),
        document=parse_config(RAW, "config"),
        raw_config=RAW,
    )


def test_catalog_is_the_same_after_it_was_opened_again(places):
    catalog = Catalog(places.catalog)
    one, two = stored(b"1"), stored(b"2")
    catalog.add(one, {"h/a:1": TAG, "h/a:2": TAG, "h/a@sha256:1": DIGEST})
    catalog.add(two, {"h/a:2": TAG})
    catalog.add_layer(one.id, LayerRow(5, 6, "boot"))
    catalog.add_layer(two.id, LayerRow(7, 8, "boot"))
    catalog.layers_are_durable([one.id])
    before = (catalog.images, catalog.names, catalog.layers, list(catalog.shown))
    assert [image.repo_tags for image in catalog.shown.values()] == [("h/a:2",), ("h/a:1",)]
    catalog.close()
    again = Catalog(places.catalog)
    assert (again.images, again.names, again.layers, list(again.shown)) == before
    again.close()


def test_catalog_keeps_the_place_of_an_image_that_is_added_again(places):
    catalog = Catalog(places.catalog)
    one, two = stored(b"1"), stored(b"2")
    for each in (one, two, one):
        catalog.add(each, {})
    assert list(catalog.shown) == [two.id, one.id]
    catalog.retire(one.id)
    assert list(catalog.shown) == [two.id]
    catalog.add(one, {})
    catalog.forget_retired(one.id)
    assert list(catalog.shown) == [one.id, two.id]
    catalog.close()


def test_disk_usage_counts_hardlinks_once_and_follows_nothing(tmp_path):
    top = tmp_path / "top"
    top.mkdir()
    (top / "file").write_bytes(b"x" * 100_000)
    alone = disk_usage(str(top))
    (top / "again").hardlink_to(top / "file")
    (top / "link").symlink_to("/usr")
    used, inodes = disk_usage(str(top))
    assert (used, inodes) == (alone[0], alone[1] + 1)
    assert used >= 100_000
    assert disk_usage(str(tmp_path / "missing")) == (0, 0)


def test_disk_usage_of_a_deep_tree_ends(tmp_path):
    (tmp_path / "top").joinpath(*["d"] * 300).mkdir(parents=True)
    assert disk_usage(str(tmp_path / "top"), max_depth=50)[1] == 51


def test_sampler_has_nothing_until_it_looked(places):
    (places.containers / "c" / "fs").mkdir(parents=True)
    (places.containers / "c" / "fs" / "data").write_bytes(b"x" * 10_000)
    sampler = Sampler(places, 0, lambda: ["c"])
    assert sampler.last("c") is None
    sampler.sample("c")
    sample = sampler.last("c")
    assert sample.used_bytes >= 10_000
    assert sample.inodes_used == 2
    sampler.sample("unknown")
    assert sampler.last("unknown") is None
    sampler.forget("c")
    assert sampler.last("c") is None


def test_sampler_knows_a_new_layer_before_it_looked(places):
    top = places.containers / "c" / "fs"
    top.mkdir(parents=True)
    sampler = Sampler(places, 3600, list)
    sampler.begin("c")
    sample, whole = sampler.last("c"), os.statvfs(places.root)
    assert (sample.used_bytes, sample.inodes_used) == disk_usage(str(top))
    assert sample.limit_bytes == whole.f_blocks * whole.f_frsize
    assert sample.inodes_total == (whole.f_files or None)
    (top / "data").write_bytes(b"x" * 10_000)
    sampler.sample("c")
    counted = sampler.last("c")
    sampler.begin("c")
    assert sampler.last("c") == counted, "what was counted is better"


def test_sampler_that_shall_take_none_takes_none(places):
    (places.containers / "c" / "fs").mkdir(parents=True)
    sampler = Sampler(places, 0, lambda: ["c"])
    sampler.begin("c")
    sampler.first("c")
    assert sampler.last("c") is None


def test_file_systems_that_do_not_number_inodes_tell_none(places, monkeypatch):
    (places.containers / "c" / "fs").mkdir(parents=True)
    fields = list(os.statvfs(places.root))
    fields[5:8] = (0, 0, 0)
    monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result(fields))
    sampler = Sampler(places, 3600, list)
    sampler.begin("c")
    sample = sampler.last("c")
    assert sample.limit_bytes == fields[1] * fields[2]
    assert (sample.inodes_total, sample.inodes_free) == (None, None)


def test_sampler_looks_by_itself(places):
    (places.containers / "c" / "fs").mkdir(parents=True)
    seen = threading.Event()

    def containers():
        if sampler.last("c"):
            seen.set()
        return ["c"]

    sampler = Sampler(places, 0.001, containers)
    sampler.start()
    assert seen.wait(30)
    sampler.close()


def test_merged_view_ends_in_circles_of_links(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a/c")
    view = MergedView([os.fsencode(tmp_path)])
    assert view.resolve(b"a") is None
    assert view.resolve(b"../../a/x") is None
    assert view.resolve(b"") == view.root


@pytest.mark.parametrize(
    "data",
    [b"", b"[1]", b"nul", b'{"a":1,"a":2}', b'{"a":NaN}', b'{"a":Infinity}', b"\xff", b"1" * 10,
     b"[" * 200_000, b'{"a":' + b"9" * 10_000 + b"}"],
)  # fmt: skip
def test_documents_that_are_none(data):
    with pytest.raises(InvalidArgument):
        jsondoc.decode(data, "it")


def test_documents_are_bounded():
    with pytest.raises(InvalidArgument, match="at most"):
        jsondoc.decode(b" " * (jsondoc.MAX_BYTES + 1), "it")


@pytest.mark.parametrize(
    "read",
    [
        lambda doc: doc.number("text"),
        lambda doc: doc.number("missing"),
        lambda doc: doc.number("negative"),
        lambda doc: doc.number("true"),
        lambda doc: doc.text("number"),
        lambda doc: doc.text("nul"),
        lambda doc: doc.text("surrogate"),
        lambda doc: doc.texts("text", 5),
        lambda doc: doc.texts("list", 1),
        lambda doc: list(doc.objects("list", 5)),
        lambda doc: doc.child("list"),
        lambda doc: doc.text_map("map"),
    ],
)
def test_documents_are_typed(read):
    doc = jsondoc.decode(
        rb'{"text":"x","number":1,"negative":-1,"true":true,"nul":"a\u0000","surrogate":"\ud800",'
        rb'"list":["a","b"],"map":{"a":1}}',
        "it",
    )
    with pytest.raises(InvalidArgument, match="it: "):
        read(doc)


def test_directories_of_containers_are_spread_where_the_file_system_takes_the_hint(tmp_path):
    containers.spread(tmp_path)
    containers.spread(tmp_path)  # a store that is opened again
    (tmp_path / "one").mkdir()
    flags = bytearray(4)
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(descriptor, 0x80086601, flags)
    except OSError as error:
        pytest.skip(f"this file system has no such flags: {error}")
    finally:
        os.close(descriptor)
    takes_it = _file_system(tmp_path) in {"ext4", "ext3"}
    assert bool(int.from_bytes(flags, sys.byteorder) & 0x20000) == takes_it


def _file_system(path):
    """The type of the file system that a path lies on."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    places = [(where, kind) for _source, where, kind, *_rest in mounts]
    found = [each for each in places if path.is_relative_to(each[0])]
    return max(found, key=lambda each: len(each[0]))[1]
