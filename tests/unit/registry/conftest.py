"""Entry points made on the spot: a distribution's metadata and a module, on a path of the test's own."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import DistributionFinder, MetadataPathFinder
from pathlib import Path

import pytest

EVIL = Path(__file__).parents[2] / "thirdparty" / "evil"


@pytest.fixture
def evil(monkeypatch):
    """The module of evil plugins."""
    monkeypatch.syspath_prepend(str(EVIL))
    return importlib.import_module("evil_plugins")


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a module as a plugin and return its entry point."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made = []

    def make(name, source, *, distribution=None, target=None):
        module = f"made_{name}_{len(made)}"
        made.append(module)
        (tmp_path / f"{module}.py").write_text(source)
        dist = distribution or f"polypod-{name}"
        info = tmp_path / f"{dist.replace('-', '_')}_{len(made)}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(
            f"[polypod]\n{name} = {module}:{target or 'plugin'}\n"
        )
        importlib.invalidate_caches()
        for found in MetadataPathFinder.find_distributions(
            DistributionFinder.Context(path=[str(tmp_path)])
        ):
            if Path(found._path) == info:
                return next(iter(found.entry_points))
        raise AssertionError(info)

    yield make
    for module in made:
        sys.modules.pop(module, None)
