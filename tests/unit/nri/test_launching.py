"""Programs that are started with the server: which, in what order, with which configuration."""

from __future__ import annotations

from support.nri import close_all

from polypod_nri.launching import discover


def program(directory, name, text="#!/bin/sh\n", mode=0o755):
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(text)
    path.chmod(mode)
    return path


def test_programs_come_in_the_order_of_their_names_with_their_configuration(tmp_path):
    plugins, config = tmp_path / "plugins", tmp_path / "conf.d"
    for name in ("20-two", "10-one", "30-a-b"):
        program(plugins, name)
    program(config, "one.conf", "by name")
    program(config, "10-one.conf", "by both")
    program(config, "two.conf", "by name")
    found = [(each.index, each.name, each.config) for each in discover(plugins, config)]
    assert found == [("10", "one", "by both"), ("20", "two", "by name"), ("30", "a-b", "")]


def test_what_is_no_program_of_a_plugin_is_passed_over(tmp_path, caplog):
    plugins = tmp_path / "plugins"
    program(plugins, "10-data", mode=0o644)
    program(plugins, "noindex")
    program(plugins, "1-short")
    (plugins / "10-directory").mkdir()
    assert discover(plugins, tmp_path) == []
    assert "noindex: its name is not NN-NAME" in caplog.text
    assert "1-short" in caplog.text


def test_no_directory_is_no_program(tmp_path):
    assert discover(tmp_path / "missing", tmp_path / "missing") == []


async def test_a_program_that_cannot_be_executed_is_named(open_lab, tmp_path):
    program(tmp_path / "plugins", "10-broken", "#!/no/such/interpreter\n")
    lab = await open_lab()
    seen = lab.services.plugins()["10-broken"]
    assert seen["state"] == "closed"
    assert "No such file" in seen["reason"]
    await close_all(open_lab)


async def test_a_program_that_ends_at_once_is_named(open_lab, tmp_path):
    program(tmp_path / "plugins", "10-short", "#!/bin/sh\nexit 3\n")
    lab = await open_lab()
    assert lab.state_of("10-short") == "closed"
    await close_all(open_lab)


async def test_one_that_hangs_at_the_start_does_not_hold_the_others(open_lab, tmp_path):
    program(tmp_path / "plugins", "10-slow", "#!/bin/sh\nexec sleep 1000\n")
    program(tmp_path / "plugins", "20-slow", "#!/bin/sh\nexec sleep 1000\n")
    lab = await open_lab(registration_timeout_s=0.3)
    assert lab.state_of("10-slow") == lab.state_of("20-slow") == "closed"
    assert "did not register" in lab.services.plugins()["10-slow"]["reason"]
    await close_all(open_lab)
