"""Which files make a configuration, in which order, and what a watcher sees."""

import os

import pytest

from polypod import config, config_files
from polypod.plugin.errors import InvalidArgument


@pytest.fixture
def main(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(
        '[server]\nroot = "/r"\nlog_level = "info"\n[images]\noci_dirs = ["/a", "/b"]\n'
    )
    (tmp_path / "config.d").mkdir()
    return file


def drop_in(main, name, text):
    file = config_files.drop_ins(main) / name
    file.write_text(text)
    return file


def test_a_later_file_wins_key_by_key_and_the_origin_says_so(main):
    first = drop_in(main, "10-a.toml", '[server]\nlog_level = "debug"\n[handlers.x]\ntype = "a"\n')
    last = drop_in(main, "20-b.toml", '[images]\noci_dirs = []\n[handlers.x]\nimage_store = "s"\n')
    found = config.load(main, ["server.state=/s"])
    assert (found.server.root, found.server.log_level) == ("/r", "debug")
    assert found.images["oci_dirs"] == []
    assert (found.handlers["x"].type, found.handlers["x"].image_store) == ("a", "s")
    rows = {key: origin for key, _value, origin in config.show(found)}
    assert rows["server.root"] == str(main)
    assert rows["server.log_level"] == rows["handlers.x.type"] == str(first)
    assert rows["images.oci_dirs"] == rows["handlers.x.image_store"] == str(last)
    assert rows["server.state"] == "--set"
    assert rows["server.listen"] == "default"


@pytest.mark.parametrize("name", [".20-x.toml", "20-x.toml~", "20-x.toml.rpmsave", "README"])
def test_what_editors_and_packages_leave_is_not_read(main, name):
    drop_in(main, name, "this is = = no TOML")
    assert config.load(main).server.root == "/r"
    assert config_files.files(main) == [main]


def test_drop_ins_alone_are_a_configuration(main):
    drop_in(main, "x.toml", '[server]\nroot = "/only"\n')
    main.unlink()
    assert config_files.present(main)
    assert config.load(main).server.root == "/only"


def test_nothing_at_all_is_an_error_that_names_the_main_file(main):
    main.unlink()
    assert not config_files.present(main)
    with pytest.raises(InvalidArgument, match=r"config\.toml: No such file"):
        config.load(main)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server", "10-x.toml: "),
        ("images = 3\n", "10-x.toml: images is a table in one file and a value in another"),
        ("[server.root]\nx = 1\n", "server.root is a table in one file and a value in another"),
        ('[server]\nrot = "/x"\n', "did you mean 'server.root'"),
    ],
)
def test_errors_name_the_file_or_the_key(main, text, words):
    drop_in(main, "10-x.toml", text)
    with pytest.raises(InvalidArgument) as refused:
        config.load(main)
    assert words in str(refused.value)
    assert words in config.check(main)[0]


def test_a_main_file_of_another_name_has_its_own_directory(tmp_path):
    assert config_files.drop_ins(tmp_path / "conf").name == "conf.d"


def test_the_signature_changes_with_every_kind_of_change(main):
    seen = [config_files.signature(main)]
    file = drop_in(main, "x.toml", "")
    seen.append(config_files.signature(main))
    file.write_text("# longer\n")
    seen.append(config_files.signature(main))
    fresh = main.with_name("fresh")
    fresh.write_text(main.read_text())
    fresh.replace(main)
    seen.append(config_files.signature(main))
    file.unlink()
    seen.append(config_files.signature(main))
    main.unlink()
    seen.append(config_files.signature(main))
    assert len(set(seen)) == len(seen)
    assert config_files.signature(main) == seen[-1]


def test_a_link_that_is_switched_is_a_change(tmp_path):
    """What a mounted ConfigMap does: a directory behind a link is exchanged."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").write_text("")
        os.utime(tmp_path / name / "config.toml", ns=(1, 1))
    (tmp_path / "now").symlink_to("a")
    before = config_files.signature(tmp_path / "now" / "config.toml")
    (tmp_path / "now").unlink()
    (tmp_path / "now").symlink_to("b")
    assert config_files.signature(tmp_path / "now" / "config.toml") != before
