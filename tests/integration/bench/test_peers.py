"""``make bench-peers`` beside a real containerd, where there is one: every row, and nothing is left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.peers import needs

ROOT = Path(__file__).parents[3]
pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay, pytest.mark.needs_nft]


def test_both_sides_are_measured_in_turns_and_nothing_is_left(tmp_path):
    lacks = needs.missing(pull=True)
    if lacks:
        pytest.skip("; ".join(lacks))
    private = [Path("/var/lib/cni"), Path("/run/containerd"), Path("/opt/containerd")]
    had = [path.exists() for path in private]
    words = ["bench.peers", "--quick", "--only", "exec,pull", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = tmp_path.iterdir()
    rows = json.loads(file.read_text())["results"]
    assert {"ExecSync(true)", "CPU per ExecSync"} <= {row["what"] for row in rows}
    assert len([row for row in rows if row["what"].startswith("pull + unpack")]) == 4
    assert all(set(row["values"]) == {"polypod", "containerd"} for row in rows)
    assert all(row["ratio"] > 0 for row in rows)
    assert [path.exists() for path in private] == had
    assert not [name for name in os.listdir("/sys/class/net") if name.startswith("bench-cni")]


def test_without_a_peer_the_packages_are_named(tmp_path):
    """Programs are looked for in PATH and in Debian's places: a root without these has none."""
    text = "from bench.peers import needs; needs.PATH = ''; print(needs.missing(pull=True))"
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (
        "apt-get install containerd docker-registry iptables mount runc util-linux" in done.stdout
    )
