"""``polypod image explain``: what a pull would ask, told without asking, and with."""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import replace

import pytest
from support.images import image_of, layer_of
from support.lying_registry import LyingRegistry, Reply

from polypod.cli import main
from polypod.plugin.errors import InvalidArgument
from polypod_image.registry import command


def explained(capsys, *words):
    """Return exit code and output of the command."""
    parser = argparse.ArgumentParser()
    command.configure(parser)
    code = command.run(parser.parse_args(words))
    return code, capsys.readouterr().out


@pytest.fixture
def rules(tmp_path):
    """A directory with a rule for ``r.example``."""
    file = tmp_path / "hosts.d" / "r.example" / "hosts.toml"
    file.parent.mkdir(parents=True)
    file.write_text(
        '[host."https://m.example"]\ncapabilities = ["pull"]\nskip_verify = true\n'
        '[host."https://m.example".header]\nx-key = "hidden"\n'
    )
    return tmp_path / "hosts.d"


def test_every_endpoint_in_its_order_and_nothing_secret(capsys, rules, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://user:hidden@proxy.example:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO("hidden\n"))
    words = ["r.example/a:1", "--hosts-dir", str(rules), "-u", "me", "--password-stdin"]
    code, out = explained(capsys, *words)
    assert code == 0
    assert "hidden" not in out
    mirror, own = out.split("  1. ")[1].split("  2. ")
    assert "https://m.example/v2  (mirror, told ?ns=r.example)" in mirror
    assert "lacks the capability resolve" in mirror
    assert "sees: no credentials" in mirror
    assert "tls: NOT verified" in mirror
    assert "headers: x-key" in mirror
    assert "proxy: http://proxy.example:3128" in mirror
    assert "https://r.example/v2  (the registry itself)" in own
    assert "sees: the username" in own


def test_json_and_the_configuration_file(capsys, rules, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text(f'[images]\nhosts_dir = "{rules}"\n')
    code, out = explained(
        capsys, "r.example/a@sha256:" + "0" * 64, "--config", str(config), "--json"
    )
    found = json.loads(out)
    assert code == 0
    assert found["rule"].endswith("r.example/hosts.toml")
    assert [each["url"] for each in found["steps"]] == [
        "https://m.example/v2",
        "https://r.example/v2",
    ]
    assert found["steps"][0]["asked_for"].startswith("manifest sha256:")


def test_an_image_made_here_asks_nobody(capsys, tmp_path):
    _, out = explained(capsys, "localhost/demo", "--hosts-dir", str(tmp_path))
    assert "no registry is asked" in out


def test_ask_tells_what_each_endpoint_says(capsys, tmp_path):
    image = image_of([layer_of({"a": b"a"})])
    with LyingRegistry() as registry:
        digest = registry.add("a", "1", image)
        words = [f"{registry.address}/a:1", "--hosts-dir", str(tmp_path), "--ask"]
        code, out = explained(capsys, *words)
        assert code == 0
        assert f"answer: {digest}" in out
        registry.rule = lambda asked, honest: replace(honest, status=404)
        code, out = explained(capsys, *words)
        assert code == 1
        assert "not found" in out
        registry.rule = lambda asked, honest: Reply(401)
        code, out = explained(capsys, *words)
        assert (code, "access denied" in out) == (1, True)


def test_a_configuration_that_cannot_be_read_is_named(tmp_path):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    with pytest.raises(InvalidArgument, match=r"gone\.toml"):
        command.run(parser.parse_args(["a", "--config", str(tmp_path / "gone.toml")]))


def test_it_is_a_command_of_polypod(capsys, tmp_path):
    assert main(["image", "explain", "localhost/demo", "--hosts-dir", str(tmp_path)]) == 0
    assert main(["image", "explain", "No!", "--hosts-dir", str(tmp_path)]) == 1
    assert "no image reference" in capsys.readouterr().err
