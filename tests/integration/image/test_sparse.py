"""Sparse files, as GNU tar writes them in each of its forms: the same content, as few blocks."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from polypod.plugin.errors import InvalidArgument, Unsupported
from polypod.plugin.ids import new_id
from polypod.plugin.rootfs import RootfsForm

pytestmark = pytest.mark.needs_root

# Where a file has content → its size.
FILES = {
    "start": ([(0, b"begin")], 1 << 20),
    "end": ([((1 << 20) - 3, b"end")], 1 << 20),
    "hole-alone": ([], 3 << 20),
    "nothing": ([], 0),
    "dense": ([(0, b"x" * 10_000)], 10_000),
    "many": ([(number << 16, b"part %d" % number) for number in range(60)], 5 << 20),
}


@pytest.fixture
def tree(tmp_path):
    place = tmp_path / "tree"
    place.mkdir()
    for name, (parts, size) in FILES.items():
        with (place / name).open("wb") as file:
            for offset, data in parts:
                file.seek(offset)
                file.write(data)
            file.truncate(size)
    return place


def _packed(tree, *options):
    if shutil.which("tar") is None:
        pytest.skip("no GNU tar here")
    words = ["tar", "--sparse", "--hole-detection=raw", *options, "-C", str(tree), "-c", "."]
    return subprocess.run(words, check=True, capture_output=True).stdout


@pytest.mark.parametrize("form", ["gnu", "0.1", "1.0"])
async def test_sparse_files_keep_content_and_holes(form, tree, tars, store, tmp_path):
    options = ["--format=gnu"] if form == "gnu" else ["--format=posix", f"--sparse-version={form}"]
    packed = _packed(tree, *options)
    assert len(packed) < 1 << 20
    (image,) = await store.load(tars.Layout(packed).write(tmp_path / "layout"))
    overlay = await store.prepare(new_id(), image.id, RootfsForm.OVERLAY)
    copied = await store.prepare(new_id(), image.id, RootfsForm.DIRECTORY)
    for top in (overlay.lowers[0], copied.path):
        for name in FILES:
            made, source = top / name, tree / name
            assert made.read_bytes() == source.read_bytes(), name
            assert made.stat().st_blocks <= source.stat().st_blocks + 8, name


async def test_the_oldest_pax_form_is_refused_by_name(tree, tars, store, left, tmp_path):
    packed = _packed(tree, "--format=posix", "--sparse-version=0.0")
    with pytest.raises(Unsupported, match=r"0\.1 and 1\.0"):
        await store.load(tars.Layout(packed).write(tmp_path / "layout"))


async def test_holes_count_as_the_bytes_that_a_reader_sees(tree, tars, open_store, tmp_path):
    """I4: else a small layer would be a large file system image for a virtual machine."""
    store = await open_store(max_layer_bytes=8 << 20)
    packed = _packed(tree, "--format=gnu")
    with pytest.raises(InvalidArgument, match="max_layer_bytes"):
        await store.load(tars.Layout(packed).write(tmp_path / "layout"))


async def test_archives_have_no_sparse_members(tars, store, tmp_path):
    path = tmp_path / "archive.tar"
    path.write_bytes(tars.layer(tars.sparse(b"manifest.json", [(0, 2)], 2)))
    with pytest.raises(Unsupported, match="sparse"):
        await store.load(path)
