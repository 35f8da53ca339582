"""pull: what is asked while it runs, and what is shown."""

from __future__ import annotations

import asyncio
import io
import json

import pytest
from rich.console import Console

from polypod.cli import pulling
from polypod.client import CriError, pb

STEP = {"what": "sha256:" + "a" * 64, "stage": "downloading", "done_bytes": 5, "total_bytes": 10}


class FakeClient:
    """Pulls until its steps are all told."""

    def __init__(self, steps, error=None):
        self.steps = list(steps)
        self.error = error
        self.told = asyncio.Event()
        self.cancelled = False

    async def pull_image(self, _reference, _auth):
        try:
            await self.told.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.error:
            raise self.error
        return "sha256:1"

    async def image_status(self, _reference, *, verbose):
        assert verbose
        step = self.steps.pop(0)
        if not self.steps:
            self.told.set()
        if isinstance(step, Exception):
            raise step
        return pb.ImageStatusResponse(info={"info": json.dumps({"pull": step})} if step else {})


class Shown:
    def __init__(self):
        self.steps = []
        self.whole = None

    def show(self, steps):
        self.steps.append(steps)

    def close(self, *, whole):
        self.whole = whole


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(pulling, "_LOOK_S", 0.001)


async def test_steps_are_shown_until_the_pull_ends():
    screen = Shown()
    client = FakeClient([[STEP], None, [{**STEP, "done_bytes": 10}]])
    assert await pulling.pull_watched(client, "r", None, screen) == "sha256:1"
    assert screen.steps == [[STEP], [], [{**STEP, "done_bytes": 10}]]
    assert screen.whole is True


async def test_an_error_of_the_pull_is_told_and_one_of_the_look_is_not():
    import grpc

    screen = Shown()
    failed = CriError("PullImage", grpc.StatusCode.NOT_FOUND, "no such image")
    client = FakeClient(
        [CriError("ImageStatus", grpc.StatusCode.UNAVAILABLE, "gone"), [STEP]], failed
    )
    with pytest.raises(CriError, match="no such image"):
        await pulling.pull_watched(client, "r", None, screen)
    assert screen.whole is False


async def test_an_interrupted_caller_ends_the_pull():
    client = FakeClient([[STEP]] * 10_000)
    task = asyncio.create_task(pulling.pull_watched(client, "r", None, Shown()))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait({task})
    await asyncio.sleep(0)
    assert client.cancelled


@pytest.mark.parametrize("whole", [True, False])
def test_bars_name_the_layer_its_size_and_the_stage(whole, monkeypatch):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    monkeypatch.setattr("rich.console.Console", lambda **_options: console)
    bars = pulling.Bars("registry.example/app:1")
    bars.show([STEP, {**STEP, "what": "registry.example/app:1"}, {**STEP, "total_bytes": 0}])
    bars.close(whole=whole)
    text = out.getvalue()
    assert "registry.example/app:1" in text
    assert "sha256:aaaaaaaaaaaa" in text
    assert ("done" in text) is whole
