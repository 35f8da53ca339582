"""Reliability I1: hostile layers are refused or stay within; a decoy tree outside never changes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from polypod.plugin.errors import InvalidArgument, Unsupported
from polypod.plugin.ids import new_id
from polypod.plugin.rootfs import RootfsForm

pytestmark = pytest.mark.needs_root


def chain(name, depth):
    return b"/".join([name] * depth)


# Each case: what it is called → (layers as functions of the builder and the decoy's path).
REFUSED = {
    "dot-dot": lambda t, d: [t.file(b"../x")],
    "dot-dot-alone": lambda t, d: [t.file(b"..")],
    "dot-dot-inside": lambda t, d: [t.directory(b"a"), t.file(b"a/../../x")],
    "dot-dot-in-pax": lambda t, d: [t.pax({b"path": b"../../x"}) + t.file(b"y")],
    "dot-dot-in-longname": lambda t, d: [t.longname(b"../" * 60 + b"x") + t.file(b"y")],
    "link-loop": lambda t, d: [t.symlink(b"a", b"b"), t.symlink(b"b", b"a"), t.file(b"a/x")],
    "link-to-itself": lambda t, d: [t.symlink(b"a", b"a"), t.file(b"a/x")],
    "hardlink-dot-dot": lambda t, d: [t.hardlink(b"h", b"../../decoy/secret")],
    "hardlink-absolute": lambda t, d: [t.hardlink(b"h", d + b"/secret")],
    "hardlink-through-link": lambda t, d: [t.symlink(b"l", d), t.hardlink(b"h", b"l/secret")],
    "hardlink-to-directory": lambda t, d: [t.directory(b"a"), t.hardlink(b"h", b"a")],
    "hardlink-to-nothing": lambda t, d: [t.hardlink(b"h", b"")],
    "whiteout-dot": lambda t, d: [t.file(b"a/.wh..", b"")],
    "whiteout-dot-dot": lambda t, d: [t.file(b"a/.wh...", b"")],
    "whiteout-of-nothing": lambda t, d: [t.file(b"a/.wh.", b"")],
    "whiteout-outside": lambda t, d: [t.file(b"../decoy/.wh.secret", b"")],
    "nul-in-pax": lambda t, d: [t.pax({b"path": b"a\0b"}) + t.file(b"y")],
    "path-too-long": lambda t, d: [t.pax({b"path": chain(b"d", 5000)}) + t.file(b"y")],
    "longname-too-long": lambda t, d: [t.longname(chain(b"d", 5000)) + t.file(b"y")],
    "path-beyond-the-stores": lambda t, d: [t.pax({b"path": chain(b"d", 2000)}) + t.file(b"y")],
    "component-too-long": lambda t, d: [t.pax({b"path": b"n" * 300}) + t.file(b"y")],
    "deep-beyond-by-links": lambda t, d: [
        t.pax({b"path": chain(b"d", 1500) + b"/"}) + t.directory(b"y"),
        t.pax({b"linkpath": chain(b"d", 1500)}) + t.symlink(b"l", b"z"),
        t.pax({b"path": b"l/" + chain(b"e", 1000)}) + t.file(b"y"),
    ],
    "file-on-the-way": lambda t, d: [t.file(b"a"), t.file(b"a/x")],
    "device-on-the-way": lambda t, d: [t.fifo(b"a"), t.file(b"a/x")],
    "root-is-a-file": lambda t, d: [t.file(b"./")],
    "root-is-a-link": lambda t, d: [t.symlink(b"./", d)],
    "whiteout-device": lambda t, d: [t.device(b"x", (0, 0))],
    "huge-device": lambda t, d: [t.device(b"x", (1 << 20, 1))],
    "link-without-target": lambda t, d: [t.symlink(b"l", b"")],
    "uid-minus-one": lambda t, d: [t.file(b"x", uid=0xFFFFFFFF)],
    "uid-too-large": lambda t, d: [t.pax({b"uid": b"99999999999"}) + t.file(b"x")],
    "negative-size": lambda t, d: [t.header(b"x", raw={124: b"\xff" * 12})],
    "size-overflow": lambda t, d: [t.header(b"x", raw={124: b"\x80" + b"\x3f" * 11})],
    "size-is-text": lambda t, d: [t.header(b"x", raw={124: b"0x10\0\0\0\0\0\0\0\0"})],
    "more-size-than-data": lambda t, d: [t.header(b"x", size=1 << 30)],
    "sparse-beyond-its-size": lambda t, d: [t.sparse(b"x", [(0, 512)], 100)],
    "sparse-overlapping": lambda t, d: [t.sparse(b"x", [(0, 512), (100, 512)], 4096)],
    "sparse-backwards": lambda t, d: [t.sparse(b"x", [(1024, 512), (0, 512)], 4096)],
    "sparse-of-less-than-it-has": lambda t, d: [t.sparse(b"x", [(0, 100)], 4096, stored=512)],
    "sparse-of-more-than-it-has": lambda t, d: [t.sparse(b"x", [(0, 1024)], 4096, stored=512)],
    "sparse-negative": lambda t, d: [t.sparse(b"x", [(0, 512)], 4096, raw={386: b"\xff" * 12})],
    "sparse-larger-than-files-may-be": lambda t, d: [t.sparse(b"x", [(0, 512)], 1 << 40)],
    "sparse-without-end": lambda t, d: [
        t.sparse(b"x", [(0, 512)], 4096, raw={482: b"\x01"}),
        (t.number(0, 12) * 42 + b"\x01").ljust(512, b"\0") * 4000,
    ],
    "sparse-by-pax": lambda t, d: [t.pax({b"GNU.sparse.map": b"0,1"}) + t.file(b"x")],
    "sparse-by-pax-odd": lambda t, d: [
        t.pax({b"GNU.sparse.map": b"0,1,2", b"GNU.sparse.size": b"9"}) + t.file(b"x")
    ],
    "sparse-0.0": lambda t, d: [
        t.pax({b"GNU.sparse.size": b"9", b"GNU.sparse.numblocks": b"1"}) + t.file(b"x")
    ],
    "sparse-1.0-of-no-map": lambda t, d: [t.sparse_pax(b"x", b"", 10)],
    "sparse-1.0-of-too-many": lambda t, d: [t.sparse_pax(b"x", b"9999999\n0\n1\n", 10)],
    "sparse-1.0-of-a-long-number": lambda t, d: [t.sparse_pax(b"x", b"1" * 2000, 10)],
    "sparse-1.0-map-longer-than-entry": lambda t, d: [t.sparse_pax(b"x", b"400\n0\n1\n", 10)],
    "sparse-1.0-not-a-number": lambda t, d: [t.sparse_pax(b"x", b"1\n-1\n1\n", 10)],
    "sparse-named-outside": lambda t, d: [
        t.sparse_pax(b"../x", b"0\n", 10),
    ],
    "unknown-type": lambda t, d: [t.header(b"x", kind=b"Z")],
    "bad-checksum": lambda t, d: [t.file(b"x")[:-512].replace(b"ustar", b"USTAR") + bytes(512)],
    "lone-zero-block": lambda t, d: [bytes(512), t.file(b"x")],
    "pax-for-nothing": lambda t, d: [t.pax({b"path": b"x"})],
    "pax-tower": lambda t, d: [t.pax({b"path": b"x"}) * 40, t.file(b"x")],
    "pax-length-lies": lambda t, d: [
        t.header(b"p", kind=b"x", size=12) + t.padded(b"99 path=abc\n") + t.file(b"x")
    ],
}

KEPT_WITHIN = {
    "absolute": lambda t, d: [t.file(d + b"/secret", b"evil")],
    "absolute-link-then-write": lambda t, d: [t.symlink(b"l", d), t.file(b"l/secret", b"evil")],
    "relative-link-then-write": lambda t, d: [
        t.symlink(b"l", b"../../../../../../../../../.." + d),
        t.file(b"l/secret", b"evil"),
    ],
    "chain-of-links": lambda t, d: [
        t.symlink(b"a", b"b"),
        t.symlink(b"b", b"c/../d"),
        t.symlink(b"d", d),
        t.file(b"a/secret", b"evil"),
    ],
    "link-overwritten": lambda t, d: [
        t.symlink(b"l", d + b"/secret"),
        t.file(b"l", b"evil", mode=0o777),
    ],
    "link-becomes-directory": lambda t, d: [
        t.symlink(b"l", d),
        t.directory(b"l", 0o777, uid=99),
        t.file(b"l/new", b"evil"),
    ],
    "directory-becomes-link": lambda t, d: [
        t.directory(b"a/b"),
        t.file(b"a/b/one"),
        t.symlink(b"a", d),
        t.file(b"a/b/two", b"evil"),
        t.file(b"a/secret", b"evil"),
    ],
    "hardlink-to-link-then-write": lambda t, d: [
        t.symlink(b"l", d + b"/secret"),
        t.hardlink(b"h", b"l"),
        t.file(b"h", b"evil"),
    ],
    "hardlink-then-write": lambda t, d: [
        t.file(b"f", b"good"),
        t.hardlink(b"h", b"f"),
        t.file(b"h", b"evil", mode=0o4777),
    ],
    "magic-link": lambda t, d: [
        t.symlink(b"p", b"/proc/self/root" + d),
        t.symlink(b"q", b"/proc/self/fd/3"),
        t.file(b"p/secret", b"evil"),
        t.file(b"q/secret", b"evil"),
    ],
    "whiteout-through-link": lambda t, d: [t.symlink(b"l", d), t.file(b"l/.wh.secret", b"")],
    "opaque-through-link": lambda t, d: [t.symlink(b"l", d), t.file(b"l/.wh..wh..opq", b"")],
    "global-pax-path": lambda t, d: [
        t.pax({b"path": b"../../decoy/secret"}, kind=b"g"),
        t.file(b"x", b"evil"),
    ],
    "setuid-and-owner": lambda t, d: [t.file(b"su", mode=0o4755, uid=7, gid=8)],
    "not-utf8": lambda t, d: [t.file(b"\xff\xfe/\xc3", b"evil")],
    "fifo": lambda t, d: [t.fifo(b"etc/passwd")],
    "deep": lambda t, d: [t.pax({b"path": chain(b"d", 1500)}) + t.file(b"y")],
    "device": lambda t, d: [t.device(b"sda", (8, 0), kind=b"4")],
    "twice": lambda t, d: [t.file(b"x", b"one"), t.file(b"x", b"two")],
    "old-directory": lambda t, d: [t.header(b"a/", kind=b"\0"), t.file(b"a/x")],
}


@pytest.fixture
def decoy(tmp_path):
    """A tree outside of the store, and what it looks like."""
    place = tmp_path / "decoy"
    (place / "inner").mkdir(parents=True)
    (place / "secret").write_bytes(b"not yours")
    (place / "inner" / "file").write_bytes(b"nor this")
    os.symlink("secret", place / "link")
    yield place
    assert _seen(place) == _SEEN[place]


_SEEN = {}


def _seen(place):
    found = {}
    for path in (place, *sorted(place.rglob("*"))):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        xattrs = tuple(os.listxattr(path, follow_symlinks=False))
        found[str(path)] = (*status[:7], status.st_mtime_ns, status.st_ctime_ns, content, xattrs)
    return found


async def _settled(store):
    """Wait for what runs behind the answers."""
    for _ in range(200):
        if not store._tasks:
            return
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("case", REFUSED, ids=REFUSED.keys())
async def test_hostile_layer_is_refused_and_leaves_nothing(
    case, tars, store, left, decoy, tmp_path
):
    _SEEN[decoy] = _seen(decoy)
    parts = REFUSED[case](tars, os.fsencode(decoy))
    layout = tars.Layout(tars.layer(*parts)).write(tmp_path / "layout")
    with pytest.raises((InvalidArgument, Unsupported)):
        await store.load(layout)
    assert await store.list() == ()
    await _settled(store)
    assert left() == []


@pytest.mark.parametrize("case", KEPT_WITHIN, ids=KEPT_WITHIN.keys())
async def test_hostile_layer_stays_within(case, tars, store, decoy, tmp_path):
    _SEEN[decoy] = _seen(decoy)
    parts = KEPT_WITHIN[case](tars, os.fsencode(decoy))
    layout = tars.Layout(tars.layer(*parts)).write(tmp_path / "layout")
    (image,) = await store.load(layout)
    for path in ("/etc/passwd", f"{decoy}/secret", "/l/secret", "/l", "/p/secret"):
        assert await store.image_file(image.id, path, 1 << 20) in (None, b"evil")
    for form in (RootfsForm.OVERLAY, RootfsForm.DIRECTORY):
        await store.prepare(new_id(), image.id, form)


@pytest.mark.parametrize("swapped", ["directory", "link"])
async def test_links_of_one_layer_do_not_carry_another_out(swapped, tars, store, decoy, tmp_path):
    _SEEN[decoy] = _seen(decoy)
    link = tars.symlink(b"d", os.fsencode(decoy))
    first, second = (
        (tars.directory(b"d"), [link, tars.file(b"d/secret", b"evil")])
        if swapped == "directory"
        else (link, [tars.file(b"d/secret", b"evil"), tars.file(b"d/.wh.inner", b"")])
    )
    layout = tars.Layout(tars.layer(first), tars.layer(*second)).write(tmp_path / "layout")
    (image,) = await store.load(layout)
    assert await store.image_file(image.id, "/d/secret", 100) == b"evil"
    await store.prepare(new_id(), image.id, RootfsForm.DIRECTORY)


async def _layer_of(store, tars, tmp_path, *parts):
    layout = tars.Layout(tars.layer(*parts)).write(tmp_path / "layout")
    (image,) = await store.load(layout)
    rootfs = await store.prepare(new_id(), image.id, RootfsForm.OVERLAY)
    return rootfs.lowers[0]


async def test_setuid_survives_the_change_of_owner(tars, store, tmp_path):
    lower = await _layer_of(store, tars, tmp_path, tars.file(b"su", mode=0o6755, uid=7, gid=8))
    status = (lower / "su").lstat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o6755, 7, 8)


async def test_attributes_are_kept_by_policy(tars, store, tmp_path):
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    parts = tars.pax(
        {
            b"SCHILY.xattr.security.capability": capability,
            b"SCHILY.xattr.user.note": b"kept",
            b"SCHILY.xattr.user.overlay.opaque": b"y",
            b"SCHILY.xattr.trusted.overlay.redirect": b"/etc",
            b"SCHILY.xattr.trusted.overlay.metacopy": b"",
            b"SCHILY.xattr.security.selinux": b"system_u:object_r:bin_t:s0",
        }
    ) + tars.file(b"x")
    lower = await _layer_of(store, tars, tmp_path, parts)
    found = set(os.listxattr(lower / "x"))
    assert {"security.capability", "user.note"} <= found
    assert not [each for each in found if "overlay" in each or "selinux" in each]
    assert os.getxattr(lower / "x", "security.capability") == capability


@pytest.mark.parametrize(("policy", "made"), [("skip", False), ("keep", True)])
async def test_device_nodes_follow_the_policy(policy, made, tars, open_store, tmp_path):
    store = await open_store(devices=policy)
    lower = await _layer_of(
        store, tars, tmp_path, tars.device(b"null", (1, 3), mode=0o666), tars.file(b"x")
    )
    assert (lower / "null").is_char_device() is made
    assert not made or (lower / "null").lstat().st_mode & 0o777 == 0o666


async def test_device_nodes_can_be_refused(tars, open_store, tmp_path):
    store = await open_store(devices="refuse")
    layout = tars.Layout(tars.layer(tars.device(b"null", (1, 3)))).write(tmp_path / "layout")
    with pytest.raises(InvalidArgument, match=r"images\.devices"):
        await store.load(layout)


async def test_times_of_files_links_and_directories_are_the_layers(tars, store, tmp_path):
    stamp = {b"mtime": b"1234567890.123456789"}
    parts = [
        tars.pax(stamp) + tars.directory(b"d"),
        tars.pax(stamp) + tars.file(b"d/f"),
        tars.pax(stamp) + tars.symlink(b"d/l", b"f"),
    ]
    lower = await _layer_of(store, tars, tmp_path, *parts)
    for name in ("d", "d/f", "d/l"):
        assert (lower / name).lstat().st_mtime_ns == 1234567890123456789, name


async def test_store_is_closed_to_everybody_else(tars, store, tmp_path):
    """E15: setuid files of images are out of reach of local users."""
    await _layer_of(store, tars, tmp_path, tars.file(b"su", mode=0o4755))
    for path in (tmp_path / "root", *(tmp_path / "root").iterdir()):
        if path.is_dir():
            assert path.stat().st_mode & 0o077 == 0, path
    assert Path(tmp_path / "root" / "catalog.db").exists()
