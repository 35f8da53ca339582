"""What ``make conformance`` refuses before it runs anything."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]


def run(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": str(TESTS), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_fly_is_refused_with_the_reason(tmp_path):
    done = run("conformance", "--handlers", "fly", "--out", str(tmp_path))
    assert done.returncode == 1
    assert "fly: not run: its pods are not isolated" in done.stdout
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".md"]


def test_an_unknown_handler_is_named(tmp_path):
    done = run("conformance", "--handlers", "namespaces,podman", "--out", str(tmp_path))
    assert done.returncode == 1
    assert "no handler 'podman'; there are sim, namespaces, " in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("by", ["name", "type"])
def test_the_suite_itself_refuses_a_type_without_isolation(tmp_path, by):
    config = tmp_path / "config.toml"
    config.write_text('[server]\ndefault_handler = "bare"\n[handlers.bare]\ntype = "fly"\n')
    given = {
        "name": {"POLYPOD_CONFORMANCE_HANDLERS": "fly"},
        "type": {"POLYPOD_CONFORMANCE_CONFIG": str(config)},
    }
    done = run("pytest", "tests/conformance", "--collect-only", "-q", **given[by])
    assert done.returncode != 0
    assert "does not run on handler" in done.stdout + done.stderr
    assert "are not isolated" in done.stdout + done.stderr
