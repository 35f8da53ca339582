from __future__ import annotations

import asyncio
import json
import os

import pytest

from polypod.lifecycle.views import ContainerState, Filter, SandboxState
from polypod.plugin.errors import (
    AlreadyExists,
    BackendError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unsupported,
)
from polypod.plugin.requests import (
    ContainerMetadata,
    ContainerSecurity,
    ImageSpec,
    Mount,
    MountPropagation,
    NamespaceMode,
    NamespaceOptions,
    SandboxSecurity,
    SelinuxOptions,
)

HOST_NETWORK = SandboxSecurity(namespaces=NamespaceOptions(network=NamespaceMode.NODE))


async def settle():
    for _ in range(60):
        await asyncio.sleep(0)


async def test_run_sandbox_is_ready_with_an_address_and_its_files(bench):
    sandbox = await bench.pod()
    view = await bench.core.sandbox_status(sandbox)
    assert view.state is SandboxState.READY
    assert view.ips == ("10.0.0.2",)
    assert view.created_at_ns > 0
    assert bench.world.namespaces[sandbox] == {"network", "ipc", "uts", "pid"}
    files = bench.directory / "state/sandboxes" / sandbox
    assert (files / "hostname").read_text() == "pod\n"
    assert (files / "hosts").read_text() == "10.0.0.2"
    assert ("ready", sandbox) in bench.hooks.told


async def test_run_sandbox_on_the_hosts_network_has_no_address_and_no_lease(bench):
    config = bench.sandbox_config(security=HOST_NETWORK)
    sandbox = await bench.core.run_sandbox(config, "")
    view = await bench.core.sandbox_status(sandbox)
    assert view.ips == ()
    assert view.config.security.namespaces.network is NamespaceMode.NODE
    assert not bench.world.leases
    assert bench.world.namespaces[sandbox] == {"ipc", "pid"}


async def test_run_sandbox_refuses_a_hostname_before_anything_is_made(bench):
    bench.world.faults.gates["make_namespaces"] = asyncio.Event()  # nobody may get there
    with pytest.raises(InvalidArgument, match="hostname"):
        await bench.core.run_sandbox(bench.sandbox_config(hostname="a/b"), "")
    assert bench.world.nothing_left()


async def test_run_sandbox_20_times_at_once_makes_one(bench):
    config = bench.sandbox_config()
    ids = await asyncio.gather(*(bench.core.run_sandbox(config, "") for _ in range(20)))
    assert len(set(ids)) == 1
    assert len(bench.world.sandboxes) == len(bench.world.leases) == 1
    assert await bench.core.run_sandbox(config, "") == ids[0]


async def test_run_sandbox_with_another_config_names_the_holder(bench):
    sandbox = await bench.pod()
    with pytest.raises(AlreadyExists, match=sandbox):
        await bench.core.run_sandbox(bench.sandbox_config(hostname="other"), "")


async def test_run_sandbox_goes_on_after_the_client_has_left(bench):
    bench.world.faults.gates["attach"] = gate = asyncio.Event()
    call = asyncio.ensure_future(bench.pod())
    await settle()
    call.cancel()
    await settle()
    assert await bench.core.list_sandboxes(Filter()) == []
    again = asyncio.ensure_future(bench.pod())
    await settle()
    gate.set()
    sandbox = await again
    assert list(bench.world.sandboxes) == [sandbox]


async def test_run_sandbox_that_nobody_asks_for_again_is_listed(bench):
    bench.world.faults.gates["attach"] = gate = asyncio.Event()
    call = asyncio.ensure_future(bench.pod())
    await settle()
    call.cancel()
    gate.set()
    await settle()
    (view,) = await bench.core.list_sandboxes(Filter())
    changed = await bench.core.run_sandbox(bench.sandbox_config(hostname="changed"), "")
    assert changed != view.id
    assert list(bench.world.sandboxes) == [changed]


