"""Updates of limits: what reaches the backend, what is on record, what a failure leaves."""

import pytest

from polypod.plugin.errors import BackendError, FailedPrecondition, InvalidArgument, Unsupported
from polypod.plugin.requests import Resources
from polypod.plugin.runtime import PodResources


async def running(bench) -> str:
    sandbox = await bench.core.run_sandbox(bench.sandbox_config(), "")
    container = await bench.core.create_container(sandbox, bench.container_config(), None)
    await bench.core.start_container(container)
    return container


async def told(bench, container: str) -> Resources:
    return (await bench.core.container_status(container)).resources


async def test_only_what_changes_reaches_the_backend(bench):
    container = await running(bench)
    await bench.core.update_container(container, Resources(cpu_shares=7))
    assert bench.world.limits[container] == Resources(cpu_shares=7)
    assert (await told(bench, container)).cpu_shares == 7


async def test_a_created_container_is_changed_on_record_alone(bench):
    sandbox = await bench.core.run_sandbox(bench.sandbox_config(), "")
    container = await bench.core.create_container(sandbox, bench.container_config(), None)
    await bench.core.update_container(container, Resources(cpu_shares=7))
    assert container not in bench.world.limits
    await bench.core.start_container(container)
    assert bench.world.specs[container].config.linux.resources.cpu.shares == 7


async def test_a_refusal_leaves_the_record(bench):
    container = await running(bench)
    bench.world.faults.errors["update"] = [BackendError("the kernel says no")]
    with pytest.raises(BackendError, match="kernel says no"):
        await bench.core.update_container(container, Resources(cpu_shares=7))
    assert (await told(bench, container)).cpu_shares == 0


async def test_a_failure_after_the_backend_puts_the_old_limits_back(bench):
    await bench.stop()
    bench.failpoints = "container.update.applied=1*error(disk full)->off"
    await bench.start()
    container = await running(bench)
    with pytest.raises(Exception, match="disk full"):
        await bench.core.update_container(container, Resources(cpu_shares=7))
    assert bench.world.limits[container] == Resources(cpu_shares=1024)
    assert (await told(bench, container)).cpu_shares == 0


async def test_a_pod_resize_is_kept_apart_from_its_request(bench):
    config = bench.sandbox_config()
    sandbox = await bench.core.run_sandbox(config, "")
    await bench.core.update_sandbox(sandbox, Resources(cpu_shares=2), Resources(cpu_shares=7))
    await bench.core.update_sandbox(sandbox, None, Resources(memory_limit_in_bytes=9))
    assert bench.world.limits[sandbox] == PodResources(
        Resources(cpu_shares=7, memory_limit_in_bytes=9), Resources(cpu_shares=2)
    )
    assert await bench.core.run_sandbox(config, "") == sandbox
    bench.world.faults.errors["resize"] = [BackendError("no")]
    with pytest.raises(BackendError):
        await bench.core.update_sandbox(sandbox, None, Resources(cpu_shares=99))
    info = (await bench.core.sandbox_status(sandbox, verbose=True)).info
    assert info["limits"]["resources"]["cpu_shares"] == 7


async def test_a_handler_without_limits_refuses(bench):
    sandbox = await bench.core.run_sandbox(bench.sandbox_config(), "bare")
    with pytest.raises(Unsupported, match="resources"):
        await bench.core.update_sandbox(sandbox, None, Resources(cpu_shares=7))


async def test_nothing_asked_for_is_an_error_for_a_pod_and_none_for_a_container(bench):
    container = await running(bench)
    await bench.core.update_container(container, Resources())
    assert container not in bench.world.limits
    sandbox = (await bench.core.container_status(container)).sandbox_id
    with pytest.raises(InvalidArgument):
        await bench.core.update_sandbox(sandbox, None, None)
    await bench.core.stop_container(container, 0)
    with pytest.raises(FailedPrecondition, match="exited"):
        await bench.core.update_container(container, Resources(cpu_shares=7))
