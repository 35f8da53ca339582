"""The configuration: the keys that harnesses rely on, errors that name the key, one truth for defaults."""

import re
import tomllib

import pytest

from polypod import config
from polypod.plugin.errors import InvalidArgument

KEYS = """
[server]
listen = "unix:///run/x.sock"
root = "/r"
state = "/s"
default_handler = "sim"
cgroup_parent = "/p"
[images]
hosts_dir = "/hosts"
[network]
type = "cni"
subnets = ["10.9.0.0/16"]
cni.conf_dir = "/conf"
cni.bin_dirs = ["/bin"]
[streaming]
address = "127.0.0.1:0"
[handlers.sim]
type = "simulator"
image_store = "memory"
options = { faults = { create = "hang" } }
"""


def test_every_key_that_harnesses_rely_on(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text(KEYS)
    assert config.check(file) == []
    found = config.load(file)
    assert (found.server.root, found.server.cgroup_parent) == ("/r", "/p")
    assert found.network["cni"] == {"conf_dir": "/conf", "bin_dirs": ["/bin"]}
    assert found.images["hosts_dir"] == "/hosts"
    assert found.handlers["sim"].options == {"faults": {"create": "hang"}}


def test_set_says_the_same(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text(KEYS)
    flat = []

    def walk(tree, prefix):
        for key, value in tree.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                flat.append(f"{prefix}{key}={value!r}")

    walk(tomllib.loads(KEYS), "")
    by_file, by_set = config.load(file), config.load(None, flat)
    assert [row[:2] for row in config.show(by_file)] == [row[:2] for row in config.show(by_set)]


def test_the_default_text_uncommented_is_the_default(tmp_path):
    text = config.default_text()
    keys = r"^# ((?:[a-z_]+\.)?[a-z_]+ = )"
    file = tmp_path / "c.toml"
    file.write_text(re.sub(keys, r"\1", text, flags=re.MULTILINE))
    found, default = config.load(file), config.Config()
    assert (found.server, found.plugins, found.streaming) == (
        default.server,
        default.plugins,
        default.streaming,
    )
    assert found.handlers == default.handlers


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[serve]\n", "unknown key 'serve'; did you mean 'server'"),
        ("[server]\nrot='/x'\n", "did you mean 'server.root'"),
        ("[server]\nroot=5\n", "server.root: 5 is not a str"),
        ("[plugins]\nrequired='vm'\n", "plugins.required: 'vm' is not a list"),
        ("[plugins]\nrequired=[1]\n", "must be a string"),
        ("[handlers]\nx=1\n", "[handlers.NAME]"),
        ("network=3\n", "not a table"),
        ("[server\n", "c.toml"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, words):
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(InvalidArgument) as refused:
        config.load(file)
    assert words in str(refused.value)
    assert config.check(file) == [str(refused.value)]


@pytest.mark.parametrize("override", ["server.root", "=x", "server.root.deeper=1"])
def test_overrides_that_make_no_sense(override):
    with pytest.raises(InvalidArgument, match="--set"):
        config.load(None, ["server.root=/x", override])


@pytest.mark.parametrize(
    ("overrides", "key", "is_set"),
    [
        ([], "network.type", False),
        (["network.type=memory"], "network.type", True),
        (["network={type='memory'}"], "network.type", True),
        (["network.mtu=9000"], "network.type", False),
    ],
)
def test_is_set_tells_a_default_from_a_choice(overrides, key, is_set):
    assert config.load(None, overrides).is_set(key) is is_set


def test_show_names_where_each_value_comes_from(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("[server]\nroot='/r'\n")
    rows = {
        key: (value, origin)
        for key, value, origin in config.show(config.load(file, ["server.state=/s"]))
    }
    assert rows["server.root"] == ('"/r"', str(file))
    assert rows["server.state"] == ('"/s"', "--set")
    assert rows["server.log_level"] == ('"info"', "default")