async def test_run_sandbox_names_an_unknown_handler(bench):
    with pytest.raises(NotFound, match="'gvisor'"):
        await bench.core.run_sandbox(bench.sandbox_config(), "gvisor")
    assert bench.world.nothing_left()


async def test_run_sandbox_follows_placement_and_reports_the_request(bench):
    bench.hooks.choice = "fake"
    sandbox = await bench.core.run_sandbox(bench.sandbox_config(), "bare")
    view = await bench.core.sandbox_status(sandbox, verbose=True)
    assert (view.handler, view.chosen_handler) == ("bare", "fake")
    json.dumps(view.info)


@pytest.mark.parametrize(
    "security",
    [
        HOST_NETWORK,
        SandboxSecurity(privileged=True),
        SandboxSecurity(namespaces=NamespaceOptions(pid=NamespaceMode.NODE)),
        SandboxSecurity(selinux=SelinuxOptions(level="s0")),
    ],
    ids=["network", "privileged", "pid", "selinux"],
)
async def test_run_sandbox_refuses_what_the_type_does_not_declare(bench, security):
    with pytest.raises(Unsupported, match="bare"):
        await bench.core.run_sandbox(bench.sandbox_config(security=security), "bare")
    assert await bench.core.list_sandboxes(Filter()) == []


async def test_run_sandbox_keeps_the_kind_of_error_and_names_id_and_step(bench):
    bench.world.faults.errors["attach"].append(ResourceExhausted("no address is left"))
    with pytest.raises(ResourceExhausted, match=r"sandbox [0-9a-f]{64}: attach to the network: no"):
        await bench.pod()
    assert bench.world.nothing_left()


async def test_failed_undo_keeps_the_sandbox_listed_and_removable(bench):
    bench.world.faults.errors["create_sandbox"].append(BackendError("no"))
    bench.world.faults.errors["detach"].append(BackendError("network away"))
    with pytest.raises(BackendError):
        await bench.pod()
    (view,) = await bench.core.list_sandboxes(Filter())
    assert view.state is SandboxState.UNKNOWN
    assert not bench.world.namespaces
    await bench.core.stop_sandbox(view.id)
    await bench.core.remove_sandbox(view.id)
    assert bench.world.nothing_left()
    await bench.pod()


async def test_stop_sandbox_kills_at_once_and_gives_the_network_back(bench):
    sandbox, container = await bench.running()
    await bench.core.stop_sandbox(sandbox)
    view = await bench.core.container_status(container)
    assert (view.state, view.exit_code, view.reason) == (ContainerState.EXITED, 137, "Error")
    assert bench.world.signals == [(container, 9)]
    status = await bench.core.sandbox_status(sandbox)
    assert (status.state, status.ips) == (SandboxState.NOT_READY, ())
    assert not bench.world.leases
    assert not bench.world.namespaces
    await bench.core.stop_sandbox(sandbox)
    assert bench.world.faults.calls.count("detach") == 1


async def test_stop_sandbox_that_failed_is_repeated_from_where_it_was(bench):
    sandbox = await bench.pod()
    bench.world.faults.errors["detach"].append(BackendError("CNI is away"))
    with pytest.raises(BackendError, match="CNI is away"):
        await bench.core.stop_sandbox(sandbox)
    assert bench.world.leases
    await bench.core.stop_sandbox(sandbox)
    assert not bench.world.leases


async def test_stop_and_remove_of_unknown_ids_succeed(bench):
    await bench.core.stop_sandbox("f" * 64)
    await bench.core.remove_sandbox("f" * 64)
    await bench.core.stop_container("f" * 64, 10)
    await bench.core.remove_container("f" * 64)
    await bench.core.remove_image("localhost/none:latest")


async def test_status_of_unknown_ids_is_not_found(bench):
    for call in (
        bench.core.sandbox_status("f" * 64),
        bench.core.container_status("f" * 64),
        bench.core.container_stats("f" * 64),
        bench.core.start_container("f" * 64),
        bench.core.exec_sync("f" * 64, ["true"], 0),
        bench.core.reopen_log("f" * 64),
        bench.core.create_container("f" * 64, bench.container_config(), None),
    ):
        with pytest.raises(NotFound):
            await call


