"""Spans: one for each call of CRI, below it one for each stage. Needs ``pip install polypod[otel]``.

Where spans go is told by OpenTelemetry's own environment: ``OTEL_EXPORTER_OTLP_ENDPOINT`` and its kin, or
``OTEL_TRACES_EXPORTER=console``. A caller that sends ``traceparent``, as a kubelet with tracing does, finds
our spans below its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from polypod.plugin.errors import FailedPrecondition, InvalidArgument

SERVICE = "polypod"


class Tracing:
    """Makes spans. Implements `Telemetry` and `CallWatch`."""

    def __init__(self, version: str, exporter: Any = None) -> None:  # noqa: ANN401 - a SpanExporter
        """Set up a provider of our own.

        Args:
            version: of the server.
            exporter: for tests; None takes what the environment says.

        Raises:
            FailedPrecondition: the library is not installed.
            InvalidArgument: the environment names an exporter that we do not know.
        """
        try:
            from opentelemetry import context, propagate, trace
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise FailedPrecondition(
                f"metrics.traces needs OpenTelemetry ({error}): pip install polypod[otel]"
            ) from error
        self._context, self._propagate, self._trace = context, propagate, trace
        resource = Resource.create({"service.name": SERVICE, "service.version": version})
        self._provider = TracerProvider(resource=resource)
        chosen = exporter if exporter is not None else _exporter()
        self._provider.add_span_processor(BatchSpanProcessor(chosen))
        self._tracer = self._provider.get_tracer(SERVICE, version)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    # CallWatch

    def began(self, method: str, object_id: str, metadata: Sequence[tuple[str, str]], /) -> object:
        """Begin the span of a call; stages of tasks that the call starts come below it."""
        parent = self._propagate.extract(dict(metadata))
        span = self._tracer.start_span(
            f"cri.{method}",
            context=parent,
            kind=self._trace.SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.method": method, "polypod.object": object_id},
        )
        self._context.attach(self._trace.set_span_in_context(span, parent))
        return span

    def ended(self, began: Any, _method: str, code: str, _seconds: float, /) -> None:  # noqa: ANN401
        """End it. Each call has a context of its own, which ends with it: there is nothing to detach."""
        began.set_attribute("rpc.grpc.status", code)
        if code not in ("OK", "CANCELLED"):
            began.set_status(self._trace.StatusCode.ERROR, code)
        began.end()

    # Telemetry

    def stage(self, name: str, seconds: float, error: str, /) -> None:
        """Tell a stage that has just ended."""
        now = time.time_ns()
        span = self._tracer.start_span(name, start_time=now - int(seconds * 1e9))
        if error:
            span.set_status(self._trace.StatusCode.ERROR, error)
        span.end(end_time=now)

    def pulled(self, received: int, seconds: float, error: str, /) -> None:
        """Tell a pull that has just ended."""
        now = time.time_ns()
        start = now - int(seconds * 1e9)
        span = self._tracer.start_span("pull", start_time=start, attributes={"bytes": received})
        if error:
            span.set_status(self._trace.StatusCode.ERROR, error)
        span.end(end_time=now)


def _exporter() -> Any:  # noqa: ANN401 - a SpanExporter
    wanted = os.environ.get("OTEL_TRACES_EXPORTER", "otlp")
    if wanted == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if wanted != "otlp":
        raise InvalidArgument(f"OTEL_TRACES_EXPORTER is {wanted!r}: known are otlp and console")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise FailedPrecondition(
            f"metrics.traces needs the exporter of OpenTelemetry ({error}): pip install polypod[otel]"
        ) from error
    return OTLPSpanExporter()
