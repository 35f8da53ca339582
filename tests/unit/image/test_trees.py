"""The record of a tree: what it sees, what it does not mind, what becomes of a damaged one."""

from __future__ import annotations

import io
import os

import pytest

from polypod.plugin.errors import InvalidArgument
from polypod_image import trees


@pytest.fixture
def tree(tmp_path):
    top = tmp_path / "fs"
    (top / "a/b").mkdir(parents=True)
    (top / "a/file").write_bytes(b"content")
    (top / "a/file").chmod(0o640)
    (top / "a/b/empty").write_bytes(b"")
    os.link(top / "a/file", top / "a/b/second")
    (top / "link").symlink_to("a/file")
    os.mkfifo(top / "fifo")
    (top / "new\nline").mkdir()
    return top


@pytest.fixture
def taken(tree):
    """The record of `tree`, and what it counted."""
    file = io.BytesIO()
    (several, one), total = (tree / "a/file", tree / "a/b/empty"), trees.checksum(b"content", 0)
    files = {
        several.stat().st_ino: trees.Made(total),
        one.stat().st_ino: trees.made(one.stat(), trees.checksum(b"", 0)),
    }
    usage = trees.record(os.fsencode(tree), file, files)
    return file.getvalue(), usage


def found(tree, data, *, deep=True):
    """What differs, but for the times of directories, which every change of a name changes."""
    differences = {}
    trees.check(os.fsencode(tree), io.BytesIO(data), differences.__setitem__, deep=deep)
    return {
        path.decode(): what
        for path, what in differences.items()
        if not (what.startswith("time") and (tree / path.decode()).is_dir())
    }


def test_a_tree_is_as_its_record_says(tree, taken):
    assert found(tree, taken[0]) == {}


def test_usage_counts_a_file_with_two_names_once(tree, taken):
    inodes = {path.lstat().st_ino for path in [tree, *tree.rglob("*")]}
    blocks = sum({p.lstat().st_ino: p.lstat().st_blocks for p in [tree, *tree.rglob("*")]}.values())
    assert taken[1] == (blocks * 512, len(inodes))


def _rewrite(path, data):
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))


CHANGES = {
    "missing": (lambda t: (t / "a/b/empty").unlink(), "a/b/empty", "missing"),
    "missing-directory": (lambda t: (t / "new\nline").rmdir(), "new\nline", "missing"),
    "new": (lambda t: (t / "a/b/more").touch(), "a/b/more", "nobody unpacked this"),
    "new-below-the-root": (lambda t: (t / "more").touch(), "more", "nobody unpacked this"),
    "size": (lambda t: _rewrite(t / "a/file", b"longer content"), "a/file", "size"),
    "mode": (lambda t: (t / "a/file").chmod(0o600), "a/file", "mode"),
    "setuid": (lambda t: (t / "a/file").chmod(0o4640), "a/file", "mode"),
    "type": (lambda t: ((t / "fifo").unlink(), (t / "fifo").touch()), "fifo", "mode"),
    "time": (lambda t: os.utime(t / "a/b/empty", (1, 1)), "a/b/empty", "time"),
    "names": (lambda t: os.link(t / "a/b/empty", t / "a/b/x"), "a/b/empty", "names"),
    "link": (lambda t: _relink(t / "link"), "link", "leads elsewhere"),
}


def _relink(link):
    status = link.lstat()
    link.unlink()
    link.symlink_to("elsewhere")
    stamp = (status.st_mtime_ns, status.st_mtime_ns)
    os.utime(link, ns=stamp, follow_symlinks=False)


@pytest.mark.parametrize("change", CHANGES, ids=CHANGES.keys())
def test_each_kind_of_change_is_seen(change, tree, taken):
    make, path, what = CHANGES[change]
    make(tree)
    differences = found(tree, taken[0], deep=False)
    assert differences[path].startswith(what), differences


def test_other_content_of_the_same_size_takes_a_deep_look(tree, taken):
    _rewrite(tree / "a/file", b"CONTENT")
    assert found(tree, taken[0], deep=False) == {}
    assert found(tree, taken[0]) == dict.fromkeys(("a/file", "a/b/second"), "other content")


def test_a_directory_that_is_gone_is_told_once(tree, taken):
    for path in ("a/b/empty", "a/b/second"):
        (tree / path).unlink()
    (tree / "a/b").rmdir()
    differences = found(tree, taken[0])
    assert differences["a/b"] == "missing"
    assert "a/b/empty" not in differences


def test_a_damaged_record_is_an_error(tree, taken):
    data = taken[0]
    for broken in (b"", data[: len(data) // 2], data[:20] + b"\xff" * 10 + data[30:], b"x" * 100):
        with pytest.raises(InvalidArgument, match="record"):
            found(tree, broken)
