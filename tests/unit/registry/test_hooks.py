"""Every hook, driven through the registry: choose, adjust, observe, and evil plugins in each (F14)."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest

from polypod.plugin import (
    BackendError,
    ContainerConfig,
    ContainerId,
    ContainerMetadata,
    ExitStatus,
    FailedPrecondition,
    Hooks,
    ImageSpec,
    ImageStoreType,
    OciConfig,
    PodMetadata,
    Process,
    RootfsForm,
    SandboxConfig,
    SandboxId,
    SandboxRequest,
    hookimpl,
    override,
)
from polypod.plugin.observer import CommandType, ObserverType
from polypod.registry import Registry
from polypod.registry.records import BREAK_AFTER

SANDBOX = SandboxConfig(PodMetadata("pod", "uid", "ns"))
REQUEST = SandboxRequest(SANDBOX, "namespaces")
CONTAINER = ContainerConfig(ContainerMetadata("box"), ImageSpec("localhost/demo"))
CONFIG = OciConfig(Process(args=("true",)))
SANDBOX_ID, CONTAINER_ID = SandboxId("5" * 64), ContainerId("c" * 64)


async def adjust(registry, config=CONFIG):
    return await registry.adjust(CONTAINER_ID, SANDBOX_ID, SANDBOX, CONTAINER, config)


async def _open(_context):
    raise NotImplementedError


# Offer


def test_hook_polypod_runtime_types(evil):
    registry = Registry.of({"mine": evil.Offers([evil.runtime_type("fast")])})
    assert list(registry.runtime_types) == ["fast"]


class Everything(Hooks):
    @override
    @hookimpl
    def polypod_image_stores(self):
        return [ImageStoreType("store", "for tests", _open, (RootfsForm.OVERLAY,))]

    @override
    @hookimpl
    def polypod_observers(self):
        return (ObserverType("watcher", "for tests", _open, unusable="no socket"),)

    @override
    @hookimpl
    def polypod_commands(self):
        return [CommandType("extra", "for tests", lambda _parser: None, lambda _args: 0)]


def test_hook_polypod_image_stores():
    assert list(Registry.of({"mine": Everything()}).image_stores) == ["store"]


def test_hook_polypod_network_types(evil):
    assert list(Registry.of({"mine": evil.OffersNetwork()}).network_types) == ["net"]


def test_hook_polypod_observers():
    registry = Registry.of({"mine": Everything()})
    assert registry.observers["watcher"].unusable == "no socket"
    offers = {offer.name: offer.unusable for offer in registry.plugins()[0].offers}
    assert offers == {"store": "", "watcher": "no socket", "extra": ""}


def test_hook_polypod_commands():
    assert Registry.of({"mine": Everything()}).commands["extra"].run(None) == 0


# Choose


def test_hook_polypod_choose_handler(evil):
    seen = []
    registry = Registry.of({"a": evil.Chooses(seen.append), "b": evil.Chooses(lambda _r: "vm")})
    assert registry.choose_handler(REQUEST) == "vm"
    assert seen == [REQUEST]


def test_choose_takes_the_first_opinion_in_order(evil):
    plugins = {"a": evil.Chooses(lambda _r: "of-a"), "b": evil.Chooses(lambda _r: "of-b")}
    assert Registry.of(plugins).choose_handler(REQUEST) == "of-a"
    assert Registry.of(plugins, order=["b"]).choose_handler(REQUEST) == "of-b"


def test_choose_is_none_without_opinions(evil):
    assert Registry.of({}).choose_handler(REQUEST) is None
    assert Registry.of({"a": evil.Chooses(lambda _r: None)}).choose_handler(REQUEST) is None


def test_choose_refusal_names_the_plugin(evil):
    def refuse(_request):
        raise FailedPrecondition("no privileged pods here")

    with pytest.raises(FailedPrecondition, match="plugin policy refuses: no privileged pods here"):
        Registry.of({"policy": evil.Chooses(refuse)}).choose_handler(REQUEST)


@pytest.mark.parametrize("mishap", ["raises", "exits", "a-number"])
def test_choose_contains_an_evil_plugin(evil, mishap):
    function = {"raises": evil.raises, "exits": evil.exits, "a-number": lambda _r: 7}[mishap]
    registry = Registry.of({"evil": evil.Chooses(function)})
    with pytest.raises(BackendError, match="plugin evil: polypod_choose_handler"):
        registry.choose_handler(REQUEST)


# Adjust


async def test_hook_polypod_adjust_container(evil):
    registry = Registry.of({"mine": evil.Adjusts(lambda c: replace(c, hostname="adjusted"))})
    assert (await adjust(registry)).hostname == "adjusted"


async def test_adjust_walks_the_plugins_in_order(evil):
    def add(letter):
        return lambda config: replace(config, hostname=config.hostname + letter)

    async def add_later(config):
        await asyncio.sleep(0)
        return replace(config, hostname=config.hostname + "b")

    plugins = {"a": evil.Adjusts(add("a")), "b": evil.AdjustsAsync(add_later)}
    plugins["c"] = evil.Adjusts(add("c"))
    assert (await adjust(Registry.of(plugins))).hostname == "abc"
    assert (await adjust(Registry.of(plugins, order=["c", "b"]))).hostname == "cba"


async def test_adjust_none_leaves_the_config(evil):
    registry = Registry.of({"mine": evil.Adjusts(lambda _config: None)})
    assert await adjust(registry) is CONFIG


async def test_adjust_refusal_names_plugin_and_container(evil):
    def refuse(_config):
        raise FailedPrecondition("not signed")

    for plugin in (evil.Adjusts(refuse), evil.AdjustsAsync(refuse)):
        with pytest.raises(FailedPrecondition, match=f"policy refuses container {CONTAINER_ID}"):
            await adjust(Registry.of({"policy": plugin}))


EVIL = {
    "raises": ("Adjusts", "raises", "RuntimeError: broken inside"),
    "exits": ("Adjusts", "exits", "SystemExit"),
    "hangs": ("Adjusts", "hangs", "did not return within 0.1 s"),
    "nonsense": ("Adjusts", "answers_nonsense", "returned a str, not an OciConfig"),
    "hollow": ("Adjusts", "answers_hollow", "process is a NoneType"),
    "raises-async": ("AdjustsAsync", "raises", "RuntimeError: broken inside"),
    "exits-async": ("AdjustsAsync", "exits_async", "SystemExit"),
    "hangs-async": ("AdjustsAsync", "hangs_async", "did not return within 0.1 s"),
    "refuses-to-end": ("AdjustsAsync", "refuses_to_end", "did not return within 0.1 s"),
    "cancels-itself": ("AdjustsAsync", "cancels_itself", "cancelled itself"),
    "nonsense-async": ("AdjustsAsync", "answers_nonsense", "TypeError"),
}


@pytest.mark.parametrize(("kind", "function", "reason"), EVIL.values(), ids=EVIL)
async def test_adjust_contains_an_evil_plugin(evil, kind, function, reason):
    plugin = getattr(evil, kind)(getattr(evil, function))
    # Only what hangs is held against the clock: a busy host must not make the others late.
    registry = Registry.of({"evil": plugin}, hook_timeout_s=0.1 if "within" in reason else 60)
    with pytest.raises(BackendError) as caught:
        await adjust(registry)
    text = str(caught.value)
    assert f"container {CONTAINER_ID}: plugin evil: polypod_adjust_container" in text
    assert reason in text


async def test_adjust_that_blocks_the_loop_is_found_out(evil):
    async def blocks(_config):
        evil.time.sleep(0.15)

    registry = Registry.of({"evil": evil.AdjustsAsync(blocks)}, hook_timeout_s=0.1)
    with pytest.raises(BackendError, match=r"did not return within 0.1 s"):
        await adjust(registry)


async def test_adjust_leaves_the_loop_free_while_a_plain_plugin_hangs(evil):
    registry = Registry.of({"evil": evil.Adjusts(evil.hangs)}, hook_timeout_s=0.3)
    call = asyncio.ensure_future(adjust(registry))
    turns = 0
    while not call.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert turns > 3
    assert isinstance(call.exception(), BackendError)


async def test_adjust_can_be_cancelled(evil):
    registry = Registry.of({"evil": evil.AdjustsAsync(evil.hangs_async)})
    call = asyncio.ensure_future(adjust(registry))
    await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_breaker_leaves_a_failing_plugin_out(evil, caplog):
    good = evil.Adjusts(lambda c: replace(c, hostname="good"))
    registry = Registry.of({"evil": evil.Adjusts(evil.raises), "good": good})
    for _ in range(BREAK_AFTER):
        with pytest.raises(BackendError):
            await adjust(registry)
    assert (await adjust(registry)).hostname == "good"
    info = {plugin.name: plugin for plugin in registry.plugins()}
    assert info["evil"].state == "broken"
    assert "3 failures in a row" in info["evil"].reason
    assert "plugin broken name=evil" in caplog.text


async def test_breaker_counts_failures_in_a_row_only(evil):
    calls = []

    def sometimes(_config):
        calls.append(1)
        if len(calls) % BREAK_AFTER:
            raise RuntimeError("now and then")

    registry = Registry.of({"flaky": evil.Adjusts(sometimes)})
    for number in range(1, 3 * BREAK_AFTER + 1):
        if number % BREAK_AFTER:
            with pytest.raises(BackendError):
                await adjust(registry)
        else:
            await adjust(registry)
    assert registry.plugins()[0].state == "loaded"


async def test_breaker_of_a_required_plugin_fails_the_calls(evil):
    """A policy that is required must not be left out because it is broken."""
    calls = []

    def fails(_config):
        calls.append(1)
        raise RuntimeError("broken")

    registry = Registry.of({"policy": evil.Adjusts(fails)}, required=["policy"])
    for _ in range(BREAK_AFTER + 2):
        with pytest.raises(BackendError, match="policy"):
            await adjust(registry)
    assert len(calls) == BREAK_AFTER


# Observe

FACTS = {
    "sandbox_ready": (SANDBOX_ID, SANDBOX, "namespaces"),
    "sandbox_stopped": (SANDBOX_ID,),
    "sandbox_removed": (SANDBOX_ID,),
    "container_started": (CONTAINER_ID, 4711),
    "container_exited": (CONTAINER_ID, ExitStatus(0)),
    "container_removed": (CONTAINER_ID,),
}


def told(evil, name):
    """Notify of one thing and return what two observers, one of them failing, were told."""
    seen = []

    def fail(*_facts):
        raise RuntimeError("broken inside")

    registry = Registry.of(
        {"a": evil.Observes(fail), "b": evil.Observes(lambda *facts: seen.append(facts))}
    )
    getattr(registry, f"notify_{name}")(*FACTS[name])
    return seen


def test_hook_polypod_sandbox_ready(evil, caplog):
    assert told(evil, "sandbox_ready") == [("sandbox_ready", *FACTS["sandbox_ready"])]
    assert "plugin a: polypod_sandbox_ready failed" in caplog.text


def test_hook_polypod_sandbox_stopped(evil):
    assert told(evil, "sandbox_stopped") == [("sandbox_stopped", *FACTS["sandbox_stopped"])]


def test_hook_polypod_sandbox_removed(evil):
    assert told(evil, "sandbox_removed") == [("sandbox_removed", *FACTS["sandbox_removed"])]


def test_hook_polypod_container_started(evil):
    assert told(evil, "container_started") == [("container_started", *FACTS["container_started"])]


def test_hook_polypod_container_exited(evil):
    assert told(evil, "container_exited") == [("container_exited", *FACTS["container_exited"])]


def test_hook_polypod_container_removed(evil):
    assert told(evil, "container_removed") == [("container_removed", *FACTS["container_removed"])]


@pytest.mark.parametrize("mishap", [SystemExit(1), RuntimeError("x"), FailedPrecondition("no")])
def test_notify_never_raises(evil, mishap, caplog):
    def fail(*_facts):
        raise mishap

    registry = Registry.of({"evil": evil.Observes(fail)})
    with caplog.at_level(logging.WARNING):
        for _ in range(BREAK_AFTER + 1):
            registry.notify_sandbox_stopped(SANDBOX_ID)
    assert caplog.text.count("plugin evil: polypod_sandbox_stopped failed") == BREAK_AFTER
    assert registry.plugins()[0].state == "broken"


def test_notify_finds_out_a_slow_observer(evil, caplog):
    registry = Registry.of(
        {"slow": evil.Observes(lambda *_facts: evil.time.sleep(0.02))}, hook_timeout_s=0.001
    )
    registry.notify_container_removed(CONTAINER_ID)
    assert "plugin slow: polypod_container_removed failed: took" in caplog.text


def test_notify_of_a_broken_required_plugin_is_left_out(evil):
    def fail(*_facts):
        raise RuntimeError("broken")

    registry = Registry.of({"must": evil.Observes(fail)}, required=["must"])
    for _ in range(BREAK_AFTER + 1):
        registry.notify_sandbox_removed(SANDBOX_ID)
    assert registry.plugins()[0].state == "broken"


def test_hook_gets_the_arguments_that_it_names():
    seen = []

    class Few(Hooks):
        @hookimpl
        def polypod_container_started(self, container_id):
            seen.append(container_id)

    Registry.of({"few": Few()}).notify_container_started(CONTAINER_ID, 1)
    assert seen == [CONTAINER_ID]