async def test_remove_sandbox_forces_everything_and_frees_the_name(bench):
    sandbox, _ = await bench.running()
    await bench.core.remove_sandbox(sandbox)
    assert bench.world.nothing_left()
    assert await bench.core.list_containers(Filter()) == []
    assert os.listdir(bench.directory / "published") == []
    assert os.listdir(bench.directory / "state/sandboxes") == []
    assert await bench.pod() != sandbox


async def test_dead_sandbox_is_not_ready_at_once(bench):
    sandbox = await bench.pod()
    bench.world.die(sandbox)
    await settle()
    assert (await bench.core.sandbox_status(sandbox)).state is SandboxState.NOT_READY
    await bench.core.remove_sandbox(sandbox)
    assert bench.world.nothing_left()


async def test_container_lives_from_created_to_completed(bench):
    sandbox = await bench.pod()
    container = await bench.core.create_container(sandbox, bench.container_config(), None)
    created = await bench.core.container_status(container)
    assert created.state is ContainerState.CREATED
    assert created.image_ref.startswith("localhost/demo@sha256:")
    await bench.core.start_container(container)
    running = await bench.core.container_status(container)
    assert (running.state, running.pid) == (ContainerState.RUNNING, 77)
    published = bench.directory / "published" / container / "state.json"
    assert json.loads(published.read_text())["status"] == "running"
    bench.world.end(container, 0)
    await settle()
    ended = await bench.core.container_status(container)
    assert (ended.exit_code, ended.reason) == (0, "Completed")
    assert 0 < ended.started_at_ns <= ended.finished_at_ns
    assert not bench.world.streams
    assert bench.hooks.told.count(("exited", container)) == 1


@pytest.mark.parametrize(
    ("code", "oom", "wanted"),
    [(3, False, (3, "Error")), (137, True, (137, "OOMKilled")), (None, False, (255, "Unknown"))],
    ids=["error", "oom", "unknown"],
)
async def test_exit_has_its_reason(bench, code, oom, wanted):
    _, container = await bench.running()
    bench.world.end(container, code, oom=oom)
    await settle()
    view = await bench.core.container_status(container)
    assert (view.exit_code, view.reason) == wanted


async def test_exit_that_comes_before_start_has_answered_is_kept(bench):
    sandbox = await bench.pod()
    container = await bench.core.create_container(sandbox, bench.container_config(), None)
    bench.world.faults.gates["open_log"] = gate = asyncio.Event()
    start = asyncio.ensure_future(bench.core.start_container(container))
    await settle()
    backend_start = bench.backend.start

    async def quick(container_id):
        status = await backend_start(container_id)
        bench.world.end(container_id, 5)
        await settle()
        return status

    bench.backend.start = quick
    gate.set()
    await start
    await settle()
    assert (await bench.core.container_status(container)).exit_code == 5


async def test_start_that_fails_leaves_start_error(bench):
    sandbox = await bench.pod()
    container = await bench.core.create_container(sandbox, bench.container_config(), None)
    bench.world.faults.errors["start"].append(BackendError('exec: "nope": not found in $PATH'))
    with pytest.raises(BackendError, match="nope"):
        await bench.core.start_container(container)
    view = await bench.core.container_status(container)
    assert (view.state, view.exit_code, view.reason) == (ContainerState.EXITED, 128, "StartError")
    assert "nope" in view.message
    assert not bench.world.containers
    assert not bench.world.streams
    with pytest.raises(FailedPrecondition):
        await bench.core.start_container(container)


