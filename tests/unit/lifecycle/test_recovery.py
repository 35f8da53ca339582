from __future__ import annotations

import asyncio

import pytest

from polypod.lifecycle.failpoints import POINTS
from polypod.lifecycle.views import ContainerState, Filter, SandboxState
from polypod.plugin.errors import AlreadyExists, BackendError
from polypod.plugin.requests import Resources


async def settle():
    for _ in range(60):
        await asyncio.sleep(0)


async def crash(bench):
    """End the daemon as SIGKILL would: nothing of it runs any further, not even its undo steps."""
    world, snapshot = bench.world, {}
    for name in ("namespaces", "leases", "sandboxes", "containers", "rootfs", "streams"):
        snapshot[name] = getattr(world, name).copy()
    saved = (bench.directory / "root/polypod.db").with_name("saved.db")
    copy = __import__("sqlite3").connect(saved)
    bench.database._connection.backup(copy)
    copy.close()
    await bench.stop()
    for name, value in snapshot.items():
        setattr(world, name, value)
    world.faults.gates.clear()
    for suffix in ("", "-wal", "-shm"):
        (bench.directory / f"root/polypod.db{suffix}").unlink(missing_ok=True)
    saved.rename(bench.directory / "root/polypod.db")


async def test_restart_keeps_a_running_pod_and_can_stop_it(bench):
    sandbox, container = await bench.running()
    before = await bench.core.container_status(container)
    core = await bench.restart()
    assert await core.container_status(container) == before
    assert (await core.sandbox_status(sandbox)).state is SandboxState.READY
    await core.stop_container(container, 0)
    assert (await core.container_status(container)).exit_code == 137
    await core.remove_sandbox(sandbox)
    assert bench.world.nothing_left()


async def test_restart_learns_the_exit_that_happened_meanwhile(bench):
    _, container = await bench.running()
    await bench.stop()
    bench.world.end(container, 42)
    core = await bench.start()
    view = await core.container_status(container)
    assert (view.state, view.exit_code) == (ContainerState.EXITED, 42)


async def test_restart_reports_a_vanished_container_as_unknown_never_zero(bench):
    _, container = await bench.running()
    await bench.stop()
    del bench.world.containers[container]
    core = await bench.start()
    view = await core.container_status(container)
    assert (view.exit_code, view.reason) == (255, "Unknown")


async def test_restart_sees_a_dead_sandbox(bench):
    sandbox = await bench.pod()
    await bench.stop()
    bench.world.sandboxes[sandbox] = False
    core = await bench.start()
    assert (await core.sandbox_status(sandbox)).state is SandboxState.NOT_READY


async def test_restart_sees_lost_namespaces(bench):
    sandbox = await bench.pod()
    await bench.stop()
    del bench.world.namespaces[sandbox]
    core = await bench.start()
    assert (await core.sandbox_status(sandbox)).state is SandboxState.NOT_READY


async def test_restart_removes_what_has_no_record(bench):
    await bench.stop()
    world = bench.world
    world.namespaces["a" * 64] = frozenset({"ipc"})
    world.leases["b" * 64] = "10.0.0.9"
    world.sandboxes["c" * 64] = True
    world.rootfs.add("d" * 64)
    (bench.directory / "state/sandboxes" / ("e" * 64)).mkdir(parents=True)
    await bench.start()
    assert world.nothing_left()
    assert not list((bench.directory / "state/sandboxes").iterdir())
    assert len(bench.recovered.orphans) == 5


async def test_restart_starts_a_container_created_before(bench):
    sandbox = await bench.pod()
    container = await bench.core.create_container(sandbox, bench.container_config(), None)
    core = await bench.restart()
    await core.start_container(container)
    assert bench.world.specs[container].config.process.args == ("sleep", "9")


async def test_names_survive_a_restart(bench):
    sandbox = await bench.pod()
    core = await bench.restart()
    assert await core.run_sandbox(bench.sandbox_config(), "") == sandbox
    with pytest.raises(AlreadyExists):
        await core.run_sandbox(bench.sandbox_config(hostname="other"), "")


async def test_reboot_leaves_records_that_say_so_and_frees_addresses(bench):
    sandbox, container = await bench.running()
    await bench.stop()
    bench.boot = "boot-2"
    world = bench.world
    world.namespaces.clear()
    world.sandboxes.clear()
    world.containers.clear()
    core = await bench.start()
    status = await core.sandbox_status(sandbox)
    assert (status.state, status.ips) == (SandboxState.NOT_READY, ())
    assert (await core.container_status(container)).exit_code == 255
    assert not world.leases
    await core.remove_sandbox(sandbox)
    assert world.nothing_left()
    await bench.pod()


