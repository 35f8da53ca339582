"""Images of host programs: complete, the same each time, and nothing is executed to make them."""

from __future__ import annotations

import argparse
import ctypes.util
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from polypod.plugin.errors import InvalidArgument, NotFound
from polypod_image import from_host
from polypod_image.elf import parse_elf
from polypod_image.from_host import ImageSettings, build
from polypod_image.hosttree import HostTree
from polypod_image.libraries import CACHE, needed_files, read_cache, read_elf


def _blobs(path):
    with tarfile.open(path) as tar:
        return {each.name: tar.extractfile(each).read() for each in tar.getmembers()}


def _parts(path):
    """Return config and layer of the one image of an archive, having checked every digest."""
    blobs = _blobs(path)
    for name, data in blobs.items():
        if name.startswith("blobs/sha256/"):
            assert hashlib.sha256(data).hexdigest() == name.rpartition("/")[2]

    def blob(descriptor):
        data = blobs["blobs/" + descriptor["digest"].replace(":", "/")]
        assert len(data) == descriptor["size"]
        return data

    (entry,) = json.loads(blobs["index.json"])["manifests"]
    manifest = json.loads(blob(entry))
    (layer,) = manifest["layers"]
    return json.loads(blob(manifest["config"])), blob(layer), entry["annotations"]


def _members(layer, tmp_path):
    path = tmp_path / "layer.tar"
    path.write_bytes(layer)
    with tarfile.open(path) as tar:
        return {each.name: each for each in tar.getmembers()}


def test_build_has_what_every_program_needs(tmp_path):
    config, layer, names = _parts(_built(tmp_path, [Path(sys.executable)]))
    members = _members(layer, tmp_path)
    assert set(names.values()) == {"localhost/demo:latest"}
    assert members["tmp"].mode == 0o1777
    assert {"etc/passwd", "etc/group", "proc", "sys", "dev", "root"} <= set(members)
    assert config["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(layer).hexdigest()]
    assert {each.uid for each in members.values()} == {0}
    assert not [each for each in members.values() if each.mode & 0o6000]


def _built(tmp_path, paths, **settings):
    path = tmp_path / "image.tar"
    build(paths, path, ImageSettings(**settings))
    return path


def test_build_is_the_same_each_time(tmp_path):
    first = _built(tmp_path, [Path("/bin/sh")]).read_bytes()
    assert _built(tmp_path, [Path("/bin/sh")]).read_bytes() == first


@pytest.mark.needs_root
@pytest.mark.skipif(shutil.which("python3") is None, reason="python3 is not on PATH")
def test_built_program_runs_with_nothing_else(tmp_path):
    """The oracle: the program starts in a root that has the image's files alone."""
    program = Path("/bin/sh")
    _, layer, _ = _parts(_built(tmp_path, [program]))
    root = tmp_path / "root"
    (tmp_path / "layer.tar").write_bytes(layer)
    with tarfile.open(tmp_path / "layer.tar") as tar:
        tar.extractall(root, filter="fully_trusted")
    done = subprocess.run(
        [program, "-c", "echo it runs; test -e /etc/hostname || echo alone"],
        check=True,
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.chroot(root),
        cwd="/",
    )
    assert done.stdout == "it runs\nalone\n"


def test_config_has_the_settings(tmp_path):
    path = _built(
        tmp_path,
        [],
        name="x/y:v1",
        entrypoint=["/a", "b"],
        cmd=["c"],
        env=["A=b", "PATH=/x"],
        user="7:8",
        workdir="/w",
    )
    config, _, names = _parts(path)
    assert set(names.values()) == {"localhost/x/y:v1"}
    assert config["config"] == {
        "Entrypoint": ["/a", "b"],
        "Cmd": ["c"],
        "Env": ["A=b", "PATH=/x"],
        "User": "7:8",
        "WorkingDir": "/w",
    }


def test_files_and_directories_are_copied(tmp_path):
    source = tmp_path / "data"
    (source / "inner").mkdir(parents=True)
    (source / "inner/file").write_text("x")
    (source / "link").symlink_to("inner/file")
    path = _built(
        tmp_path, [], files=[(source, "/opt/data"), (source / "inner/file", "/etc/passwd")]
    )
    members = _members(_parts(path)[1], tmp_path)
    assert members["opt/data/link"].linkname == "inner/file"
    assert members["opt/data/inner/file"].size == 1
    assert members["etc/passwd"].size == 1


@pytest.mark.needs_busybox
def test_busybox_gets_a_shell_or_all_its_applets(tmp_path):
    busybox = Path(shutil.which("busybox"))
    members = _members(_parts(_built(tmp_path, [busybox]))[1], tmp_path)
    links = [each for each in members.values() if each.islnk()]
    assert [each.name.rpartition("/")[2] for each in links] == ["sh"]
    members = _members(_parts(_built(tmp_path, [busybox], applets=True))[1], tmp_path)
    names = {each.name.rpartition("/")[2] for each in members.values() if each.islnk()}
    assert {"sh", "ls", "cat", "sleep", "wget"} <= names
    listed = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True)
    assert names <= set(listed.stdout.split())


