"""``pip install .`` in a clone gives a working command with its plugins."""

import shutil
import subprocess
import sys

import polypod_meta_tree as tree
import pytest


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pip_install_from_a_clone_works(tmp_path):
    clone = tmp_path / "clone"
    for path in tree.files():
        copy = clone / path.relative_to(tree.ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    # One package index request that hangs must not cost minutes, nor one build environment per package.
    quickly = ["--quiet", "--disable-pip-version-check", "--timeout", "20", "-c", "constraints.txt"]
    pip = [python, "-m", "pip", "install", *quickly]
    subprocess.run([*pip, "hatchling"], cwd=clone, check=True)
    subprocess.run([*pip, "--no-build-isolation", "."], cwd=clone, check=True)
    done = subprocess.run(
        [tmp_path / "venv" / "bin" / "polypod", "plugins"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in ("simulator", "namespaces", "network", "image", "vm", "oci", "fly"):
        assert f"\n{name} " in done.stdout
