"""Which network a directory of configurations holds, and what is refused."""

import json

import pytest

from polypod.plugin.errors import InvalidArgument, Unavailable
from polypod_network.cni.configuration import Configurations, load, parse
from polypod_network.cni.options import CniOptions
from polypod_network.cni.options import parse as parse_options

PLUGIN = {"type": "bridge"}


def conflist(**changes):
    return {"cniVersion": "1.0.0", "name": "net", "plugins": [PLUGIN], **changes}


def put(directory, name, tree):
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(tree if isinstance(tree, str) else json.dumps(tree))


def test_the_first_file_by_name_is_the_network(tmp_path):
    put(tmp_path, "20-b.conflist", conflist(name="second"))
    put(tmp_path, "10-a.conf", {"cniVersion": "0.3.1", "name": "first", "type": "macvlan"})
    put(tmp_path, "00-readme.txt", "not a configuration")
    network = load(tmp_path)
    assert (network.name, network.version) == ("first", "0.3.1")
    assert [each["type"] for each in network.plugins] == ["macvlan"]


def test_a_broken_first_file_is_not_passed_over(tmp_path):
    put(tmp_path, "10-a.conflist", "{")
    put(tmp_path, "20-b.conflist", conflist())
    with pytest.raises(ValueError, match=r"10-a\.conflist: is not JSON"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (conflist(name="a/b"), "name is 'a/b'"),
        (conflist(name=""), "name is ''"),
        (conflist(plugins=[]), "plugins is no list"),
        (conflist(plugins=[7]), "not an object"),
        (conflist(cniVersion="9.9.9"), "cniVersion is '9.9.9'"),
        (conflist(disableCheck="maybe"), "disableCheck"),
        ([], "not a JSON object"),
        ({"name": "net"}, "plugins is no list"),
        *[
            (conflist(plugins=[{"type": kind}]), "plugin's type is")
            for kind in ("../../bin/sh", "/bin/sh", "a/b", "..", ".", "", None, "a:b", "x" * 300)
        ],
        (conflist(plugins=[{**PLUGIN, "ipam": {"type": "../evil"}}]), "ipam type"),
    ],
)
def test_e22_what_is_refused_is_named(tmp_path, tree, words):
    """E22: a plugin's type is a file's name, never a path."""
    put(tmp_path, "10.conflist", tree)
    with pytest.raises(ValueError, match=r"10\.conflist") as caught:
        load(tmp_path)
    assert words in str(caught.value)


def test_the_newest_version_that_both_speak_is_chosen():
    tree = conflist(cniVersion="0.4.0", cniVersions=["0.4.0", "1.0.0", "1.1.0", "7.0.0"])
    assert parse(tree, "").version == "1.1.0"
    del tree["cniVersion"], tree["cniVersions"]
    assert parse(tree, "").version == "0.1.0"


def test_what_a_note_keeps_reads_back():
    network = parse(conflist(disableGC=True, plugins=[{**PLUGIN, "mtu": 9000}]), "here")
    assert parse(network.as_json(), "here") == network


def test_plugins_in_files_of_their_own_are_appended(tmp_path):
    put(tmp_path, "10.conflist", conflist())
    put(tmp_path / "net", "20-b.conf", {"type": "tuning"})
    put(tmp_path / "net", "10-a.conf", {"type": "portmap"})
    assert [each["type"] for each in load(tmp_path).plugins] == ["bridge", "portmap", "tuning"]
    put(tmp_path, "10.conflist", conflist(loadOnlyInlinedPlugins=True))
    assert [each["type"] for each in load(tmp_path).plugins] == ["bridge"]


def test_a_change_is_seen_at_the_next_question(tmp_path):
    found = Configurations(tmp_path / "net.d")
    with pytest.raises(Unavailable, match="no CNI configuration in"):
        found.current()
    put(tmp_path / "net.d", "10.conflist", conflist())
    first = found.current()
    assert found.current() is first
    put(tmp_path / "net.d", "10.conflist", conflist(name="other"))
    assert found.current().name == "other"
    put(tmp_path / "net.d" / "other", "1.conf", {"type": "portmap"})
    assert len(found.current().plugins) == 2
    (tmp_path / "net.d" / "10.conflist").unlink()
    with pytest.raises(Unavailable):
        found.current()


def test_options_have_defaults_and_leave_other_tables_alone():
    assert parse_options({"type": "cni", "subnets": ["10.0.0.0/8"]}) == CniOptions()


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ("x", "network.cni"),
        ({"confdir": "/etc"}, "confdir"),
        ({"conf_dir": "etc"}, "conf_dir"),
        ({"bin_dirs": "/opt"}, "bin_dirs"),
        ({"bin_dirs": []}, "bin_dirs"),
        ({"bin_dirs": ["/opt:/tmp"]}, "bin_dirs"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": True}, "timeout_s"),
        ({"gc": 1}, "gc"),
    ],
)
def test_options_that_are_wrong_are_named(table, word):
    with pytest.raises(InvalidArgument, match=word):
        parse_options({"cni": table})
