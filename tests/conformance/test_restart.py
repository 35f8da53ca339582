"""The daemon is killed and started again: containers go on, nothing is lost, nothing is left."""

from __future__ import annotations

import asyncio
import os

import pytest
from conformance.pods import Pods, eventually, log_text, refused

from polypod.client import CriClient, CriError, pb
from polypod.plugin.runtime import Feature


@pytest.fixture(autouse=True)
def outlives(handler) -> None:
    handler.needs_kernel()  # simulated programs run inside the daemon and die with it


@pytest.fixture(autouse=True)
def nothing_left(server):
    """Compare before and after, as the fixture of this name does elsewhere; the daemon is another one."""
    before = server.residue()
    yield
    assert server.settled(before, ignore="processes") == {}


@pytest.fixture
async def restart(server, cri):
    """Kill the daemon and start it again; what it runs with may be changed for that one time."""

    async def again(*, failpoints: str = "", between=None) -> None:
        server.kill()
        if between is not None:
            await between()
        server.environment["POLYPOD_FAILPOINTS"] = failpoints
        server.launch()
        await server.ready()
        await cri.wait_ready(30)

    yield again
    server.environment["POLYPOD_FAILPOINTS"] = ""


async def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_lists_and_states_are_the_same_after_it(pods: Pods, cri: CriClient, restart):
    pod = await pods.run(labels={"a": "b"}, annotations={"c": "d"})
    boxes = {
        "created": await pod.create(name="created"),
        "running": await pod.start(name="running"),
        "ended": (await pod.run("exit 3", name="ended")).status.id,
    }
    sandboxes, containers = await cri.list_sandboxes(), await cri.list_containers()
    statuses = {name: (await cri.container_status(box)).status for name, box in boxes.items()}
    status = await pod.status()
    await restart()
    assert await cri.list_sandboxes() == sandboxes
    assert await cri.list_containers() == containers
    assert await pod.status() == status
    for name, box in boxes.items():
        assert (await cri.container_status(box)).status == statuses[name]


async def test_f2_14_stop_really_kills_containers_taken_over(pods: Pods, cri, restart):
    pod = await pods.run()
    polite = await pod.start("trap 'exit 5' TERM; while true; do sleep 0.05; done", name="polite")
    deaf = await pod.start("trap '' TERM; while true; do sleep 0.05; done", name="deaf")
    # Programs in a machine have no pid of the host.
    pids = [pid for box in (polite, deaf) if (pid := (await pod.info(box))["pid"])]
    await restart()
    assert all([await exists(pid) for pid in pids])
    await cri.stop_container(polite, 20)
    assert (await pod.ended(polite)).code == 5
    await cri.stop_container(deaf, 1)
    assert (await pod.ended(deaf)).code == 137
    assert not any([await exists(pid) for pid in pids])


async def test_an_exit_while_no_daemon_runs_is_known_with_its_code(
    pods: Pods, cri, restart, handler
):
    handler.needs_this_kernel()
    pod = await pods.run()
    box = await pod.start("while test ! -e /tmp/go; do sleep 0.02; done; echo last words; exit 42")
    pid = (await pod.info(box))["pid"]
    # It ends by itself some time after the exec has; the daemon is gone by then.
    await pod.sh(box, "(sleep 0.5; touch /tmp/go) >/dev/null 2>&1 &")

    async def wait_for_the_end() -> None:
        async def gone() -> bool:
            return not await exists(pid)

        await eventually(gone, "the end of the program")

    await restart(between=wait_for_the_end)
    ended = await pod.ended(box)
    assert (ended.code, ended.status.reason) == (42, "Error")
    assert ended.out == "last words\n"
    assert ended.status.finished_at > ended.status.started_at


async def test_logs_are_complete_across_it(pods: Pods, cri: CriClient, restart):
    pod = await pods.run()
    script = "i=0; while test $i -lt 3000; do echo line $i; i=$((i+1)); done; exit 7"
    box = await pod.start(script)
    await restart()
    ended = await pod.ended(box)
    assert ended.code == 7
    numbers = [line.split()[1] for line in log_text(ended.status.log_path).splitlines()]
    # At most one read may stand there twice; none may be missing.
    assert sorted(set(map(int, numbers))) == list(range(3000))


async def test_execs_stats_logs_and_new_pods_work_after_it(pods: Pods, cri, restart):
    pod = await pods.run("before")
    box = await pod.start("while true; do sleep 0.05; done")
    await restart()
    assert await pod.sh(box, "echo hello") == "hello\n"
    stats = await cri.container_stats(box)
    assert stats.memory.working_set_bytes.value > 0
    await cri.reopen_log(box)
    other = await pods.run("after")
    address = (await pod.status()).network.ip
    assert (await other.status()).network.ip != address
    assert (await other.run(f"ping -c 1 -w 5 {address}")).code == 0


