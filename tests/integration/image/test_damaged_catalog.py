"""I13: a catalog that is damaged does not keep the store shut, and costs neither images nor running containers."""

from __future__ import annotations

import asyncio
import logging
import sqlite3

import pytest

from polypod.plugin.ids import new_id
from polypod.plugin.rootfs import RootfsForm
from polypod_image.catalog import CatalogDamaged
from polypod_image.inspection import look

pytestmark = pytest.mark.needs_root


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


@pytest.fixture
async def filled(open_store, images):
    """A store with both images."""
    store = await open_store()
    for layout in images:
        await store.load(layout)
    while store._tasks:
        await asyncio.sleep(0.01)
    return store


def _overwrite(path):
    path.write_bytes(b"no database at all\n" * 1000)


def _damage_table(path, table):
    with sqlite3.connect(path) as db:
        page = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()[
            0
        ]
        size = db.execute("PRAGMA page_size").fetchone()[0]
    db.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


def _layers(store):
    return {each.name: (each / "fs").stat().st_ino for each in store._places.layers.iterdir()}


async def test_images_are_found_by_their_blobs(filled, open_store, images, caplog):
    before, layers, place = await filled.list(), _layers(filled), filled._places.catalog
    await filled.close()
    _overwrite(place)
    with caplog.at_level(logging.ERROR):
        store = await open_store()
    (aside,) = place.parent.glob("catalog.db.damaged-*")
    assert aside.read_bytes().startswith(b"no database")
    assert any(str(aside) in each.getMessage() for each in caplog.records)
    assert {each.id for each in await store.list()} == {each.id for each in before}
    assert _layers(store) == layers
    assert await store.find("localhost/one:v1") is None
    assert (await store.find(before[0].id)).id == before[0].id
    await store.load(images[0])
    assert (await store.find("localhost/one:v1")).id in {each.id for each in before}
    assert _layers(store) == layers


@pytest.mark.parametrize("table", ["images", "layers"])
async def test_names_that_can_still_be_read_are_kept(filled, open_store, table):
    before, place = await filled.list(), filled._places.catalog
    await filled.close()
    _damage_table(place, table)
    store = await open_store()
    assert {(each.id, each.repo_tags) for each in await store.list()} == {
        (each.id, each.repo_tags) for each in before
    }


async def test_it_is_opened_as_usual_the_next_time(filled, open_store):
    place = filled._places.catalog
    await filled.close()
    _overwrite(place)
    store = await open_store()
    before = [each.id for each in await store.list()]
    await store.close()
    store = await open_store()
    assert [each.id for each in await store.list()] == before
    assert len(list(place.parent.glob("catalog.db.damaged-*"))) == 1


async def test_a_layer_that_differs_from_its_record_is_not_trusted(filled, open_store):
    image, place = (await filled.list())[0], filled._places.catalog
    top = filled._places.layer(filled._catalog.images[image.id].chain[1])
    await filled.close()
    (file,) = (top / "fs/d").iterdir()
    whole = file.read_bytes()
    file.write_bytes(b"")
    _overwrite(place)
    store = await open_store()
    rootfs = await store.prepare(new_id(), image.id, RootfsForm.OVERLAY)
    assert (rootfs.lowers[0] / "d" / file.name).read_bytes() == whole


async def test_layers_of_an_image_that_only_a_container_knows_stay(filled, open_store):
    """It was removed, so that its blobs are gone, and a container runs on its layers."""
    image, place, container = (await filled.list())[0], filled._places.catalog, new_id()
    rootfs = await filled.prepare(container, image.id, RootfsForm.OVERLAY)
    await filled.remove(image.id)
    while filled._tasks:
        await asyncio.sleep(0.01)
    await filled.close()
    _overwrite(place)
    store = await open_store()
    assert all(each.is_dir() for each in rootfs.lowers)
    await store.release(container)
    other = (await store.list())[0]
    await store.remove(other.id)
    while store._tasks:
        await asyncio.sleep(0.01)
    assert not any(each.exists() for each in rootfs.lowers)


async def test_who_only_looks_is_told_the_file(filled):
    root, place = filled._places.root, filled._places.catalog
    await filled.close()
    _overwrite(place)
    with pytest.raises(CatalogDamaged, match=r"catalog\.db"), look(root):
        pass
    assert list(place.parent.glob("catalog.db.damaged-*")) == []
