"""The hooks that are awaited before the fact, and the observe hooks that go with them."""

from __future__ import annotations

import asyncio

import pytest

from polypod.plugin import (
    BackendError,
    ContainerConfig,
    ContainerId,
    ContainerMetadata,
    FailedPrecondition,
    Hooks,
    ImageSpec,
    PodMetadata,
    Resources,
    SandboxConfig,
    SandboxId,
    hookimpl,
    override,
)
from polypod.plugin.observer import ContainerFacts, SandboxFacts
from polypod.plugin.runtime import PodResources
from polypod.registry import Registry
from polypod.registry.records import BREAK_AFTER

SANDBOX = SandboxFacts(
    SandboxId("5" * 64),
    SandboxConfig(PodMetadata("pod", "uid", "ns")),
    "",
    "creating",
    1,
    "/pods/5",
)
CONTAINER = ContainerFacts(
    ContainerId("c" * 64),
    SANDBOX.id,
    ContainerConfig(ContainerMetadata("box"), ImageSpec("localhost/demo")),
    "created",
    1,
    "/pods/5/c",
)
LIMITS = PodResources(Resources(cpu_shares=7))


class Sees(Hooks):
    """Notes what it is called with, then does what it was told to do."""

    def __init__(self, act=lambda: None):
        self.seen = []
        self.act = act

    async def _note(self, *facts):
        self.seen.append(facts)
        return await self.act() if asyncio.iscoroutinefunction(self.act) else self.act()

    @override
    @hookimpl
    async def polypod_before_sandbox_ready(self, sandbox):
        return await self._note("ready", sandbox)

    @override
    @hookimpl
    async def polypod_before_container_start(self, container):
        return await self._note("start", container)

    @override
    @hookimpl
    async def polypod_adjust_update(self, container, resources):
        return await self._note("update", container, resources)

    @override
    @hookimpl
    async def polypod_before_sandbox_resize(self, sandbox, limits):
        return await self._note("resize", sandbox, limits)

    @override
    @hookimpl
    async def polypod_before_sandbox_stop(self, sandbox):
        return await self._note("stop", sandbox)

    @override
    @hookimpl
    def polypod_sandbox_resized(self, sandbox):
        self.seen.append(("resized", sandbox))

    @override
    @hookimpl
    def polypod_container_created(self, container):
        self.seen.append(("created", container))

    @override
    @hookimpl
    def polypod_container_updated(self, container):
        self.seen.append(("updated", container))


CALLS = {
    "ready": lambda registry: registry.before_sandbox_ready(SANDBOX),
    "start": lambda registry: registry.before_container_start(CONTAINER),
    "update": lambda registry: registry.adjust_update(CONTAINER, Resources()),
    "resize": lambda registry: registry.before_sandbox_resize(SANDBOX, LIMITS),
    "stop": lambda registry: registry.before_sandbox_stop(SANDBOX),
}


async def test_hook_polypod_before_sandbox_ready():
    plugin = Sees()
    await Registry.of({"a": plugin}).before_sandbox_ready(SANDBOX)
    assert plugin.seen == [("ready", SANDBOX)]


async def test_hook_polypod_before_container_start():
    plugin = Sees()
    await Registry.of({"a": plugin}).before_container_start(CONTAINER)
    assert plugin.seen == [("start", CONTAINER)]


async def test_hook_polypod_adjust_update():
    more = Sees(lambda: Resources(cpu_shares=9))
    registry = Registry.of({"a": more, "b": Sees()})
    assert await registry.adjust_update(CONTAINER, Resources(cpu_shares=1)) == Resources(
        cpu_shares=9
    )
    assert more.seen == [("update", CONTAINER, Resources(cpu_shares=1))]


async def test_adjust_update_hands_on_what_the_one_before_answered():
    last = Sees()
    registry = Registry.of({"a": Sees(lambda: Resources(cpu_shares=9)), "b": last})
    await registry.adjust_update(CONTAINER, Resources())
    assert last.seen == [("update", CONTAINER, Resources(cpu_shares=9))]


async def test_hook_polypod_before_sandbox_resize():
    plugin = Sees()
    await Registry.of({"a": plugin}).before_sandbox_resize(SANDBOX, LIMITS)
    assert plugin.seen == [("resize", SANDBOX, LIMITS)]


async def test_hook_polypod_before_sandbox_stop():
    plugin = Sees()
    await Registry.of({"a": plugin}).before_sandbox_stop(SANDBOX)
    assert plugin.seen == [("stop", SANDBOX)]


async def test_before_sandbox_stop_reaches_all_whatever_one_does():
    def refuse():
        raise FailedPrecondition("not yet")

    plugins = {"a": Sees(refuse), "b": Sees(refuse), "c": Sees()}
    with pytest.raises(FailedPrecondition, match=r"plugin a refuses sandbox 5555.*: not yet"):
        await Registry.of(plugins).before_sandbox_stop(SANDBOX)
    assert [plugin.seen for plugin in plugins.values()] == [[("stop", SANDBOX)]] * 3


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_refusal_names_plugin_and_object(call):
    def refuse():
        raise FailedPrecondition("no room")

    with pytest.raises(FailedPrecondition, match=r"plugin policy refuses (sandbox 5|container c)"):
        await call(Registry.of({"policy": Sees(refuse)}))


async def _hangs():
    await asyncio.sleep(1000)


def _raises():
    raise RuntimeError("broken inside")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("act", "reason"),
    [(_hangs, "did not return within"), (_raises, "broken inside"), (lambda: 7, "returned a int")],
    ids=["hangs", "raises", "nonsense"],
)
async def test_an_evil_plugin_is_contained_and_named(call, act, reason):
    registry = Registry.of({"evil": Sees(act)}, hook_timeout_s=0.1 if act is _hangs else 60)
    with pytest.raises(BackendError, match=rf"plugin evil: polypod_\w+ .*{reason}"):
        await call(registry)


async def test_after_some_failures_in_a_row_a_plugin_is_not_asked_any_more():
    plugin = Sees(_raises)
    registry = Registry.of({"evil": plugin})
    for _ in range(BREAK_AFTER):
        with pytest.raises(BackendError):
            await registry.before_sandbox_ready(SANDBOX)
    await registry.before_sandbox_ready(SANDBOX)
    assert len(plugin.seen) == BREAK_AFTER


def test_hook_polypod_sandbox_resized():
    plugin = Sees()
    Registry.of({"a": plugin}).notify_sandbox_resized(SANDBOX)
    assert plugin.seen == [("resized", SANDBOX)]


def test_hook_polypod_container_created():
    plugin = Sees()
    Registry.of({"a": plugin}).notify_container_created(CONTAINER)
    assert plugin.seen == [("created", CONTAINER)]


def test_hook_polypod_container_updated():
    plugin = Sees()
    Registry.of({"a": plugin}).notify_container_updated(CONTAINER)
    assert plugin.seen == [("updated", CONTAINER)]


async def test_a_plugin_that_sleeps_is_not_called():
    plugin = Sees(_raises)
    plugin.asleep = True
    registry = Registry.of({"a": plugin})
    for call in CALLS.values():
        await call(registry)
    registry.notify_container_created(CONTAINER)
    assert plugin.seen == []
    plugin.asleep = False
    registry.notify_container_created(CONTAINER)
    assert plugin.seen == [("created", CONTAINER)]
