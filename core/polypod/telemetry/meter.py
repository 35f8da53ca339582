"""Metrics of the server itself. Their names are documented in docs/operating.md; a test compares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from typing_extensions import override

from polypod.lifecycle.views import Census

_SECONDS: Final = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 120),
)
"""From a status out of memory to a pull: half a millisecond to two minutes."""
CONTENT_TYPE: Final = CONTENT_TYPE_LATEST


class Meter:
    """Counts what it is told. Implements `Telemetry` and `CallWatch`."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)
        self._calls = Counter(
            "polypod_rpc",
            "Calls of CRI that have ended",
            ("method", "code"),
            registry=self.registry,
        )
        self._call_seconds = Histogram(
            "polypod_rpc_seconds",
            "How long calls of CRI took; streams until they ended",
            ("method",),
            registry=self.registry,
            buckets=_SECONDS,
        )
        self._stages = Histogram(
            "polypod_stage_seconds",
            "How long the stages of a sandbox's or container's life took",
            ("stage",),
            registry=self.registry,
            buckets=_SECONDS,
        )
        self._failures = Counter(
            "polypod_stage_failures", "Stages that failed", ("stage",), registry=self.registry
        )
        self._pulls = Counter(
            "polypod_pulls", "Pulls that have ended", ("outcome",), registry=self.registry
        )
        self._pull_bytes = Counter(
            "polypod_pull_bytes", "Bytes that pulls have brought", registry=self.registry
        )
        self._pull_seconds = Histogram(
            "polypod_pull_seconds",
            "How long pulls took",
            registry=self.registry,
            buckets=(0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600),
        )
        built = GaugeMetricFamily(
            "polypod_build_info", "The version that runs", labels=("version",)
        )
        built.add_metric((version,), 1)
        self.registry.register(_Constant(built))

    def count(
        self, census: Callable[[], Census], restarts: Callable[[], Mapping[str, int]]
    ) -> None:
        """Ask these two at each reading: what there is, and how often our processes went away."""
        self.registry.register(_Living(census, restarts))

    def text(self) -> bytes:
        """Return everything in the text format of Prometheus."""
        return generate_latest(self.registry)

    # CallWatch

    def began(self, _method: str, _object: str, _metadata: Sequence[tuple[str, str]], /) -> None:
        """Nothing is counted before the end."""

    def ended(self, _began: object, method: str, code: str, seconds: float, /) -> None:
        """Count a call."""
        self._calls.labels(method, code).inc()
        self._call_seconds.labels(method).observe(seconds)

    # Telemetry

    def stage(self, name: str, seconds: float, error: str, /) -> None:
        """Count a stage."""
        self._stages.labels(name).observe(seconds)
        if error:
            self._failures.labels(name).inc()

    def pulled(self, received: int, seconds: float, error: str, /) -> None:
        """Count a pull."""
        self._pulls.labels("failed" if error else "done").inc()
        self._pull_bytes.inc(received)
        self._pull_seconds.observe(seconds)


class _Constant(Collector):
    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    @override
    def collect(self) -> Iterable[Metric]:
        return [self._metric]


class _Living(Collector):
    """What is counted when somebody reads, not when it happens."""

    def __init__(
        self, census: Callable[[], Census], restarts: Callable[[], Mapping[str, int]]
    ) -> None:
        self._census = census
        self._restarts = restarts

    @override
    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        census = self._census()
        for name, text, counts in (
            ("polypod_sandboxes", "Sandboxes by handler and state", census.sandboxes),
            ("polypod_containers", "Containers by handler and state", census.containers),
        ):
            family = GaugeMetricFamily(name, text, labels=("handler", "state"))
            for (handler, state), number in sorted(counts.items()):
                family.add_metric((handler, state), number)
            yield family
        yield GaugeMetricFamily(
            "polypod_event_readers", "Open streams of events", value=census.event_readers
        )
        yield CounterMetricFamily(
            "polypod_event_readers_lost",
            "Streams of events that were ended because they were read too slowly",
            value=census.event_readers_lost,
        )
        gone = CounterMetricFamily(
            "polypod_process_restarts",
            "How often keeper, supervisor or logger went away while this server ran",
            labels=("process",),
        )
        for process, number in sorted(self._restarts().items()):
            gone.add_metric((process,), number)
        yield gone
