"""`make demo` and `make bench`, as the Makefile runs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
REAL = [
    pytest.mark.needs_root,
    pytest.mark.needs_overlay,
    pytest.mark.needs_nft,
    pytest.mark.needs_busybox,
]


def run(*words):
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_demo_on_the_simulator_says_so():
    text = run("demo", "--simulator")
    assert "so the story is told on the simulator" in text
    assert text.endswith("done, nothing is left\n")


@pytest.mark.parametrize("_", [pytest.param(0, marks=REAL, id="real")])
def test_the_demo_with_real_containers_that_talk(_):
    text = run("demo")
    assert "simulator" not in text
    assert "| hello from demo" in text
    assert "uid=0(root)" in text
    assert text.endswith("done, nothing is left\n")


@pytest.mark.parametrize(
    "words",
    [("--simulator",), pytest.param((), marks=REAL)],
    ids=["simulator", "real"],
)
def test_the_bench_writes_every_value(tmp_path, words):
    text = run("bench", *words, "--quick", "--only", "exec,restart", "--out", str(tmp_path))
    assert "ExecSync(true)" in text
    (file,) = tmp_path.iterdir()
    found = json.loads(file.read_text())
    assert [row["what"].split()[0] for row in found["results"]] == ["ExecSync(true)", "restart"]
    assert all(row["min"] <= row["median"] <= row["p95"] for row in found["results"])
    assert {"loadavg", "noise_median", "kernel"} <= found["host"]["before"].keys()
