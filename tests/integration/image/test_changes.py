"""What a container changes goes out as a layer and comes back the same, by the kernel's own overlay."""

from __future__ import annotations

import os
import stat
import subprocess
import tarfile

import pytest
from conformance.images import write_layout
from support.images import layer_of

from polypod.plugin.errors import InvalidArgument, NotFound, Unsupported
from polypod.plugin.ids import ContainerId
from polypod.plugin.images import Changes
from polypod.plugin.rootfs import RootfsForm

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay]

FIRST, SECOND = ContainerId("1" * 64), ContainerId("2" * 64)


@pytest.fixture
async def image(store, tmp_path):
    files = {"keep": b"kept", "gone": b"gone", "dir/old": b"old", "whole/inside": b"x"}
    layout = write_layout(tmp_path / "layout", [layer_of(files)])
    return await store.pull(f"oci:{layout}")


@pytest.fixture
def mounted(tmp_path):
    """Mount a rootfs in a context: what is seen and written is what a container would."""
    at = tmp_path / "at"
    at.mkdir()
    mounts = []

    def mount(rootfs):
        lowers = ":".join(map(str, rootfs.lowers))
        options = f"lowerdir={lowers},upperdir={rootfs.upper},workdir={rootfs.work}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, at], check=True)
        mounts.append(at)
        return at

    def unmount():
        subprocess.run(["umount", mounts.pop()], check=True)

    mount.end = unmount
    yield mount
    while mounts:
        unmount()


def changed(root):
    """Do all that a layer can say."""
    (root / "gone").unlink()
    (root / "dir" / "new").write_text("new")
    (root / "keep").chmod(0o640)
    os.chown(root / "keep", 1000, 2000)
    subprocess.run(["rm", "-r", root / "whole"], check=True)
    (root / "whole").mkdir()
    (root / "whole" / "other").write_text("y")
    (root / "link").symlink_to("keep")
    (root / "twin-a").write_text("twins")
    os.link(root / "twin-a", root / "twin-b")
    os.mkfifo(root / "fifo")
    os.setxattr(root / "twin-a", "user.note", b"\xff\x00bytes")
    os.utime(root / "dir" / "new", ns=(1, 1_234_567_890_123_456_789))
    (root / ("long-" + "n" * 200)).write_text("long")


def seen(root):
    """Return everything that can be said of a tree."""
    found = {}
    for path in sorted(root.rglob("*")):
        facts = path.lstat()
        content = (
            str(path.readlink())
            if path.is_symlink()
            else path.read_bytes()
            if stat.S_ISREG(facts.st_mode)
            else b""
        )
        found[str(path.relative_to(root))] = (
            stat.S_IFMT(facts.st_mode),
            stat.S_IMODE(facts.st_mode),
            facts.st_uid,
            facts.st_gid,
            facts.st_nlink if stat.S_ISREG(facts.st_mode) else 0,
            facts.st_mtime_ns if path.name == "new" else 0,
            content,
            tuple(os.listxattr(path, follow_symlinks=False)),
        )
    return found


async def test_all_that_changes_comes_back(store, image, mounted, tmp_path):
    assert isinstance(store, Changes)
    root = mounted(await store.prepare(FIRST, image.id, RootfsForm.OVERLAY))
    changed(root)
    before = seen(root)
    mounted.end()
    await store.export_changes(FIRST, tmp_path / "changes.tar")
    with tarfile.open(tmp_path / "changes.tar") as archive:
        names = set(archive.getnames())
    assert {".wh.gone", "whole/.wh..wh..opq", "dir/new"} <= names
    assert "dir/old" not in names

    rootfs = await store.prepare(SECOND, image.id, RootfsForm.OVERLAY)
    await store.apply_changes(SECOND, tmp_path / "changes.tar")
    again = mounted(rootfs)
    assert seen(again) == before
    assert (again / "twin-a").stat().st_ino == (again / "twin-b").stat().st_ino
    mounted.end()
    for each in (FIRST, SECOND):
        await store.release(each)


async def test_nothing_changed_is_an_empty_layer(store, image, tmp_path):
    await store.prepare(FIRST, image.id, RootfsForm.OVERLAY)
    await store.export_changes(FIRST, tmp_path / "changes.tar")
    with tarfile.open(tmp_path / "changes.tar") as archive:
        assert archive.getnames() == ["."]
    await store.release(FIRST)


async def test_a_hostile_layer_leaves_the_root_as_it_was(store, image, tmp_path, left):
    rootfs = await store.prepare(FIRST, image.id, RootfsForm.OVERLAY)
    (rootfs.upper / "mine").write_text("mine")
    evil = tmp_path / "evil.tar"
    with tarfile.open(evil, "w") as archive:
        archive.addfile(tarfile.TarInfo("../out"))
    held = left()
    with pytest.raises(InvalidArgument):
        await store.apply_changes(FIRST, evil)
    assert [each.name for each in rootfs.upper.iterdir()] == ["mine"]
    assert left() == held
    await store.release(FIRST)


async def test_other_forms_and_strangers_are_refused(store, image, tmp_path):
    with pytest.raises(NotFound):
        await store.export_changes(FIRST, tmp_path / "x")
    await store.prepare(FIRST, image.id, RootfsForm.DIRECTORY)
    with pytest.raises(Unsupported, match="the form directory"):
        await store.export_changes(FIRST, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    await store.release(FIRST)
