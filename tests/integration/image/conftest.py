"""A store on a directory of its own; tars made byte by byte."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from polypod.plugin.images import ImageContext
from polypod_image.plugin import plugin

_SPEC = importlib.util.spec_from_file_location(
    "polypod_test_tars", Path(__file__).parents[2] / "unit" / "image" / "tars.py"
)
_TARS = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_TARS)


@pytest.fixture
def tars():
    """`tests/unit/image/tars.py`."""
    return _TARS


@pytest.fixture
async def open_store(tmp_path):
    """Open the store below ``tmp_path/root``, with options; every one is closed at the end."""
    opened = []

    async def open_(**options):
        context = ImageContext("content", options, tmp_path / "root", tmp_path / "state")
        store = await plugin.polypod_image_stores()[0].open(context)
        opened.append(store)
        return store

    yield open_
    for each in opened:
        await each.close()


@pytest.fixture
async def store(open_store):
    """The store with default options."""
    return await open_store()


@pytest.fixture
def left(tmp_path):
    """Return what the store holds on disk: nothing, after a refused import."""

    def look():
        root = tmp_path / "root"
        return sorted(
            str(path.relative_to(root))
            for room in ("blobs/sha256", "blobs/sha512", "layers", "work")
            for path in (root / room).iterdir()
        )

    return look
