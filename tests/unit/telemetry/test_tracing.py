"""Spans: one for each call, its stages below it, all below the caller's own."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra polypod[otel] is not installed")

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from polypod.plugin.errors import InvalidArgument
from polypod.telemetry import tracing as module
from polypod.telemetry.tracing import Tracing

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"


@pytest.fixture
def traced():
    exporter = InMemorySpanExporter()
    tracing = Tracing("1", exporter)
    yield tracing, exporter
    tracing.close()


async def call(tracing: Tracing, code: str, metadata=()) -> None:
    """Do what the interceptor does, with a stage in a task that the call started."""
    token = tracing.began("RunPodSandbox", "abc", metadata)
    await asyncio.create_task(stage(tracing))
    tracing.ended(token, "RunPodSandbox", code, 0.1)


async def stage(tracing: Tracing) -> None:
    tracing.stage("make namespaces", 0.01, "")
    tracing.stage("attach", 0.02, "BackendError: no")


async def spans(traced, *calls):
    tracing, exporter = traced
    for each in calls:
        await asyncio.get_running_loop().create_task(each, context=contextvars.copy_context())
    tracing._provider.force_flush()
    return {each.name: each for each in exporter.get_finished_spans()}


async def test_stages_are_below_their_call_which_is_below_the_callers(traced):
    parent = (("traceparent", f"00-{TRACE}-{CALLER}-01"),)
    found = await spans(traced, call(traced[0], "OK", parent))
    rpc, stage_ = found["cri.RunPodSandbox"], found["make namespaces"]
    assert f"{rpc.context.trace_id:032x}" == TRACE
    assert f"{rpc.parent.span_id:016x}" == CALLER
    assert stage_.parent.span_id == rpc.context.span_id
    assert stage_.end_time - stage_.start_time == 10_000_000
    assert rpc.attributes["polypod.object"] == "abc"
    assert rpc.attributes["rpc.grpc.status"] == "OK"


async def test_failures_are_marked(traced):
    found = await spans(traced, call(traced[0], "UNKNOWN"))
    assert not found["cri.RunPodSandbox"].status.is_ok
    assert not found["attach"].status.is_ok
    assert found["make namespaces"].status.is_ok


async def test_a_pull_tells_its_bytes(traced):
    tracing, exporter = traced
    tracing.pulled(77, 1.0, "")
    tracing._provider.force_flush()
    [found] = exporter.get_finished_spans()
    assert found.attributes["bytes"] == 77


def test_an_exporter_that_nobody_knows_is_refused(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    with pytest.raises(InvalidArgument, match="zipkin"):
        module._exporter()
