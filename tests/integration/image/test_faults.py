"""Crashes, cancellations and many at once: never a name with half an image, never content that is needed gone."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from polypod.plugin.errors import FailedPrecondition
from polypod.plugin.ids import new_id
from polypod.plugin.rootfs import RootfsForm

pytestmark = pytest.mark.needs_root

# Loads a layout in a process that kills itself at the Nth call of one function.
_CHILD = """
import asyncio, importlib, os, signal, sys
from pathlib import Path
from polypod.plugin.images import ImageContext
from polypod_image.plugin import plugin

root, layout, place, name, after = sys.argv[1:]
module_name, _, owner_name = place.partition(":")
owner = importlib.import_module(module_name)
for part in filter(None, owner_name.split(".")):
    owner = getattr(owner, part)
real, calls = getattr(owner, name), 0

def dying(*args, **kwargs):
    global calls
    calls += 1
    if calls == int(after):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)

async def main():
    store = await plugin.polypod_image_stores()[0].open(
        ImageContext("content", {}, Path(root), Path(root))
    )
    setattr(owner, name, dying)
    await store.load(Path(layout))
    await store.close()

asyncio.run(main())
"""

# Where it dies → is the image whole afterwards?
POINTS = {
    "first-blob-unnamed": ("polypod_image.blobs:Blobs", "_name", 1, False),
    "second-blob-unnamed": ("polypod_image.blobs:Blobs", "_name", 2, False),
    "manifest-unnamed": ("polypod_image.blobs:Blobs", "_name", 4, False),
    "between-blobs-and-layers": ("polypod_image.layers:Layers", "ensure", 1, False),
    "in-the-middle-of-a-layer": ("polypod_image.unpackers:", "_message", 1, False),
    "second-layer": ("polypod_image.unpackers:Unpackers", "unpack", 2, False),
    "layer-unnoted": ("polypod_image.catalog:Catalog", "add_layer", 1, False),
    "layer-noted-not-named": ("polypod_image.catalog:Catalog", "add_layer", 2, False),
    "between-layers-and-name": ("polypod_image.inventory:Inventory", "_commit", 1, False),
    "before-it-is-on-disk": ("polypod_image.layers:Layers", "sync", 1, True),
    "while-it-is-noted": ("polypod_image.catalog:Catalog", "layers_are_durable", 1, True),
}


def _layout(tars, tmp_path):
    first = tars.layer(*(tars.file(b"f%d" % number, b"%d" % number) for number in range(50)))
    second = tars.layer(tars.file(b"top", b"top"))
    return tars.Layout(first, second).write(tmp_path / "layout")


async def _settled(store):
    while store._tasks:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("point", POINTS, ids=POINTS.keys())
async def test_killed_import_leaves_a_whole_image_or_none(point, tars, open_store, left, tmp_path):
    layout = _layout(tars, tmp_path)
    place, name, after, whole = POINTS[point]
    command = [sys.executable, "-c", _CHILD, str(tmp_path / "root"), str(layout), place, name]
    done = subprocess.run([*command, str(after)], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    store = await open_store()
    assert len(await store.list()) == (1 if whole else 0)
    await _settled(store)
    if not whole:
        assert left() == []
    (image,) = await store.load(layout)
    rootfs = await store.prepare(new_id(), image.id, RootfsForm.OVERLAY)
    assert (rootfs.lowers[1] / "f49").read_bytes() == b"49"
    assert (rootfs.lowers[0] / "top").read_bytes() == b"top"


async def test_killed_process_leaves_containers_as_they_are(tars, open_store, tmp_path):
    store = await open_store()
    (image,) = await store.load(_layout(tars, tmp_path))
    kept, half = new_id(), new_id()
    rootfs = await store.prepare(kept, image.id, RootfsForm.OVERLAY)
    (rootfs.upper / "mine").write_text("x")
    await store.close()
    # A directory without its note: as if the process had died before it belonged to anybody.
    (tmp_path / "root/containers" / half / "fs").mkdir(parents=True)
    store = await open_store()
    assert await store.prepared() == [kept]
    again = await store.prepare(kept, image.id, RootfsForm.OVERLAY)
    assert (again.upper / "mine").read_text() == "x"


async def test_layers_written_before_a_loss_of_power_are_not_trusted(tars, open_store, tmp_path):
    store = await open_store()
    (image,) = await store.load(_layout(tars, tmp_path))
    await _settled(store)
    assert store._inventory.layers.unsynced() == []
    store._catalog._db.execute("UPDATE layers SET boot = 'another boot'")
    await store.close()
    for path in (tmp_path / "root/layers").glob("*/fs/f49"):
        path.write_bytes(b"")  # as if its data had never reached the disk
    store = await open_store()
    rootfs = await store.prepare(new_id(), image.id, RootfsForm.OVERLAY)
    assert (rootfs.lowers[1] / "f49").read_bytes() == b"49"


async def test_image_with_a_lost_blob_is_dropped_and_others_stay(tars, open_store, tmp_path):
    store = await open_store()
    (image,) = await store.load(_layout(tars, tmp_path))
    other = tars.Layout(tars.layer(tars.file(b"o")), name="localhost/other:1")
    (second,) = await store.load(other.write(tmp_path / "other"))
    await store.close()
    for digest, _ in store._catalog.images[image.id].blobs:
        store._places.blob(digest).unlink()
        break
    store = await open_store()
    assert [each.id for each in await store.list()] == [second.id]
    (again,) = await store.load(_layout(tars, tmp_path))
    assert again.id == image.id


async def test_one_store_has_one_process(open_store):
    await open_store()
    with pytest.raises(FailedPrecondition, match="another server"):
        await open_store()


async def test_store_of_another_version_is_refused(open_store):
    store = await open_store()
    store._catalog._db.execute("PRAGMA user_version = 99")
    await store.close()
    with pytest.raises(FailedPrecondition, match="another version"):
        await open_store()


async def test_same_image_many_times_at_once_with_cancellations(tars, store, tmp_path):
    """I11: one cancelled does neither cancel nor spoil the others."""
    layout = _layout(tars, tmp_path)
    chance = random.Random(1)
    loads = [asyncio.create_task(store.load(layout)) for _ in range(20)]
    for task in loads[::2]:
        await asyncio.sleep(chance.random() / 200)
        task.cancel()
    results = await asyncio.gather(*loads, return_exceptions=True)
    images = [each for each in results if not isinstance(each, BaseException)]
    assert len(images) >= 10
    assert len(await store.list()) == 1
    rootfs = await store.prepare(new_id(), images[0][0].id, RootfsForm.OVERLAY)
    assert (rootfs.lowers[1] / "f0").read_bytes() == b"0"


async def test_removal_and_import_at_the_same_time(tars, store, tmp_path, left):
    """Whatever the order, the image is whole or gone in the end."""
    layout = _layout(tars, tmp_path)
    (image,) = await store.load(layout)
    for _ in range(30):
        await asyncio.gather(store.remove(image.id), store.load(layout), store.remove(image.id))
        if await store.list():
            rootfs = await store.prepare(name := new_id(), image.id, RootfsForm.OVERLAY)
            assert (rootfs.lowers[1] / "f0").read_bytes() == b"0"
            await store.release(name)
    await _settled(store)
    if not await store.list():
        assert left() == []


async def test_closing_ends_an_import_that_is_under_way(tars, open_store, tmp_path, left):
    store = await open_store()
    layer = tars.layer(*(tars.file(b"%06d" % number, b"x") for number in range(60_000)))
    task = asyncio.create_task(store.load(tars.Layout(layer).write(tmp_path / "big")))
    while not list((tmp_path / "root/work").glob("layer-*")):
        await asyncio.sleep(0.001)
    await store.close()
    with pytest.raises(Exception, match="closing"):
        await task
    store = await open_store()
    assert await store.list() == ()
    assert left() == []


async def test_full_disk_is_an_error_and_leaves_nothing(tars, open_store, tmp_path, left):
    """A file system of 4 MiB in a mount namespace of its own."""
    layer = tars.layer(tars.file(b"big", os.urandom(3 << 20)))
    layout = tars.Layout(layer).write(tmp_path / "layout")
    program = """
