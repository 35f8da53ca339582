"""Discovery: what is found, and what becomes of plugins that fail."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from polypod.config import Config, PluginsConfig
from polypod.plugin.errors import AlreadyExists, FailedPrecondition, NotFound
from polypod.registry import Registry, overview
from polypod.registry import registry as registry_module

GOOD = """
from polypod.plugin import Hooks, RuntimeType, hookimpl, override

async def _open(context):
    raise NotImplementedError

class Mine(Hooks):
    @override
    @hookimpl
    def polypod_runtime_types(self):
        return [RuntimeType(name="{name}", summary="for tests", open=_open, rootfs_forms=(),
                            unusable="{unusable}")]

plugin = Mine()
"""
FAILING = {
    "raises": ("raise RuntimeError('broken inside')", "RuntimeError: broken inside"),
    "exits": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "syntax": ("def (:", "SyntaxError"),
    "missing": ("import no_such_module_anywhere", "No module named 'no_such_module_anywhere'"),
    "nothing": ("pass", "no attribute 'plugin'"),
    "a-class": (GOOD.format(name="x", unusable="") + "\nplugin = Mine", "name an instance"),
    "a-number": ("plugin = 7", "is a int"),
    "hangs": ("import time; time.sleep(5)", "did not return within 1 s"),
    "offer-raises": (
        GOOD.format(name="x", unusable="").replace(
            "return [", "raise KeyError('inside'); return ["
        ),
        "KeyError",
    ),
    "offer-hangs": (
        GOOD.format(name="x", unusable="").replace(
            "return [", "import time; time.sleep(5); return ["
        ),
        "did not return within 1 s",
    ),
}


def test_load_finds_plugin_and_offer(install):
    registry = Registry.load(points=[install("mine", GOOD.format(name="mine", unusable=""))])
    (plugin,) = registry.plugins()
    assert (plugin.name, plugin.distribution, plugin.version) == ("mine", "polypod-mine", "1.2")
    assert plugin.state == "loaded"
    assert plugin.hooks == ("polypod_runtime_types",)
    assert [(o.kind, o.name) for o in plugin.offers] == [("runtime type", "mine")]
    assert registry.runtime_type("mine").summary == "for tests"


@pytest.mark.parametrize(("source", "reason"), FAILING.values(), ids=FAILING)
def test_load_isolates_plugin_that_fails(install, source, reason):
    points = [install("bad", source), install("good", GOOD.format(name="good", unusable=""))]
    # Only what hangs is held against the clock: a busy host must not make the others late.
    registry = Registry.load(points=points, load_timeout_s=1 if "within" in reason else 60)
    bad, good = registry.plugins()
    assert bad.state == "failed"
    assert reason in bad.reason
    assert bad.offers == ()
    assert good.state == "loaded"
    assert set(registry.runtime_types) == {"good"}


def test_load_stops_where_a_required_plugin_fails(install):
    point = install("bad", FAILING["raises"][0])
    with pytest.raises(FailedPrecondition, match=r"required plugin 'bad' is failed.*broken inside"):
        Registry.load(points=[point], required=["bad"])


def test_load_stops_where_a_required_plugin_is_not_installed(install):
    point = install("good", GOOD.format(name="good", unusable=""))
    with pytest.raises(FailedPrecondition, match="'other' is not installed; installed are good"):
        Registry.load(points=[point], required=["other"])


def test_load_stops_where_a_required_plugin_is_disabled(install):
    point = install("good", GOOD.format(name="good", unusable=""))
    with pytest.raises(FailedPrecondition, match="'good' is disabled"):
        Registry.load(points=[point], required=["good"], disabled=["good"])


def test_load_does_not_import_a_disabled_plugin(install, tmp_path):
    source = f"open({str(tmp_path / 'imported')!r}, 'w').close()"
    registry = Registry.load(points=[install("off", source)], disabled=["off"])
    assert [p.state for p in registry.plugins()] == ["disabled"]
    assert not (tmp_path / "imported").exists()


def test_load_names_both_where_two_offer_one_name(install):
    points = [install(name, GOOD.format(name="same", unusable="")) for name in ("one", "two")]
    with pytest.raises(AlreadyExists, match="plugins one and two both offer runtime type 'same'"):
        Registry.load(points=points)
    registry = Registry.load(points=points, disabled=["two"])
    assert set(registry.runtime_types) == {"same"}


def test_load_names_both_distributions_of_one_plugin(install):
    points = [
        install("same", GOOD.format(name=name, unusable=""), distribution=f"dist-{name}")
        for name in ("a", "b")
    ]
    with pytest.raises(AlreadyExists, match="dist-a and dist-b both have a plugin 'same'"):
        Registry.load(points=points)


def test_load_takes_a_distribution_seen_twice_once(install):
    point = install("mine", GOOD.format(name="mine", unusable=""))
    assert len(Registry.load(points=[point, point]).plugins()) == 1


def test_load_names_the_nearest_of_an_unknown_name(install, caplog):
    point = install("good", GOOD.format(name="good", unusable=""))
    with caplog.at_level(logging.WARNING):
        Registry.load(points=[point], order=["god"], disabled=["elsewhere"])
    assert "plugins.order: no plugin 'god' is installed; did you mean 'good'?" in caplog.text
    assert "plugins.disabled: no plugin 'elsewhere' is installed" in caplog.text


def test_require_names_what_there_is_and_what_failed(install):
    points = [
        install("good", GOOD.format(name="good", unusable="")),
        install("bad", FAILING["raises"][0]),
    ]
    registry = Registry.load(points=points)
    with pytest.raises(
        NotFound, match=r"'vm'; there are: good; plugin bad failed: .*broken inside"
    ):
        registry.runtime_type("vm")
    with pytest.raises(NotFound, match="no plugin offers image store 'x'; there are: none"):
        registry.image_store("x")
    with pytest.raises(NotFound, match="no plugin offers network 'x'"):
        registry.network_type("x")


WRONG = {
    "a-number": 7,
    "nothing": None,
    "a-text": "namespaces",
    "a-mapping": {"name": "x"},
    "a-generator": lambda: (each for each in ()),
    "numbers": [1],
    "hook-raises": RuntimeError("inside"),
    "hook-exits": SystemExit(1),
}


@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG)
def test_offer_of_another_type_fails_the_plugin(evil, answer):
    registry = Registry.of({"bad": evil.Offers(answer), "good": evil.OffersNetwork()})
    bad, good = registry.plugins()
    assert bad.state == "failed"
    assert "polypod_runtime_types" in bad.reason or "raised" in bad.reason
    assert good.state == "loaded"
    assert set(registry.network_types) == {"net"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"name": ""}, "without a name"), ({"name": 3}, "without a name"), ({"open": 5}, "opened")],
    ids=["empty-name", "numeric-name", "open-is-no-function"],
)
def test_offer_with_wrong_facts_fails_the_plugin(evil, changes, reason):
    registry = Registry.of({"bad": evil.Offers([evil.runtime_type(**changes)])})
    (bad,) = registry.plugins()
    assert bad.state == "failed"
    assert reason in bad.reason


def test_offers_of_a_plugin_are_all_taken_or_none(evil):
    registry = Registry.of({"bad": evil.Offers([evil.runtime_type("fine"), 1])})
    assert registry.plugins()[0].offers == ()
    assert not registry.runtime_types


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Unmarked", "polypod_sandbox_ready without @hookimpl"),
        ("Misspelt", "polypod_sandbox_redy"),
        ("WrongArguments", "moon"),
    ],
)
def test_plugin_that_does_not_fit_the_hooks_fails(evil, name, reason):
    (plugin,) = Registry.of({"bad": getattr(evil, name)()}).plugins()
    assert plugin.state == "failed"
    assert reason in plugin.reason


def test_overview_shows_all_states(install, evil, monkeypatch):
    points = [
        install("bad", FAILING["raises"][0]),
        install("good", GOOD.format(name="fast", unusable="")),
        install("off", "pass"),
        install("poor", GOOD.format(name="slow", unusable="no such device")),
    ]
    monkeypatch.setattr(registry_module, "installed", lambda: points)
    config = replace(Config(), plugins=PluginsConfig(disabled=["off"], required=["bad"]))
    rows = overview(config)
    assert ("good 1.2", "runtime type", "fast", "usable") in rows
    assert ("poor 1.2", "runtime type", "slow", "unusable: no such device") in rows
    assert ("off 1.2", "plugin", "polypod-off", "disabled: by plugins.disabled") in rows
    assert any(row[0] == "bad 1.2" and row[3].startswith("failed: ") for row in rows)


def test_installed_plugins_load():
    """What this workspace ships can be loaded together."""
    registry = Registry.load()
    assert "network" in [plugin.name for plugin in registry.plugins()]
    assert "bridge" in registry.network_types
