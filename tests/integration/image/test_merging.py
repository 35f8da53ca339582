"""Layers on top of each other: what we unpack is what the kernel's overlay shows, and what we say it shows."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess

import pytest

from polypod.plugin.errors import InvalidArgument
from polypod.plugin.ids import new_id
from polypod.plugin.rootfs import RootfsForm

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay]

BASE = (
    lambda t: t.directory(b"./", 0o755),
    lambda t: t.directory(b"usr/lib"),
    lambda t: t.file(b"usr/lib/libc", b"base"),
    lambda t: t.symlink(b"lib", b"usr/lib"),
    lambda t: t.directory(b"tmp", 0o1777),
    lambda t: t.directory(b"etc"),
    lambda t: t.file(b"etc/passwd", b"root"),
    lambda t: t.file(b"etc/shadow", b"secret", mode=0o600, uid=0, gid=42),
    lambda t: t.hardlink(b"etc/shadow-", b"etc/shadow"),
    lambda t: t.directory(b"var/cache/one", 0o750, uid=5, gid=6),
    lambda t: t.file(b"var/cache/one/f", b"1"),
    lambda t: t.file(b"var/cache/two", b"2"),
    lambda t: t.fifo(b"var/pipe"),
)

# Second (and third) layers → paths that must be there, paths that must not.
CASES = {
    "implied-parents-keep-attributes": (
        [[lambda t: t.file(b"tmp/new"), lambda t: t.file(b"var/cache/one/g", b"g")]],
        {"tmp": stat.S_IFDIR | 0o1777, "var/cache/one": stat.S_IFDIR | 0o750},
        [],
    ),
    "lower-link-is-followed": (
        [[lambda t: t.file(b"lib/libm", b"m")]],
        {"usr/lib/libm": stat.S_IFREG | 0o644, "lib": stat.S_IFLNK | 0o777},
        [],
    ),
    "lower-link-becomes-directory": (
        [
            [
                lambda t: t.file(b"lib/first", b"m"),
                lambda t: t.directory(b"lib"),
                lambda t: t.file(b"lib/second", b"m"),
            ]
        ],
        {"usr/lib/first": stat.S_IFREG | 0o644, "lib/second": stat.S_IFREG | 0o644},
        ["lib/libc", "usr/lib/second"],
    ),
    "whiteout": (
        [[lambda t: t.file(b"etc/.wh.passwd", b""), lambda t: t.file(b"var/.wh.cache", b"")]],
        {"etc/shadow": stat.S_IFREG | 0o600},
        ["etc/passwd", "var/cache", "etc/.wh.passwd"],
    ),
    "whiteout-then-new-directory": (
        [[lambda t: t.file(b"var/.wh.cache", b""), lambda t: t.file(b"var/cache/new", b"")]],
        {"var/cache/new": stat.S_IFREG | 0o644},
        ["var/cache/two", "var/cache/one"],
    ),
    "new-directory-then-whiteout": (
        [[lambda t: t.file(b"var/cache/new", b""), lambda t: t.file(b"var/.wh.cache", b"")]],
        {"var/cache/new": stat.S_IFREG | 0o644},
        ["var/cache/two", "var/cache/one"],
    ),
    "whiteout-of-own-file": (
        [[lambda t: t.file(b"etc/passwd", b"new"), lambda t: t.file(b"etc/.wh.passwd", b"")]],
        {"etc/passwd": stat.S_IFREG | 0o644},
        [],
    ),
    "opaque": (
        [
            [
                lambda t: t.file(b"var/cache/new", b""),
                lambda t: t.file(b"var/cache/.wh..wh..opq", b""),
            ]
        ],
        {"var/cache/new": stat.S_IFREG | 0o644},
        ["var/cache/two", "var/cache/one"],
    ),
    "opaque-root": (
        [[lambda t: t.file(b".wh..wh..opq", b""), lambda t: t.file(b"only", b"")]],
        {"only": stat.S_IFREG | 0o644},
        ["etc", "usr", "lib"],
    ),
    "whiteout-comes-back": (
        [
            [lambda t: t.file(b"var/.wh.cache", b"")],
            [lambda t: t.file(b"var/cache/again", b"")],
        ],
        {"var/cache/again": stat.S_IFREG | 0o644},
        ["var/cache/two"],
    ),
    "file-over-directory": (
        [[lambda t: t.file(b"var/cache", b"file now")], [lambda t: t.directory(b"var/cache")]],
        {"var/cache": stat.S_IFDIR | 0o755},
        ["var/cache/two"],
    ),
    "hardlink-to-a-lower-file": (
        [[lambda t: t.hardlink(b"etc/copy", b"etc/shadow")]],
        {"etc/copy": stat.S_IFREG | 0o600},
        [],
    ),
    "hardlink-through-a-lower-link": (
        [[lambda t: t.hardlink(b"copy", b"lib/libc")]],
        {"copy": stat.S_IFREG | 0o644},
        [],
    ),
    "whiteout-of-nothing-below": (
        [[lambda t: t.file(b"etc/.wh.nothing", b"")]],
        {"etc/passwd": stat.S_IFREG | 0o644},
        ["etc/nothing"],
    ),
    "aufs-books-are-left-out": (
        [[lambda t: t.directory(b".wh..wh.plnk"), lambda t: t.file(b".wh..wh.aufs", b"")]],
        {"etc/passwd": stat.S_IFREG | 0o644},
        [".wh..wh.plnk", ".wh..wh.aufs"],
    ),
    "directory-attributes-replaced": (
        [[lambda t: t.directory(b"var/cache/one", 0o700, uid=9, gid=9)]],
        {"var/cache/one": stat.S_IFDIR | 0o700, "var/cache/one/f": stat.S_IFREG | 0o644},
        [],
    ),
}

# Prints one line per name; in a mount namespace that ends with it.
_LOOK = """
set -e
mount -t overlay overlay -o "$1" "$2"
cd "$2"
find . -printf '%P|%y|%m|%U|%G|%l|%T@|%s\\n' | sort
"""


def _line(root, path):
    status = path.lstat()
    kind = {
        stat.S_IFDIR: "d",
        stat.S_IFREG: "f",
        stat.S_IFLNK: "l",
        stat.S_IFIFO: "p",
        stat.S_IFCHR: "c",
    }[stat.S_IFMT(status.st_mode)]
    name = "" if path == root else str(path.relative_to(root))
    target = os.readlink(path) if kind == "l" else ""
    stamp = f"{status.st_mtime_ns // 10**9}.{status.st_mtime_ns % 10**9:09d}0"
    size = status.st_size if kind != "d" else 0
    mode = f"{stat.S_IMODE(status.st_mode):o}"
    return f"{name}|{kind}|{mode}|{status.st_uid}|{status.st_gid}|{target}|{stamp}|{size}"


def _without_directory_sizes(lines):
    parts = [line.split("|") for line in lines]
    return sorted("|".join([*each[:-1], "0"] if each[1] == "d" else each) for each in parts)


def _kernels_view(rootfs, place):
    place.mkdir()
    options = (
        f"lowerdir={':'.join(map(str, rootfs.lowers))},upperdir={rootfs.upper},"
        f"workdir={rootfs.work},{','.join(rootfs.options)}"
    )
    command = ["unshare", "-m", "--propagation", "private", "sh", "-c", _LOOK, "sh", options, place]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return _without_directory_sizes(done.stdout.splitlines())


def _copied_view(root):
    paths = [root, *root.rglob("*")]
    return _without_directory_sizes(_line(root, path) for path in paths)


async def _image(store, tars, tmp_path, uppers):
    layers = [tars.layer(*(part(tars) for part in parts)) for parts in (BASE, *uppers)]
    (image,) = await store.load(tars.Layout(*layers).write(tmp_path / "layout"))
    return image


@pytest.mark.parametrize("case", CASES, ids=CASES.keys())
async def test_copy_and_kernel_agree(case, tars, store, tmp_path):
    uppers, there, missing = CASES[case]
    image = await _image(store, tars, tmp_path, uppers)
    overlay = await store.prepare(new_id(), image.id, RootfsForm.OVERLAY)
    copied = await store.prepare(new_id(), image.id, RootfsForm.DIRECTORY)
    for name, mode in there.items():
        assert (copied.path / name).lstat().st_mode == mode, name
    for name in missing:
        assert not os.path.lexists(copied.path / name), name
    kernel = _kernels_view(overlay, tmp_path / "merged")
    ours = _copied_view(copied.path)
    # The root directory of an overlay is the upper one: its time is its own.
    assert [each for each in kernel if each[0] != "|"] == [each for each in ours if each[0] != "|"]
    assert [each.split("|")[:5] for each in kernel if each[0] == "|"] == [
        each.split("|")[:5] for each in ours if each[0] == "|"
    ]


async def test_lowers_are_topmost_first_and_shared(tars, store, tmp_path):
    image = await _image(store, tars, tmp_path, [[lambda t: t.file(b"top", b"")]])
    first = await store.prepare(new_id(), image.id, RootfsForm.OVERLAY)
    second = await store.prepare(new_id(), image.id, RootfsForm.OVERLAY)
    assert first.lowers == second.lowers
    assert first.upper != second.upper
    assert (first.lowers[0] / "top").exists()
    assert (first.lowers[1] / "etc/passwd").exists()


async def test_hardlinks_stay_hardlinks(tars, store, tmp_path):
    image = await _image(store, tars, tmp_path, [])
    for form in (RootfsForm.OVERLAY, RootfsForm.DIRECTORY):
        rootfs = await store.prepare(new_id(), image.id, form)
        root = rootfs.lowers[0] if form is RootfsForm.OVERLAY else rootfs.path
        first, second = (root / "etc/shadow").lstat(), (root / "etc/shadow-").lstat()
        assert (first.st_ino, first.st_nlink) == (second.st_ino, 2)


async def test_root_of_the_container_has_the_images_attributes(tars, store, tmp_path):
    parts = tars.layer(tars.directory(b"./", 0o711, uid=3, gid=4), tars.file(b"x"))
    (image,) = await store.load(tars.Layout(parts).write(tmp_path / "layout"))
    rootfs = await store.prepare(new_id(), image.id, RootfsForm.OVERLAY)
    status = rootfs.upper.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o711, 3, 4)


async def test_recycled_directories_are_as_good_as_new(tars, store, tmp_path):
    """What a container did to its root directory itself does not come back either."""
    image = await _image(store, tars, tmp_path, [])
    for _ in range(3):
        name = new_id()
        rootfs = await store.prepare(name, image.id, RootfsForm.OVERLAY)
        _kernels_view(rootfs, tmp_path / name)
        os.chown(rootfs.upper, 12, 13)
        rootfs.upper.chmod(0o777)
        os.setxattr(rootfs.upper, "user.note", b"mine")
        deep = rootfs.upper / "a"
        deep.joinpath(*["b"] * 200).mkdir(parents=True)
        await store.release(name)
        while list(store._places.returned.iterdir()) or list(store._places.trash.iterdir()):
            await asyncio.sleep(0.01)
    for pair in store._places.spare.iterdir():
        assert sorted(each.name for each in pair.iterdir()) == ["fs", "work"]
        for each, mode in ((pair / "fs", 0o755), (pair / "work", 0o700)):
            status = each.stat()
            assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (mode, 0, 0)
            assert not list(each.iterdir())
            assert not os.listxattr(each)


async def test_volatile_mark_does_not_stop_a_second_mount(tars, store, tmp_path):
    image = await _image(store, tars, tmp_path, [])
    name = new_id()
    rootfs = await store.prepare(name, image.id, RootfsForm.OVERLAY)
    _kernels_view(rootfs, tmp_path / "one")
    assert await store.prepare(name, image.id, RootfsForm.OVERLAY) == rootfs
    _kernels_view(rootfs, tmp_path / "two")


async def test_image_file_follows_links_within_the_merged_tree(tars, store, tmp_path):
    upper = [
        lambda t: t.symlink(b"etc/absolute", b"/etc/passwd"),
        lambda t: t.symlink(b"etc/up", b"../../../../../etc/passwd"),
        lambda t: t.symlink(b"etc/loop", b"loop"),
        lambda t: t.symlink(b"zero", b"/dev/zero"),
    ]
    image = await _image(store, tars, tmp_path, [upper])

    async def read(path):
        return await store.image_file(image.id, path, 1 << 20)

    assert await read("/etc/absolute") == b"root"
    assert await read("/etc/up") == b"root"
    assert await read("/lib/libc") == b"base"
    assert await read("lib/../../etc/passwd") == b"root"  # lib is usr/lib
    assert await read("lib/../etc/passwd") is None
    for path in ("/etc/loop", "/zero", "/var/pipe", "/etc/passwd/x", "/etc"):
        assert await read(path) is None, path


async def test_image_file_never_reads_a_giant(tars, store, tmp_path):
    """I10: /etc/passwd may be of any size."""
    layer = tars.layer(tars.file(b"etc/passwd", bytes(3 << 20)))
    (image,) = await store.load(tars.Layout(layer).write(tmp_path / "layout"))
    with pytest.raises(InvalidArgument, match="larger than"):
        await store.image_file(image.id, "/etc/passwd", 1 << 20)


@pytest.mark.parametrize("form", ["{}", "{}/", "./{}", "./{}/", "{}//", "{}/.", ".//{}"])
async def test_directories_may_be_written_in_any_way(store, tars, tmp_path, form):
    """As tar(1) does, as tarfile does, and as nobody should."""
    names = [b"top", b"top/middle"]
    parts = [tars.directory(form.format(name.decode()).encode()) for name in names]
    parts += [tars.file(name + b"/file", name) for name in names]
    parts.append(tars.file(b"file", b"root"))
    (image,) = await store.load(tars.Layout(tars.layer(*parts)).write(tmp_path / "layout"))
    (layer,) = (await store.prepare(new_id(), image.id, RootfsForm.OVERLAY)).lowers
    found = {str(p.relative_to(layer)): p.read_bytes() for p in layer.rglob("*") if p.is_file()}
    assert found == {"file": b"root", "top/file": b"top", "top/middle/file": b"top/middle"}