async def test_one_garbage_record_costs_one_object(bench):
    kept = await bench.pod("kept")
    lost = await bench.pod("lost")
    bench.database.put("sandbox", lost, '{"id": "trunc')
    core = await bench.restart()
    assert [view.id for view in await core.list_sandboxes(Filter())] == [kept]
    assert f"sandbox/{lost}" in (await core.status(verbose=True)).info["quarantined"]
    assert set(bench.world.sandboxes) == {kept}


async def test_broken_event_stream_is_opened_again_and_compared(bench):
    _, container = await bench.running()
    bench.world.end(container, 9, tell=False)
    for queue in list(bench.world.queues):
        queue.put_nowait(RuntimeError("the stream broke"))
    await bench.clock.advance(2)
    assert (await bench.core.container_status(container)).exit_code == 9


# Every failpoint, with every fault: nothing is left, or it is listed and removable (F1, F2).


async def tick(bench):
    """Let virtual time run: retries and grace periods end by themselves."""
    while True:
        await asyncio.sleep(0.001)
        await bench.clock.advance(1)


async def churn(bench):
    ticking = asyncio.ensure_future(tick(bench))
    try:
        return await asyncio.wait_for(one_life(bench), 10)
    finally:
        ticking.cancel()


async def one_life(bench):
    """One whole life; every failpoint lies on its way. Errors are the point, so they are kept."""
    errors = []
    core = bench.core

    async def attempt(call):
        try:
            return await call
        except (BackendError, OSError, AlreadyExists) as error:
            errors.append(error)
            return None

    sandbox = await attempt(core.run_sandbox(bench.sandbox_config(), ""))
    if sandbox is not None:
        await attempt(core.update_sandbox(sandbox, None, Resources(cpu_shares=7)))
        config = bench.container_config()
        container = await attempt(core.create_container(sandbox, config, None))
        if container is not None:
            await attempt(core.update_container(container, Resources(cpu_shares=7)))
            await attempt(core.start_container(container))
            await attempt(core.stop_container(container, 5))
            await attempt(core.remove_container(container))
        await attempt(core.stop_sandbox(sandbox))
        await attempt(core.remove_sandbox(sandbox))
    return errors


async def clean(bench):
    """Do what the kubelet does with what is listed."""
    for view in await bench.core.list_sandboxes(Filter()):
        await bench.core.stop_sandbox(view.id)
        await bench.core.remove_sandbox(view.id)
    await settle()
    assert await bench.core.list_containers(Filter()) == []
    assert bench.world.nothing_left()


async def test_every_failpoint_lies_on_the_way(bench, monkeypatch):
    seen = []
    hit = bench.core._heart.failpoints.hit

    async def note(point):
        seen.append(point)
        await hit(point)

    monkeypatch.setattr(bench.core._heart.failpoints, "hit", note)
    assert await churn(bench) == []
    assert set(seen) == set(POINTS)
    assert bench.world.nothing_left()


@pytest.mark.parametrize("action", ["error(on purpose)", "enospc", "emfile"])
@pytest.mark.parametrize("point", POINTS)
async def test_fault_at_every_failpoint_leaves_nothing_or_something_removable(bench, point, action):
    bench.core._heart.failpoints.set(point, f"1*{action}")
    await churn(bench)
    assert not bench.core._heart.failpoints._rules[point][0].take(), "the point was not reached"
    await clean(bench)
    assert await churn(bench) == []


@pytest.mark.parametrize("point", POINTS)
async def test_cancel_at_every_failpoint_leaves_nothing_or_something_removable(bench, point):
    """The server is stopped while a call hangs at the point: it is undone, or found at the restart."""
    bench.core._heart.failpoints.set(point, "1*hang")
    call = asyncio.ensure_future(churn(bench))
    await settle()
    await asyncio.sleep(0.01)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await bench.restart()
    await clean(bench)
    assert await churn(bench) == []


@pytest.mark.parametrize("point", POINTS)
async def test_crash_at_every_failpoint_leaves_nothing_or_something_removable(bench, point):
    bench.core._heart.failpoints.set(point, "1*hang")
    call = asyncio.ensure_future(churn(bench))
    await settle()
    await asyncio.sleep(0.01)
    call.cancel()
    await crash(bench)
    await asyncio.gather(call, return_exceptions=True)
    await bench.start()
    await clean(bench)
    assert await churn(bench) == []


async def test_hang_of_one_pod_holds_no_other_back(bench):
    bench.core._heart.failpoints.set("sandbox.attached", "1*hang")
    stuck = asyncio.ensure_future(bench.pod("stuck"))
    await settle()
    await bench.running("free")
    await bench.clock.advance(241)
    with pytest.raises(BackendError, match="attach to the network"):
        await stuck
    assert len(bench.world.leases) == 1
