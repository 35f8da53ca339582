"""Paths as text."""

import os.path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.plugin.errors import InvalidArgument
from polypod.spec.paths import (
    below,
    container_path,
    depth,
    has_control,
    host_path,
    single_component,
)


@pytest.mark.parametrize(
    ("path", "clean"),
    [
        ("/", "/"),
        ("/a", "/a"),
        ("a/b", "/a/b"),
        ("//a///b/", "/a/b"),
        ("/a/./b/.", "/a/b"),
        ("/a/../b", "/b"),
        ("/a/b/../../c", "/c"),
        ("/...", "/..."),
        ("/a\nb", "/a\nb"),
    ],
)
def test_container_path_is_normalised(path, clean):
    assert container_path(path, "x") == clean


@pytest.mark.parametrize(
    "path", ["", "..", "/..", "/../../etc", "a/../..", "/a/../../b", "/a\0b", "/" + "a" * 4096]
)
def test_e19_path_that_leaves_the_root_is_refused(path):
    with pytest.raises(InvalidArgument, match="volume"):
        container_path(path, "volume")


@given(st.text(alphabet="ab./\n\0é", max_size=20))
def test_e19_what_passes_is_absolute_and_has_no_dots(path):
    try:
        clean = container_path(path, "x")
    except InvalidArgument:
        return
    assert clean.startswith("/")
    assert not {".", "..", ""} & set(clean.split("/")[1:]) or clean == "/"
    assert clean == os.path.normpath("/" + path).replace("//", "/")
    assert container_path(clean, "x") == clean
    assert depth(clean) == (0 if clean == "/" else clean.count("/"))


def test_host_path_is_absolute():
    assert host_path("/srv//x/", "host_path") == "/srv/x"
    for path in ("", "srv", "./srv", "/.."):
        with pytest.raises(InvalidArgument, match="host_path"):
            host_path(path, "host_path")


@pytest.mark.parametrize("name", ["bridge", "a.b", "...", "ü", "a" * 255, "x y"])
def test_e22_one_component(name):
    assert single_component(name, "type") == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../bin/x", "a/b", "/a", "a\0", "a\n", "\x1b", "a" * 256, "é" * 128, "\x7f"],
)
def test_e22_name_that_leaves_its_directory_is_refused(name):
    with pytest.raises(InvalidArgument, match="type"):
        single_component(name, "type")


def test_e22_path_below_the_configured_root():
    root = "/var/lib/kubelet/seccomp"
    assert below(f"{root}/a/../b.json", root, "profile") == f"{root}/b.json"
    assert below("/a", "/", "profile") == "/a"
    for path in (
        root,
        f"{root}/..",
        f"{root}/../x",
        f"{root}-evil/x",
        "/etc/passwd",
        "a.json",
        f"{root}/../../../../../etc/passwd",
    ):
        with pytest.raises(InvalidArgument, match="profile"):
            below(path, root, "profile")


def test_control_characters():
    assert has_control("a\n")
    assert has_control("\x7f")
    assert not has_control("é \udcff")
