"""Pull and unpack on both sides, from a registry on the loopback, each time into a root that is new.

A root that images were removed from would not do: some file systems are slow to make files for minutes after
many were removed. So all roots lie on a file system that is new, too. And memory is touched before each pull: a
virtual machine's host finds a page when it is first used, which is slow, differs from run to run, and is neither
side's doing.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import time
from collections.abc import Callable, Sequence

from bench.images import Trees, busybox
from bench.peers import disk
from bench.peers.measures import SETTLE_S, Sizes
from bench.peers.rows import Gathered
from bench.peers.side import Side, cpu_s
from polypod.testing.registry import Registry, push

VARIANTS = ((1, "gzip"), (6, "gzip"), (1, "zstd"), (6, "zstd"))
"""Layers and compression of each image; no two have a file in common."""
SMALL = "bench/small"
PULL_AIM = 1 / 2
_DISK = 16 << 30
"""Bytes of the file system; a round takes less than 2 GiB of them."""
_TOUCHED = 1 << 30
"""Bytes; more than a pull takes, page cache included."""


async def pulls(gathered: Gathered, makers: Sequence[Callable[[], Side]], sizes: Sizes) -> None:
    """Measure; the sides are made and taken down here.

    Raises:
        RuntimeError: a side could not be taken down.
    """
    with disk.of_its_own(_DISK), Registry() as registry:
        names = await asyncio.to_thread(_fill, registry.address, sizes)
        used: list[Side] = []
        try:
            for _ in range(sizes.pulls):
                for make in makers:
                    side = make()
                    used.append(side)
                    await _round(gathered, side, registry.address, names)
                    await asyncio.to_thread(side.stop_daemon)
            for side in used[-len(makers) :]:
                await side.start_daemon()
                await _removals(gathered, side, list(names.values()))
        finally:
            clean = [await side.take_down() for side in used]
    if not all(clean):
        raise RuntimeError("a server of the pulls could not be taken down")


def _fill(address: str, sizes: Sizes) -> dict[str, str]:
    """Make and push the images; return what each is → its reference."""
    push(address, SMALL, "1", busybox())
    trees = Trees(sizes.tree_files, sizes.tree_mb << 20)
    names = {}
    for layers, compression in VARIANTS:
        repository = f"bench/tree-{layers}-{compression}"
        push(address, repository, "1", trees.image(repository, layers, compression))
        parts = "1 layer" if layers == 1 else f"{layers} layers"
        what = f"{sizes.tree_mb} MiB, {sizes.tree_files} files, {parts}, {compression}"
        names[what] = f"{address}/{repository}:1"
    return names


async def _round(gathered: Gathered, side: Side, address: str, names: dict[str, str]) -> None:
    await side.start(None)
    await side.pods.cri.pull_image(f"{address}/{SMALL}:1")  # modules, connections, caches
    for what, name in names.items():
        await asyncio.to_thread(_settle)
        before_s, began = cpu_s(side), time.perf_counter()
        await side.pods.cri.pull_image(name)
        took_s = time.perf_counter() - began
        await asyncio.sleep(SETTLE_S)
        cpu = cpu_s(side) - before_s
        gathered.add(side.name, f"pull + unpack, {what}", "s", [took_s], aim=PULL_AIM)
        gathered.add(side.name, f"CPU of it, {what}", "s", [cpu], aim=PULL_AIM)


def _settle() -> None:
    """Write what is to be written, so that nobody's old writes are in the way; have memory that was used before."""
    os.sync()
    with mmap.mmap(-1, _TOUCHED, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE):
        return


async def _removals(gathered: Gathered, side: Side, names: Sequence[str]) -> None:
    for name in names:
        began = time.perf_counter()
        await side.pods.cri.remove_image(name)
        took_ms = (time.perf_counter() - began) * 1e3
        gathered.add(side.name, "RemoveImage of such an image", "ms", [took_ms])
