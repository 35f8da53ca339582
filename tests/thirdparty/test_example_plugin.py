"""A third party's distribution: found by its entry point, equal to ours, checked by the same suite."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from importlib.metadata import DistributionFinder, MetadataPathFinder
from pathlib import Path

import pytest

from polypod.plugin import RuntimeContext
from polypod.registry import Registry
from polypod.testing.fakes import FakeSupervisor
from polypod.testing.runtime_suite import CHECKS, Outcome, run_check
from polypod.testing.subjects import SimulatorSubject

EXAMPLE = Path(__file__).parent / "example_plugin"
PROJECT = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]


@pytest.fixture
def points(tmp_path, monkeypatch):
    """The entry points of the distribution, as if it were installed; what a build makes of pyproject."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.syspath_prepend(str(tmp_path))
    info = tmp_path / f"polypod_example-{PROJECT['version']}.dist-info"
    info.mkdir()
    facts = f"Metadata-Version: 2.1\nName: {PROJECT['name']}\nVersion: {PROJECT['version']}\n"
    (info / "METADATA").write_text(facts)
    lines = [f"{name} = {value}" for name, value in PROJECT["entry-points"]["polypod"].items()]
    (info / "entry_points.txt").write_text("[polypod]\n" + "\n".join(lines) + "\n")
    importlib.invalidate_caches()
    context = DistributionFinder.Context(path=[str(tmp_path)])
    yield [p for d in MetadataPathFinder.find_distributions(context) for p in d.entry_points]
    sys.modules.pop("polypod_example", None)


class ExampleSubject(SimulatorSubject):
    """The example on the fake supervisor; specs as for the simulator."""

    out_of_memory = ()

    def __init__(self, directory, type_):
        super().__init__(directory)
        self.type = type_
        self._directory = directory
        self._supervisor = FakeSupervisor()

    async def open(self):
        state = self._directory / "state"
        state.mkdir(parents=True, exist_ok=True)
        return await self.type.open(
            RuntimeContext("example", {}, self._directory, state, "/unused", self._supervisor)
        )


def test_example_is_found_by_its_entry_point(points):
    registry = Registry.load(points=points)
    (plugin,) = registry.plugins()
    assert (plugin.distribution, plugin.version, plugin.state) == (
        PROJECT["name"],
        PROJECT["version"],
        "loaded",
    )
    assert registry.runtime_type("example").unusable == ""


def test_example_is_found_beside_the_installed_ones(points):
    """Discovery goes through importlib.metadata: what is on the path is enough."""
    registry = Registry.load()
    assert {"example", "network"} <= {plugin.name for plugin in registry.plugins()}
    assert "example" in registry.runtime_types


def test_example_is_one_page_and_typed():
    module = EXAMPLE / "polypod_example.py"
    code = [line for line in module.read_text().splitlines() if line.strip()]
    assert len(code) <= 160
    mypy = Path(sys.executable).with_name("mypy")
    if not mypy.exists():
        pytest.skip("mypy is not installed")
    run = subprocess.run(
        [mypy, "--strict", "--enable-error-code", "explicit-override", module],
        capture_output=True,
        text=True,
        check=False,
        cwd=EXAMPLE.parents[2],
    )
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_example_keeps_the_contract(check, points, tmp_path):
    type_ = Registry.load(points=points).runtime_type("example")
    verdict = await run_check(check, ExampleSubject(tmp_path / "host", type_))
    assert verdict.good, verdict.detail
    assert (verdict.outcome is Outcome.EXCEPTED) == (check.__name__ in type_.exceptions)