async def test_create_container_refuses_before_anything_is_made(bench):
    sandbox = await bench.pod()
    cases = [
        (NotFound, {"image": ImageSpec("localhost/absent:1")}),
        (InvalidArgument, {"image": ImageSpec("")}),
        (InvalidArgument, {"metadata": ContainerMetadata("")}),
        (InvalidArgument, {"log_path": "../../etc/cron.d/x"}),
        (InvalidArgument, {"security": ContainerSecurity(privileged=True)}),
        (Unsupported, {"security": ContainerSecurity(selinux=SelinuxOptions(level="s0"))}),
    ]
    for error, changes in cases:
        with pytest.raises(error):
            await bench.core.create_container(sandbox, bench.container_config(**changes), None)
    assert await bench.core.list_containers(Filter()) == []
    assert not bench.world.rootfs


async def test_create_container_20_times_at_once_makes_one(bench):
    sandbox = await bench.pod()
    config = bench.container_config()
    calls = (bench.core.create_container(sandbox, config, None) for _ in range(20))
    ids = await asyncio.gather(*calls)
    assert len(set(ids)) == len(bench.world.rootfs) == 1
    other = bench.container_config(command=("other",))
    with pytest.raises(AlreadyExists, match=ids[0]):
        await bench.core.create_container(sandbox, other, None)


async def test_create_and_start_need_a_ready_sandbox(bench):
    sandbox = await bench.pod()
    container = await bench.core.create_container(sandbox, bench.container_config(), None)
    await bench.core.stop_sandbox(sandbox)
    with pytest.raises(FailedPrecondition):
        await bench.core.start_container(container)
    with pytest.raises(FailedPrecondition):
        await bench.core.create_container(sandbox, bench.container_config("b"), None)


async def test_log_path_is_absolute_whatever_was_asked(bench):
    sandbox = await bench.core.run_sandbox(bench.sandbox_config(log_directory=""), "")
    for name, path in (("a", ""), ("b", "b/0.log")):
        config = bench.container_config(name, log_path=path)
        container = await bench.core.create_container(sandbox, config, None)
        view = await bench.core.container_status(container)
        assert view.log_path.is_relative_to(bench.directory / "root/logs" / sandbox)
        assert view.log_path.name


async def test_stop_container_waits_out_the_grace_then_kills(bench):
    _, container = await bench.running()
    bench.world.ignores_signals.add(container)
    stop = asyncio.ensure_future(bench.core.stop_container(container, 30))
    await bench.clock.advance(29)
    assert not stop.done()
    assert bench.world.signals == [(container, 15)]
    await bench.clock.advance(2)
    await stop
    assert bench.world.signals == [(container, 15), (container, 9)]
    assert (await bench.core.container_status(container)).exit_code == 137


async def test_stop_container_is_shortened_by_a_later_call_and_signals_once(bench):
    _, container = await bench.running()
    bench.world.ignores_signals.add(container)
    first = asyncio.ensure_future(bench.core.stop_container(container, 300))
    await settle()
    second = asyncio.ensure_future(bench.core.stop_container(container, 5))
    third = asyncio.ensure_future(bench.core.stop_container(container, 60))
    await bench.clock.advance(6)
    await asyncio.gather(first, second, third)
    assert bench.world.signals == [(container, 15), (container, 9)]


async def test_stop_container_uses_the_asked_signal(bench):
    sandbox = await bench.pod()
    config = bench.container_config(stop_signal=10)
    container = await bench.core.create_container(sandbox, config, None)
    await bench.core.start_container(container)
    await bench.core.stop_container(container, 10)
    assert bench.world.signals == [(container, 10)]
    assert (await bench.core.container_status(container)).stop_signal == 10


async def test_stop_container_believes_the_backend_when_no_event_comes(bench):
    _, container = await bench.running()
    bench.world.end(container, 7, tell=False)
    await bench.core.stop_container(container, 10)
    assert (await bench.core.container_status(container)).exit_code == 7


async def test_remove_container_kills_first_and_keeps_the_log(bench):
    _, container = await bench.running()
    log = (await bench.core.container_status(container)).log_path
    log.write_text("kept")
    await bench.core.remove_container(container)
    with pytest.raises(NotFound):
        await bench.core.container_status(container)
    assert log.read_text() == "kept"
    assert not bench.world.rootfs


