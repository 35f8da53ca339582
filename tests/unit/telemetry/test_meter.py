"""Metrics of the server: what is counted, and that every name is documented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from polypod.lifecycle.views import Census
from polypod.telemetry.meter import Meter
from polypod.telemetry.watchers import TelemetrySet, Watchers

OPERATING = Path(__file__).parents[3] / "docs" / "operating.md"


@pytest.fixture
def meter():
    made = Meter("1.2.3")
    census = Census({("ns", "ready"): 2}, {("ns", "running"): 5, ("vm", "exited"): 1}, 3, 1)
    made.count(lambda: census, lambda: {"keeper": 0, "logger": 2})
    return made


def value(meter: Meter, name: str, **labels: str) -> float | None:
    return meter.registry.get_sample_value(name, labels)


def test_calls_are_counted_by_name_and_code(meter):
    for code in ("OK", "OK", "NOT_FOUND"):
        meter.ended(meter.began("Version", "-", ()), "Version", code, 0.003)
    assert value(meter, "polypod_rpc_total", method="Version", code="OK") == 2
    assert value(meter, "polypod_rpc_total", method="Version", code="NOT_FOUND") == 1
    assert value(meter, "polypod_rpc_seconds_count", method="Version") == 3
    assert value(meter, "polypod_rpc_seconds_bucket", method="Version", le="0.002") == 0
    assert value(meter, "polypod_rpc_seconds_bucket", method="Version", le="0.005") == 3


def test_stages_and_their_failures(meter):
    meter.stage("create", 0.01, "")
    meter.stage("create", 0.02, "OSError: no")
    assert value(meter, "polypod_stage_seconds_count", stage="create") == 2
    assert value(meter, "polypod_stage_failures_total", stage="create") == 1


def test_pulls(meter):
    meter.pulled(1000, 2.0, "")
    meter.pulled(24, 0.5, "NotFound")
    assert value(meter, "polypod_pull_bytes_total") == 1024
    assert value(meter, "polypod_pulls_total", outcome="done") == 1
    assert value(meter, "polypod_pulls_total", outcome="failed") == 1


def test_what_lives_is_counted_when_somebody_reads(meter):
    assert value(meter, "polypod_sandboxes", handler="ns", state="ready") == 2
    assert value(meter, "polypod_containers", handler="vm", state="exited") == 1
    assert value(meter, "polypod_event_readers") == 3
    assert value(meter, "polypod_event_readers_lost_total") == 1
    assert value(meter, "polypod_process_restarts_total", process="logger") == 2
    assert value(meter, "polypod_build_info", version="1.2.3") == 1
    assert value(meter, "process_open_fds") > 0


def test_every_metric_is_documented_and_every_documented_one_exists(meter):
    meter.ended(None, "Version", "OK", 0.1)
    text = meter.text().decode()
    ours = set(re.findall(r"^# TYPE (polypod_\w+) ", text, re.MULTILINE))
    ours -= {name for name in ours if name.endswith("_created")}
    told = set(re.findall(r"`(polypod_[a-z_]+)", OPERATING.read_text()))
    assert told == ours


def test_several_watchers_each_get_their_own_token_back():
    class Watcher:
        def __init__(self, name):
            self.name, self.seen = name, []

        def began(self, method, object_id, metadata, /):
            return self.name

        def ended(self, began, method, code, seconds, /):
            self.seen.append(began)

    first, second = Watcher("a"), Watcher("b")
    both = Watchers([first, second])
    both.ended(both.began("Version", "-", ()), "Version", "OK", 0.1)
    assert (first.seen, second.seen) == (["a"], ["b"])


def test_nothing_configured_is_nothing_measured():
    off = TelemetrySet("", traces=False)
    assert off.watch is None
    assert off.endpoint is None