async def test_a_pod_with_a_user_namespace_goes_on(pods: Pods, cri, restart, handler):
    handler.needs(Feature.USER_NAMESPACES)
    ranges = [pb.IDMapping(host_id=200_000, container_id=0, length=65_536)]
    users = pb.UserNamespace(mode=pb.POD, uids=ranges, gids=ranges)
    modes = pb.NamespaceOption(pid=pb.CONTAINER, userns_options=users)
    pod = await pods.run(security=pb.LinuxSandboxSecurityContext(namespace_options=modes))
    created, running = await pod.create(name="later"), await pod.start()
    await restart()
    await cri.start_container(created)
    pids = [(await pod.info(box))["pid"] for box in (created, running)]
    assert len({os.readlink(f"/proc/{pid}/ns/user") for pid in pids}) == 1
    assert [await pod.sh(box, "id -u; stat -c %u /data") for box in (created, running)] == [
        "0\n0\n"
    ] * 2


async def test_a_created_container_can_be_started_after_it(pods: Pods, cri, restart):
    pod = await pods.run()
    box = await pod.create("echo here")
    await restart()
    await cri.start_container(box)
    assert (await pod.ended(box)).out == "here\n"


async def test_unavailable_until_recovery_has_ended(pods: Pods, cri, server):
    pod = await pods.run("stays")
    # A half-made sandbox, whose undoing by the next daemon is slow, holds recovery up.
    server.kill()
    server.environment["POLYPOD_FAILPOINTS"] = "sandbox.attached=hang"
    server.launch()
    await server.ready()
    with refused("DEADLINE_EXCEEDED"):
        request = pb.RunPodSandboxRequest(config=pods.config("half"))
        await cri.call(cri.runtime, "RunPodSandbox", request, timeout_s=1)
    server.kill()
    server.environment["POLYPOD_FAILPOINTS"] = "sandbox.stop.containers=1*delay(1500)->off"
    server.launch()
    answers = []
    while not (answers and isinstance(answers[-1], list)):
        answers.append(await _ask(cri))
    server.environment["POLYPOD_FAILPOINTS"] = ""
    assert [each.id for each in answers[-1]] == [pod.id]  # complete at once, without the half-made
    assert {text.partition(":")[0] for text in answers[:-1]} == {"UNAVAILABLE"}
    assert any("starting" in text for text in answers[:-1])


async def _ask(cri: CriClient) -> str | list:
    """Return the list, or why there is none."""
    await asyncio.sleep(0.05)
    try:
        return list(await cri.list_sandboxes())
    except CriError as error:
        return f"{error.code.name}: {error.text}"


@pytest.mark.parametrize(
    "point",
    [
        "sandbox.recorded",
        "sandbox.namespaces",
        "sandbox.attached",
        "sandbox.attachment-recorded",
        "sandbox.created",
    ],
)
async def test_a_run_that_was_cut_leaves_nothing(pods: Pods, cri, server, restart, point: str):
    await restart(failpoints=f"{point}=exit(9)")
    before = server.residue()
    config = pods.config("cut")
    with refused("UNAVAILABLE"):
        await cri.run_sandbox(config)
    server.process.wait(30)
    await restart()
    assert await cri.list_sandboxes() == []
    assert await asyncio.to_thread(server.settled, before, ignore="processes") == {}
    again = await cri.run_sandbox(config)
    assert [each.id for each in await cri.list_sandboxes()] == [again]


@pytest.mark.parametrize(
    "point", ["container.recorded", "container.rootfs", "container.start.created"]
)
async def test_a_container_that_was_cut_can_be_made_again(pods, cri, server, restart, point: str):
    pod = await pods.run()
    await restart(failpoints=f"{point}=exit(9)")
    config = pod.container_config("echo here")
    with refused("UNAVAILABLE"):
        box = await cri.create_container(pod.id, config, pod.config)
        await cri.start_container(box)
    server.process.wait(30)
    await restart()
    box = await cri.create_container(pod.id, config, pod.config)
    await cri.start_container(box)
    assert (await pod.ended(box)).out == "here\n"
    assert [each.id for each in await cri.list_containers()] == [box]


@pytest.mark.parametrize(
    "point", ["container.start.logs", "container.start.created", "container.started"]
)
async def test_a_start_that_fails_half_way_leaves_nothing_running(pods, cri, restart, point: str):
    await restart(failpoints=f"{point}=1*error(on purpose)->off")
    pod = await pods.run()
    box = await pod.create("touch /tmp/ran; exec sleep 1000")
    with refused("UNKNOWN", "on purpose"):
        await cri.start_container(box)
    status = (await cri.container_status(box)).status
    told = (status.state, status.exit_code, status.reason)
    assert told == (pb.CONTAINER_EXITED, 128, "StartError")
    assert (await pod.run("echo here", name="next")).out == "here\n"


async def test_sigterm_leaves_workloads_running(pods: Pods, cri, server):
    pod = await pods.run()
    box = await pod.start()
    pid = (await pod.info(box))["pid"]
    assert server.stop() == 0
    assert pid is None or await exists(pid)
    server.launch()
    await server.ready()
    await cri.wait_ready(30)
    assert (await cri.container_status(box)).status.state == pb.CONTAINER_RUNNING
