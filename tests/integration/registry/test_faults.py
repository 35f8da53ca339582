"""Killed in a pull, a full disk, many failures: a whole image under its name, or nothing (F1, F8)."""

from __future__ import annotations

import asyncio
import ctypes
import signal
import sys
from pathlib import Path

import pytest
from support.images import image_of, layer_of, noise

from polypod.plugin.errors import PolypodError, ResourceExhausted
from polypod.plugin.images import ImageContext
from polypod_image.plugin import plugin

pytestmark = pytest.mark.needs_root

IMAGE = image_of([layer_of({"a": noise(3_000_000, "a")}), layer_of({"b": noise(3_000_000, "b")})])
_libc = ctypes.CDLL(None, use_errno=True)

# Pulls in a process that kills itself at the Nth call of one function.
_CHILD = """
import asyncio, importlib, os, signal, sys
from pathlib import Path
from polypod.plugin.images import ImageContext
from polypod_image.plugin import plugin

root, hosts, reference, place, name, after = sys.argv[1:]
module_name, _, owner_name = place.partition(":")
owner = getattr(importlib.import_module(module_name), owner_name)
real, calls = getattr(owner, name), 0

def dying(*args, **kwargs):
    global calls
    calls += 1
    if calls == int(after):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)

async def main():
    options = {"hosts_dir": hosts}
    context = ImageContext("content", options, Path(root), Path(root))
    store = await plugin.polypod_image_stores()[0].open(context)
    setattr(owner, name, dying)
    await store.pull(reference)
    await store.close()

asyncio.run(main())
"""

POINTS = {
    "before-the-first-byte": ("polypod_image.registry.landing:Landing", "_take", 1),
    "mid-blob": ("polypod_image.registry.landing:Landing", "_take", 4),
    "whole-but-not-durable": ("polypod_image.registry.landing:Landing", "_land", 1),
    "durable-but-unnamed": ("polypod_image.inventory:Inventory", "land", 1),
    "second-blob-unnamed": ("polypod_image.inventory:Inventory", "land", 2),
    "documents": ("polypod_image.inventory:Inventory", "keep", 2),
    "before-unpacking": ("polypod_image.layers:Layers", "ensure", 1),
    "second-layer": ("polypod_image.layers:Layers", "ensure", 2),
    "before-the-name": ("polypod_image.inventory:Inventory", "commit", 1),
}


@pytest.mark.parametrize("point", POINTS)
async def test_a_killed_pull_leaves_nothing_and_the_next_one_succeeds(point, stores, liar):
    liar.add("app", "1", IMAGE)
    name = f"{liar.address}/app:1"
    arguments = [str(stores.place / "root"), str(stores.place / "hosts.d"), name]
    arguments += [str(each) for each in POINTS[point]]
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", _CHILD, *arguments)
    assert await child.wait() == -signal.SIGKILL
    store = await stores.open()
    assert await store.list() == ()
    assert await stores.settled([]) == []
    assert (await store.pull(name)).repo_tags == (name,)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 5 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    options = b"size=5m,mode=700"
    if _libc.mount(b"tmpfs", bytes(place), b"tmpfs", 0, options):
        pytest.skip(f"no tmpfs: errno {ctypes.get_errno()}")
    yield place
    assert _libc.umount2(bytes(place), 0) == 0


@pytest.mark.parametrize("known", [True, False], ids=["told-before", "found-while-writing"])
async def test_a_full_disk_is_named_and_gets_its_space_back(
    known, small_disk, stores, liar, monkeypatch
):
    """F8."""
    liar.add("app", "1", IMAGE)
    if not known:
        monkeypatch.setattr("polypod_image.inventory.check_space", lambda *_arguments: None)
    options = {"hosts_dir": str(stores.place / "hosts.d"), "min_free_bytes": 0}
    context = ImageContext("content", options, small_disk / "root", small_disk / "state")
    store = await plugin.polypod_image_stores()[0].open(context)
    try:
        with pytest.raises(ResourceExhausted):
            await store.pull(f"{liar.address}/app:1")
        root: Path = small_disk / "root"
        for _ in range(500):
            left = [*(root / "blobs/sha256").iterdir(), *(root / "work").iterdir()]
            if not left:
                break
            await asyncio.sleep(0.02)
        assert left == []
        liar.add("app", "2", image_of([layer_of({"c": b"small"})]))
        assert await store.pull(f"{liar.address}/app:2")
    finally:
        await store.close()


async def test_no_descriptor_or_task_stays_after_many_failures(stores, store, liar):
    import os

    liar.add("app", "1", IMAGE)
    from dataclasses import replace

    def rule(asked, honest):
        return replace(honest, cut=10) if asked.is_blob else honest

    liar.rule = rule
    before = tasks = 0
    for turn in range(6):
        pulls = [store.pull(f"{liar.address}/app:1") for _ in range(2)]
        done = await asyncio.gather(*pulls, return_exceptions=True)
        assert all(isinstance(each, PolypodError) for each in done)
        await stores.settled([])
        await asyncio.sleep(0.1)
        if turn == 1:
            before, tasks = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())
    assert (
        len(os.listdir("/proc/self/fd")) <= before + 4
    )  # connections that the server still closes
    assert len(asyncio.all_tasks()) <= tasks
