"""Each part is opened on its own: one that fails costs itself, unless it is required."""

from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from polypod import config
from polypod.boot import opening, places, processes
from polypod.plugin.errors import BackendError, FailedPrecondition
from polypod.plugin.hooks import Hooks, hookimpl
from polypod.plugin.images import ImageStoreType
from polypod.plugin.network import NetworkType
from polypod.plugin.rootfs import RootfsForm
from polypod.plugin.runtime import RuntimeType
from polypod.registry import Registry
from polypod.testing.fakes import MEMORY_IMAGES, FakeLogs, FakeSupervisor
from polypod.testing.plugin import plugin as simulator


async def broken(_context):
    raise BackendError("the daemon behind it is away")


class Odd(Hooks):
    @hookimpl
    def polypod_runtime_types(self):
        block = (RootfsForm.BLOCK,)
        return (
            RuntimeType("broken", "does not open", broken, (RootfsForm.DIRECTORY,)),
            RuntimeType("never", "cannot", broken, (RootfsForm.DIRECTORY,), unusable="no such cpu"),
            RuntimeType("vmlike", "wants a disk", broken, block),
        )

    @hookimpl
    def polypod_image_stores(self):
        return (ImageStoreType("rotten", "does not open", broken, (RootfsForm.DIRECTORY,)),)

    @hookimpl
    def polypod_network_types(self):
        return (NetworkType("cut", "does not open", broken),)


async def nothing():
    pass


@pytest.fixture
async def opener(tmp_path):
    async with AsyncExitStack() as closers:

        def make(*settings):
            registry = Registry.of({"simulator": simulator, "odd": Odd()})
            parts = processes.Processes(FakeSupervisor(), FakeLogs(), nothing, nothing)
            where = places.make(tmp_path / "root", tmp_path / "state")
            loaded = config.load(None, ["server.default_handler=sim", *settings])
            return opening.Opener(loaded, registry, where, parts, closers)

        yield make


SIM = "handlers.sim.type=simulator"


async def test_handlers_that_open_and_those_that_do_not(opener):
    handlers, unusable = await opener(
        SIM, "handlers.a.type=broken", "handlers.b.type=never", "handlers.c.type=nobody",
        "handlers.a.image_store=memory",
    ).handlers()  # fmt: skip
    assert list(handlers) == ["sim"]
    reasons = {view.name: view.unusable for view in unusable}
    assert reasons["a"] == "the daemon behind it is away"
    assert reasons["b"] == "no such cpu"
    assert "there are: broken" in reasons["c"]


async def test_a_store_that_makes_no_form_of_the_type_is_refused(opener):
    _handlers, unusable = await opener(
        SIM, "handlers.v.type=vmlike", "handlers.v.image_store=memory"
    ).handlers()
    assert "image store 'memory' makes directory, the type accepts block" in unusable[0].unusable


async def test_handlers_of_one_store_share_it(opener):
    made = opener(SIM, "handlers.sim2.type=simulator")
    handlers, _unusable = await made.handlers()
    assert handlers["sim"].image_store is handlers["sim2"].image_store
    assert await made.default_store(handlers) is handlers["sim"].image_store


@pytest.mark.parametrize(
    ("settings", "call"),
    [
        (["handlers.a.type=broken", "handlers.a.image_store=memory"], "handlers"),
        (["network.type=cut"], "network"),
    ],
)
async def test_a_required_plugin_stops_the_start(opener, settings, call):
    made = opener(SIM, *settings)
    made.config = replace(made.config, plugins=replace(made.config.plugins, required=["odd"]))
    with pytest.raises(FailedPrecondition, match=r"required plugin 'odd'.*daemon behind it"):
        await getattr(made, call)()


async def test_a_network_that_does_not_open_says_so_in_status(opener):
    network = await opener(SIM, "network.type=cut").network()
    status = await network.status()
    assert (status.ready, status.reason) == (False, "NetworkUnusable")
    assert "daemon behind it" in status.message
    assert list(await network.attached()) == []


async def test_a_simulated_server_has_the_network_in_memory_unless_told_another(opener):
    assert (await (await opener(SIM).network()).status()).ready
    told = await opener(SIM, "network.type=bridge").network()
    assert "no plugin offers network 'bridge'" in (await told.status()).message


async def test_a_store_that_does_not_open_lists_nothing_and_says_why(opener):
    made = opener(SIM, "handlers.sim.image_store=rotten")
    handlers, unusable = await made.handlers()
    assert not handlers
    assert unusable[0].is_default
    store = await made.default_store(handlers)
    with pytest.raises(FailedPrecondition, match="daemon behind it"):
        await store.list()
    assert list(await store.prepared()) == []
    assert (await store.filesystem_usage()).used_bytes == 0


async def test_a_part_that_hangs_does_not_hold_the_start(opener, monkeypatch):
    import asyncio

    monkeypatch.setattr(opening, "OPEN_S", 0.01)
    made = opener(SIM)
    hanging = replace(MEMORY_IMAGES, open=lambda _context: asyncio.sleep(1e6))
    made.registry.image_stores["memory"] = hanging
    handlers, unusable = await made.handlers()
    assert (handlers, unusable[0].unusable) == ({}, "did not open within 0.01 s")
