"""Twenty pulls of equal and different images at once, cancelled at random: nothing corrupt, nothing left (I11)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from pathlib import Path

import pytest
from support.images import image_of, layer_of, noise
from support.registry import push

from polypod.plugin.rootfs import RootfsForm

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_docker_registry]

SHARED = layer_of({f"shared/{n}": noise(40_000, f"s{n}") for n in range(40)})
OWN = {n: {f"own/{n}-{k}": noise(20_000, f"{n}-{k}") for k in range(30)} for n in range(6)}


@pytest.fixture(scope="module")
def names(docker_registry):
    """Six images with a layer in common, pushed."""
    found = {}
    for n, files in OWN.items():
        made = image_of([SHARED, layer_of(files), layer_of({"last": str(n).encode()})])
        push(docker_registry.address, f"crowd/{n}", "1", made)
        name = f"{docker_registry.address}/crowd/{n}:1"
        found[name] = (json.loads(made.manifest)["config"]["digest"], files)
    return found


@pytest.mark.parametrize("seed", range(4))
async def test_a_crowd_of_pulls_cancelled_at_random(seed, stores, store, names):
    chance = random.Random(seed)
    chosen = [chance.choice(list(names)) for _ in range(20)]
    pulls = [asyncio.create_task(store.pull(name)) for name in chosen]
    for pull in chance.sample(pulls, 12):
        await asyncio.sleep(chance.random() * 0.04)
        pull.cancel()
    done = await asyncio.gather(*pulls, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) or each.id for each in done)
    for name, image in zip(chosen, done, strict=True):
        if not isinstance(image, asyncio.CancelledError):
            assert image.id == names[name][0]
    await _nothing_but_listed_images(stores, store)
    for name, (image_id, files) in names.items():
        assert (await store.pull(name)).id == image_id
        await _is_whole(store, image_id, files)
    for image in await store.list():
        await store.remove(image.id)
    assert await stores.settled([]) == []


async def _nothing_but_listed_images(stores, store):
    """Every blob is whole and belongs to an image; no unfinished work, no layer of nobody."""
    wanted = set()
    for image in await store.list():
        manifest = json.loads(_blob(stores, image.manifest_digest).read_bytes())
        parts = [manifest["config"], *manifest["layers"]]
        wanted |= {each["digest"] for each in parts} | {image.manifest_digest}
    blobs = sorted("blobs/" + each.replace(":", "/") for each in wanted)
    for _ in range(500):
        files = [each for each in stores.files() if not each.startswith("layers/")]
        if files == blobs:
            break
        await asyncio.sleep(0.02)
    assert files == blobs
    for digest in wanted:
        found = hashlib.sha256(_blob(stores, digest).read_bytes()).hexdigest()
        assert digest == f"sha256:{found}"


def _blob(stores, digest) -> Path:
    return stores.place / "root" / "blobs" / digest.replace(":", "/")


async def _is_whole(store, image_id, files):
    rootfs = await store.prepare("d" * 64, image_id, RootfsForm.DIRECTORY)
    try:
        for name, data in files.items():
            assert (rootfs.path / name).read_bytes() == data
        assert len(list((rootfs.path / "shared").iterdir())) == 40
    finally:
        await store.release("d" * 64)