async def test_remove_container_that_failed_can_be_repeated(bench):
    _, container = await bench.running()
    bench.world.faults.errors["release"].append(OSError(5, "Input/output error"))
    with pytest.raises(OSError, match="release the root file system"):
        await bench.core.remove_container(container)
    await bench.core.remove_container(container)
    assert not bench.world.rootfs


async def test_exec_sync_answers_output_and_code(bench):
    _, container = await bench.running()
    call = asyncio.ensure_future(bench.core.exec_sync(container, ["false"], 0))
    await settle()
    (session,) = bench.backend.sessions
    session.code = 1
    session.done.set()
    result = await call
    assert (result.stdout, result.stderr, result.exit_code) == (b"out", b"err", 1)


async def test_exec_sync_timeout_kills_the_exec_alone(bench):
    _, container = await bench.running()
    call = asyncio.ensure_future(bench.core.exec_sync(container, ["sleep", "99"], 3))
    await bench.clock.advance(4)
    with pytest.raises(DeadlineExceeded):
        await call
    assert bench.backend.sessions[0].killed == [9]
    assert (await bench.core.container_status(container)).state is ContainerState.RUNNING


async def test_exec_sync_whose_client_leaves_is_killed(bench):
    _, container = await bench.running()
    call = asyncio.ensure_future(bench.core.exec_sync(container, ["sleep", "99"], 0))
    await settle()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert bench.backend.sessions[0].killed == [9]


async def test_exec_and_reopen_need_a_running_container(bench):
    sandbox = await bench.pod()
    container = await bench.core.create_container(sandbox, bench.container_config(), None)
    with pytest.raises(FailedPrecondition):
        await bench.core.exec_sync(container, ["true"], 0)
    with pytest.raises(FailedPrecondition):
        await bench.core.reopen_log(container)
    assert "reopen" not in bench.world.faults.calls


async def test_lists_are_newest_first_and_filtered(bench):
    first, container = await bench.running("one")
    await bench.clock.advance(1)
    labels = {"app": "x"}
    config = bench.sandbox_config("two", labels=labels)
    second = await bench.core.run_sandbox(config, "")
    ids = [view.id for view in await bench.core.list_sandboxes(Filter())]
    assert ids == [second, first]
    found = await bench.core.list_sandboxes(Filter(labels=labels))
    assert [view.id for view in found] == [second]
    assert [view.id for view in await bench.core.list_sandboxes(Filter(id=first[:12]))] == [first]
    assert await bench.core.list_sandboxes(Filter(id="zz")) == []
    assert await bench.core.list_sandboxes(Filter(state="not-ready")) == []
    (listed,) = await bench.core.list_containers(Filter(sandbox_id=first[:12], state="running"))
    assert listed.id == container


async def test_id_prefixes_are_accepted_and_ambiguous_ones_refused(bench):
    sandbox = await bench.pod()
    assert (await bench.core.sandbox_status(sandbox[:10])).id == sandbox
    with pytest.raises(InvalidArgument):
        await bench.core.sandbox_status("")
    ids = [sandbox] + [await bench.pod(f"p{n}") for n in range(17)]
    shared = next(c for c in "0123456789abcdef" if sum(i[0] == c for i in ids) > 1)
    with pytest.raises(InvalidArgument, match="ambiguous"):
        await bench.core.sandbox_status(shared)


async def test_stats_have_no_rate_without_two_samples(bench):
    _, container = await bench.running()
    first = await bench.core.container_stats(container)
    assert first.usage_nano_cores is None
    assert first.usage.cpu_usage_core_ns == 500_000_000
    second = await bench.core.container_stats(container)
    assert second.usage_nano_cores == 500_000_000
    assert second.usage.cpu_usage_core_ns > first.usage.cpu_usage_core_ns
    bench.world.faults.errors["stats"].append(BackendError("away"))
    (listed,) = await bench.core.list_container_stats(Filter())
    assert listed.container.id == container