import asyncio, sys
from pathlib import Path
from polypod.plugin.errors import ResourceExhausted
from polypod.plugin.images import ImageContext
from polypod_image.plugin import plugin
async def main():
    root = Path(sys.argv[1])
    context = ImageContext("content", {"min_free_bytes": 0}, root, root)
    store = await plugin.polypod_image_stores()[0].open(context)
    try:
        await store.load(Path(sys.argv[2]))
    except ResourceExhausted as error:
        print("refused:", error)
    while store._tasks:
        await asyncio.sleep(0.01)
    print([len(list((root / each).iterdir())) for each in ("blobs/sha256", "layers", "work")])
    await store.close()
asyncio.run(main())
"""
    (tmp_path / "small").mkdir()
    script = 'mount -t tmpfs -o size=4m tmpfs "$1" && exec "$2" -c "$3" "$1" "$4"'
    command = ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh"]
    done = subprocess.run(
        [*command, str(tmp_path / "small"), sys.executable, program, str(layout)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert "refused:" in done.stdout, done.stdout + done.stderr
    assert "[0, 0, 0]" in done.stdout, done.stdout


# I2, I3: nothing is executed, memory is bounded.

_WATCHED = """
import asyncio, os, resource, sys
from pathlib import Path
from polypod.plugin.images import ImageContext
from polypod_image.plugin import plugin
import polypod_image.store
seen = []
def hook(event, args):
    if event == "subprocess.Popen" and args[0] == getattr(sys, "_base_executable", sys.executable):
        return  # the unpacker: our own interpreter, isolated, with our own program
    if event in ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "os.system",
                 "ctypes.dlopen", "os.spawn"):
        seen.append((event, args))