def test_scripts_bring_their_interpreter(tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    tree = HostTree()
    tree.program(script)
    assert os.path.realpath("/bin/sh") in tree.items


def test_needed_files_are_what_the_linker_takes():
    """The oracle is the linker itself, on a program that we trust: our own interpreter."""
    program = Path(sys.executable).resolve()
    listed = subprocess.run(
        [read_elf(program).interpreter, "--list", program],
        check=True,
        capture_output=True,
        text=True,
    )
    theirs = {
        os.path.realpath(word)
        for line in listed.stdout.splitlines()
        for word in line.split()
        if word.startswith("/")
    }
    ours = {os.path.realpath(each) for each in needed_files(program)}
    assert ours == theirs


def test_cache_of_the_linker_is_read():
    if not CACHE.exists():
        pytest.skip("no /etc/ld.so.cache")
    name = ctypes.util.find_library("c")
    assert any(os.path.exists(each) for each in read_cache(CACHE)[name])


@pytest.mark.parametrize(
    "data", [b"", b"glibc-ld.so.cache1.1", b"glibc-ld.so.cache1.1" + b"\xff" * 200]
)
def test_damaged_cache_is_as_good_as_none(data, tmp_path):
    path = tmp_path / "cache"
    path.write_bytes(data)
    assert dict(read_cache(path)) == {}


@pytest.mark.parametrize("cut", [5, 20, 64, 100])
def test_cut_elf_is_refused(cut):
    data = Path(sys.executable).resolve().read_bytes()[:cut]
    with pytest.raises(InvalidArgument, match="damaged"):
        parse_elf(data, "x")


def test_missing_library_names_who_needs_it(tmp_path):
    program = tmp_path / "program"
    data = Path("/bin/sh").resolve().read_bytes()
    assert b"libc.so.6\0" in data
    program.write_bytes(data.replace(b"libc.so.6\0", b"lbc0.so.6\0"))
    with pytest.raises(NotFound, match=r"program: it needs lbc0\.so\.6"):
        needed_files(program)


@pytest.mark.parametrize(
    ("paths", "settings", "error"),
    [
        ([Path("/no/such/program")], {}, NotFound),
        ([Path("no-such-program-anywhere")], {}, NotFound),
        ([], {"name": "NOT A NAME"}, InvalidArgument),
        ([], {"env": ["novalue"]}, InvalidArgument),
        ([], {"files": [(Path("/etc/passwd"), "relative")]}, InvalidArgument),
        ([], {"files": [(Path("/no/such/file"), "/x")]}, NotFound),
    ],
)
def test_build_refuses_and_leaves_no_file(paths, settings, error, tmp_path):
    with pytest.raises(error):
        _built(tmp_path, paths, **settings)
    assert not list(tmp_path.iterdir())


def _arguments(*words):
    parser = argparse.ArgumentParser()
    from_host.configure(parser)
    return parser.parse_args(words)


def test_command_works_without_a_server(tmp_path, capsys):
    output = tmp_path / "out.tar"
    args = _arguments("/bin/sh", "--name", "a:b", "--output", str(output), "--env", "X=y")
    assert from_host.run(args) == 0
    assert capsys.readouterr().out.startswith("sha256:")
    assert stat.S_ISREG(output.stat().st_mode)
    assert _parts(output)[0]["config"]["Env"][1] == "X=y"


def test_command_wants_somewhere_to_put_it():
    with pytest.raises(InvalidArgument, match="--output"):
        from_host.run(_arguments("/bin/sh"))


@pytest.mark.parametrize("text", ["/a", "/a:b", ":/b", "a"])
def test_command_refuses_bad_files(text, tmp_path):
    with pytest.raises(InvalidArgument, match="HOST:CONTAINER"):
        from_host.run(_arguments("/bin/sh", "-o", str(tmp_path / "x"), "--file", text))