async def test_no_request_data_crosses_between_containers(bench):
    sandbox = await bench.pod()
    configs = [bench.container_config(f"c{n}", envs=(("M", b"m%d" % n),)) for n in range(8)]
    ids = await asyncio.gather(
        *(bench.core.create_container(sandbox, config, None) for config in configs)
    )
    for container in ids:
        await bench.core.start_container(container)
    for number, container in enumerate(ids):
        assert bench.world.specs[container].config.process.env == (f"M=m{number}",)


async def test_annotations_of_256_kib_come_back_unchanged(bench):
    annotations = {"big": "x" * 262144, "odd": 'é"\n\x00'}
    config = bench.sandbox_config(annotations=annotations, labels={"a": ""})
    sandbox = await bench.core.run_sandbox(config, "")
    core = await bench.restart()
    view = await core.sandbox_status(sandbox)
    assert view.config == config


async def test_mount_features_are_checked(bench):
    sandbox = await bench.core.run_sandbox(bench.sandbox_config(), "bare")
    mount = Mount("/x", "/y", propagation=MountPropagation.BIDIRECTIONAL)
    with pytest.raises(Unsupported, match="host paths"):
        await bench.core.create_container(sandbox, bench.container_config(mounts=(mount,)), None)


async def test_images_pull_once_and_are_removed_with_all_names(bench):
    pulls = (bench.core.pull_image("localhost/demo:latest", None) for _ in range(5))
    images = await asyncio.gather(*pulls)
    assert len({image.id for image in images}) == 1
    assert bench.world.faults.calls.count("pull") == 1
    assert len(await bench.core.list_images("")) == 1
    await bench.core.remove_image("localhost/demo:latest")
    assert await bench.core.image_status(images[0].id) is None
    assert (await bench.core.image_filesystems())[0].timestamp_ns > 0


async def test_status_tells_conditions_and_a_broken_network(bench):
    view = await bench.core.status(verbose=True)
    assert [(c.type, c.status) for c in view.conditions] == [
        ("RuntimeReady", True),
        ("NetworkReady", True),
    ]
    json.dumps(view.info)
    bench.world.faults.errors["network_status"].append(RuntimeError("boom"))
    view = await bench.core.status()
    assert "boom" in view.conditions[1].message
    assert not view.conditions[1].status


async def test_closed_core_answers_unavailable(bench):
    await bench.core.close()
    with pytest.raises(Unavailable):
        await bench.core.list_sandboxes(Filter())
    bench.core = type("Closed", (), {"close": staticmethod(settle)})()


async def test_target_must_be_a_running_container_of_the_same_pod(bench):
    one, running = await bench.running("one")
    two = await bench.pod("two")
    modes = NamespaceOptions(pid=NamespaceMode.TARGET, target_id=running)
    config = bench.container_config("debug", security=ContainerSecurity(namespaces=modes))
    with pytest.raises(InvalidArgument, match="target_id"):
        await bench.core.create_container(two, config, None)
    await bench.core.create_container(one, config, None)


@pytest.mark.parametrize("parent", ["../x", "relative", "/a/../../b", "/a\nb"])
async def test_cgroup_parent_cannot_lead_out(bench, parent):
    with pytest.raises(InvalidArgument, match="cgroup_parent"):
        await bench.core.run_sandbox(bench.sandbox_config(cgroup_parent=parent), "")


async def test_resync_does_not_bury_what_became_ready_meanwhile(bench):
    list_, asked = bench.backend.list, asyncio.Event()
    gate = asyncio.Event()

    async def slow():
        inventory = await list_()
        asked.set()
        await gate.wait()
        return inventory

    bench.backend.list = slow
    for queue in list(bench.world.queues):
        queue.put_nowait(RuntimeError("the stream broke"))
    await bench.clock.advance(2)
    await asked.wait()
    sandbox, container = await bench.running()
    gate.set()
    await settle()
    assert (await bench.core.sandbox_status(sandbox)).state is SandboxState.READY
    assert (await bench.core.container_status(container)).state is ContainerState.RUNNING
