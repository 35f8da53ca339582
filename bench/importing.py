"""What an import costs those who wait for something else, and how soon a removal answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from bench.images import Trees, write_archive
from bench.rig import Rig
from bench.samples import Result, result
from polypod.client import CriClient

_BYTES_PER_FILE = 16_000
_ROUNDS = 3
_PAUSE_S = 0.005


async def measure(rig: Rig, files: int) -> list[Result]:
    """Import an image a few times while somebody asks for the version; remove it each time.

    Args:
        rig: with a started server.
        files: of the image.

    Raises:
        RuntimeError: the server's images are simulated.
    """
    if rig.simulated:
        raise RuntimeError("the simulator has no layers to unpack")
    # Another image each time: what was removed a moment ago would be found again.
    archives = [rig.server.place / f"big-{number}.tar" for number in range(_ROUNDS)]
    size = await asyncio.to_thread(_write, files, archives)
    idle = await _versions(rig.cri, asyncio.create_task(asyncio.sleep(2)))
    imports: list[float] = []
    removals: list[float] = []
    during: list[float] = []
    before_s = rig.cpu_s()
    for archive in archives:
        began = time.perf_counter()
        task = asyncio.create_task(rig.cri.pull_image(f"oci-archive:{archive}"))
        during += await _versions(rig.cri, task)
        imports.append(time.perf_counter() - began)
        image_id = await task
        began = time.perf_counter()
        await rig.cri.remove_image(image_id)
        removals.append((time.perf_counter() - began) * 1e3)
        archive.unlink()
    cpu_s = (rig.cpu_s() - before_s) / _ROUNDS
    what = f"{files} files, {size >> 20} MiB packed"
    return [
        result(f"import of an image, {what}", "s", imports, cpu_s=cpu_s),
        result("Version while nothing goes on", "ms", idle),
        result("Version during the imports", "ms", during, max_ms=max(during)),
        result(f"RemoveImage, {files} files", "ms", removals),
    ]


def _write(files: int, archives: Sequence[Path]) -> int:
    """Write an image into each archive; return the bytes of the last."""
    trees = Trees(files, files * _BYTES_PER_FILE)
    for archive in archives:
        made = trees.image(archive.name, 1, "gzip")
        write_archive(made, f"localhost/{archive.stem}:v1", archive)
    return archives[-1].stat().st_size


async def _versions(cri: CriClient, work: asyncio.Task[object]) -> list[float]:
    """Ask for the version again and again until the work is done; return the milliseconds of each."""
    taken: list[float] = []
    while not work.done():
        began = time.perf_counter()
        await cri.version()
        taken.append((time.perf_counter() - began) * 1e3)
        await asyncio.sleep(_PAUSE_S)
    return taken
