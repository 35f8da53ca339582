"""``[plugins.NAME]``: the tables of plugins, which core hands on unread."""

import dataclasses

import pytest

from polypod import config
from polypod.plugin.errors import InvalidArgument


def write(tmp_path, text):
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def test_a_plugin_s_table_is_kept_apart_from_core_s_keys(tmp_path):
    path = write(
        tmp_path, '[plugins]\norder = ["a"]\n[plugins.nri]\nenabled = true\nx = { y = 1 }\n'
    )
    found = config.load(path).plugins
    assert found.order == ["a"]
    assert found.options == {"nri": {"enabled": True, "x": {"y": 1}}}


def test_a_key_of_a_table_can_be_set_by_a_word():
    found = config.load(None, ["plugins.nri.enabled=true", "plugins.nri.socket=/run/x"])
    assert found.plugins.options == {"nri": {"enabled": True, "socket": "/run/x"}}
    assert found.is_set("plugins.nri.socket")


def test_a_misspelt_key_of_core_is_still_found_out():
    with pytest.raises(InvalidArgument, match=r"did you mean 'plugins\.required'"):
        config.load(None, ['plugins.requird=["a"]'])


def test_tables_are_shown_under_their_own_names_with_their_origin(tmp_path):
    path = write(tmp_path, "[plugins.nri]\nenabled = true\n")
    rows = {key: (value, origin) for key, value, origin in config.show(config.load(path))}
    assert rows["plugins.nri.enabled"] == ("true", str(path))
    assert "plugins.options" not in rows


def test_what_was_noted_is_read_again():
    before = config.load(None, ["plugins.nri.enabled=true"])
    tree = dataclasses.asdict(before)
    origins = tree.pop("origins")
    assert config.from_tree(tree, origins) == before