async def main():
    store = await plugin.polypod_image_stores()[0].open(
        ImageContext("content", {}, Path(sys.argv[1]), Path(sys.argv[1]))
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.addaudithook(hook)
    (image,) = await store.load(Path(sys.argv[2]))
    await store.image_file(image.id, "/etc/passwd", 1000)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await store.close()
    unpacker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # and its children
    print(len(seen), seen[:3], max(after - before, unpacker) // 1024)
asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["gzip", "zstd"])
async def test_unpacking_executes_nothing_and_takes_little_memory(how, tars, tmp_path):
    trap = tmp_path / "trap"
    trap.mkdir()
    for name in ("gzip", "gunzip", "unpigz", "pigz", "igzip", "zstd", "tar", "xz"):
        (trap / name).write_text(f"#!/bin/sh\ntouch {trap}/sprung\n")
        (trap / name).chmod(0o755)
    import zstandard

    layer = tars.layer(tars.file(b"lib/libnss_files.so.2"), tars.file(b"big", bytes(200 << 20)))
    packed = tars.gzipped(layer) if how == "gzip" else zstandard.ZstdCompressor().compress(layer)
    layout = tars.Layout(layer, packed=[packed], media=f"{tars.LAYER}+{how}")
    path = layout.write(tmp_path / "layout")
    del layer
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED, str(tmp_path / "root"), str(path)],
        env={**os.environ, "PATH": f"{trap}:{os.environ['PATH']}"},
        check=True,
        capture_output=True,
        text=True,
    )
    events, *_, megabytes = done.stdout.split()
    assert events == "0", done.stdout
    assert int(megabytes) < 64, done.stdout
    assert not Path(trap / "sprung").exists()
