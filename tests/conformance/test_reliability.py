"""What a CRI server owes its clients whatever they do: one test for each requirement, by its number.

A1, A2 (ExecSync), A7, A8 (logs), A9 (hostile messages), A10 (nothing crosses), A11 (bad values), A12 (again
and again), A13 (sizes). A3 to A6 are in test_streaming.py, A14 in test_events.py.

Spec:
    kubernetes/cri-api api.proto.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import secrets
import socket
from pathlib import Path

import grpc
import pytest
from conformance.pods import eventually, log_text, read_log

from polypod.client import CriClient, CriError, pb

MIB = 1 << 20
SERVICES = {
    "RuntimeService": pb.DESCRIPTOR.services_by_name["RuntimeService"],
    "ImageService": pb.DESCRIPTOR.services_by_name["ImageService"],
}
CALLS = sorted(
    (f"/runtime.v1.{service}/{method.name}", method)
    for service, found in SERVICES.items()
    for method in found.methods
)
TRACES = re.compile(r"Traceback|File \"|\bline \d+, in\b|0x[0-9a-f]{8,}|object has no attribute")


async def refused(call) -> CriError:
    """Await a call that must fail; return its error."""
    with pytest.raises(CriError) as found:
        await call
    return found.value


def resident(server) -> int:
    """Return what the daemon has in memory, bytes."""
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    pytest.fail("the daemon is gone")


def threads_and_descriptors(server) -> tuple[int, int]:
    """Return how many of each the daemon has."""
    place = f"/proc/{server.process.pid}"
    return len(os.listdir(f"{place}/task")), len(os.listdir(f"{place}/fd"))


# ExecSync


async def test_a1_exec_output_is_bounded_marked_and_never_blocks(
    pods, cri: CriClient, server, handler
):
    handler.needs_kernel()
    pod = await pods.run()
    box = await pod.start()
    await cri.exec_sync(box, ["true"], 10)
    before = resident(server)
    script = "head -c 30000000 /dev/zero; head -c 30000000 /dev/zero >&2; exit 3"
    answer = await cri.exec_sync(box, ["sh", "-c", script], 60)
    assert answer.exit_code == 3
    for output in (answer.stdout, answer.stderr):
        assert len(output) <= 8 * MIB
    assert answer.ByteSize() < 16 * MIB + 64 * 1024
    # The answer itself is in memory for a moment: 16 MiB, once here and once as a message.
    assert resident(server) - before < 40 * MIB + 2 * answer.ByteSize()


async def test_a2_execs_that_leave_children_behind_keep_nothing(
    pods, cri: CriClient, server, handler
):
    handler.needs_kernel()
    pod = await pods.run()
    box = await pod.start()

    async def probe() -> None:
        answer = await cri.exec_sync(box, ["sh", "-c", "sleep 1000 & exit 0"], 10)
        assert answer.exit_code == 0

    for _ in range(5):
        await asyncio.gather(*(probe() for _ in range(10)))
    threads, descriptors = threads_and_descriptors(server)
    memory = resident(server)
    for _ in range(25):
        await asyncio.gather(*(probe() for _ in range(10)))

    async def settled() -> bool:
        now = threads_and_descriptors(server)
        return now[0] <= threads + 2 and now[1] <= descriptors + 2

    await eventually(settled, f"threads {threads}, descriptors {descriptors}")
    assert resident(server) - memory < 16 * MIB


# Logs


@pytest.mark.parametrize(
    "shape", ["file", "directory-in-between", "dangling", "to-the-outside-directory"]
)
async def test_a7_no_link_below_the_log_directory_is_followed(pods, cri, shape, tmp_path):
    """Links that a tenant of the node could have laid there before the container was made."""
    outside = tmp_path / "outside"
    outside.mkdir()
    secret = outside / "secret"
    secret.write_text("untouched")
    secret.chmod(0o600)
    pod = await pods.run()
    base = Path(pod.config.log_directory)
    base.mkdir(parents=True, exist_ok=True)
    path = "box/0.log"
    if shape == "file":
        (base / "box").mkdir()
        (base / "box" / "0.log").symlink_to(secret)
    elif shape == "directory-in-between":
        (base / "box").symlink_to(outside)
    elif shape == "dangling":
        (base / "box").mkdir()
        (base / "box" / "0.log").symlink_to(outside / "new")
    else:
        (base / "a").mkdir()
        (base / "a" / "b").symlink_to(outside)
        path = "a/b/0.log"
    with contextlib.suppress(CriError):
        box = await pod.start("echo into the log", log_path=path)
        await pod.ended(box)
    assert secret.read_text() == "untouched"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in outside.iterdir()] == ["secret"]


@pytest.mark.parametrize(
    "path", ["../up.log", "a/../../up.log", "/etc/passwd", "..", "a/..", "a\nb/../../x"]
)
async def test_a7_a_path_that_leads_out_is_refused_before_anything_is_made(pods, cri, path):
    pod = await pods.run()
    error = await refused(pod.create(log_path=path))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert await cri.list_containers() == []


async def test_a8_no_line_is_lost_or_doubled_while_logs_are_rotated(pods, cri: CriClient):
    lines = 60_000
    pod = await pods.run()
    box = await pod.start(f"seq 1 {lines}; echo done; sleep 1000")
    path = Path((await cri.container_status(box)).status.log_path)
    kept = []
    for number in range(15):
        old = path.with_name(f"{path.name}.{number}")
        if path.exists():
            path.rename(old)
            kept.append(old)
        await cri.reopen_log(box)

    async def whole() -> str:
        text = "".join(log_text(each) for each in (*kept, path) if each.exists())
        return text if text.endswith("done\n") else ""

    text = await eventually(whole, "the end of the log")
    assert text == "".join(f"{number}\n" for number in range(1, lines + 1)) + "done\n"


async def test_a8_lines_are_cut_at_16_kib_and_bytes_are_kept(pods, handler):
    handler.needs_kernel()
    pod = await pods.run()
    script = "head -c 40000 /dev/zero | tr '\\0' x; printf '\\n\\0\\377\\376z\\n'"
    ended = await pod.run(script)
    lines = read_log(ended.status.log_path)
    assert [each.tag for each in lines[:3]] == ["P", "P", "F"]
    assert max(len(each.text) for each in lines) <= 16 * 1024
    assert lines[-1].text == b"\0\xff\xfez"


async def test_a8_a_stopped_containers_log_is_not_made_again(pods, cri: CriClient):
    pod = await pods.run()
    ended = await pod.run("echo one")
    path = Path(ended.status.log_path)
    path.rename(path.with_name("moved"))
    error = await refused(cri.reopen_log(ended.status.id))
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert not path.exists()


# Hostile messages


@pytest.fixture
async def raw(server):
    """A channel on which bytes are sent as they are."""
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(server.endpoint, options=options) as channel:
        yield channel


async def send(channel, call: str, data: bytes) -> grpc.StatusCode:
    """Send bytes as a request; return the status."""
    try:
        await channel.unary_unary(call)(data, timeout=60)
    except grpc.aio.AioRpcError as error:
        code, said = error.code(), error.details() or ""
    else:
        return grpc.StatusCode.OK
    assert not TRACES.search(said), said
    return code


async def test_a9_bytes_that_are_nearly_messages(raw, cri: CriClient, server, pods):
    """Requests of a real pod with bytes changed, cut and doubled: an answer each, and a server that lives."""
    chance = random.Random(9)  # the same bytes in every run: a failure can be looked at
    pod = await pods.run()
    container = pb.CreateContainerRequest(
        pod_sandbox_id=pod.id, config=pod.container_config("true"), sandbox_config=pod.config
    )
    seeds = {
        "RunPodSandbox": pb.RunPodSandboxRequest(config=pods.config("x")).SerializeToString(),
        "CreateContainer": container.SerializeToString(),
        "ListContainers": pb.ListContainersRequest(
            filter=pb.ContainerFilter(label_selector={"a": "b"})
        ).SerializeToString(),
        "ExecSync": pb.ExecSyncRequest(container_id=pod.id, cmd=["true"]).SerializeToString(),
        "ContainerStatus": pb.ContainerStatusRequest(container_id="x").SerializeToString(),
    }
    before = resident(server)
    for _ in range(60):
        for name, seed in seeds.items():
            data = bytearray(seed)
            for _ in range(chance.randrange(1, 6)):
                place = chance.randrange(len(data))
                match chance.randrange(3):
                    case 0:
                        data[place] = chance.randrange(256)
                    case 1:
                        del data[place:]
                        data += b"\x0a"
                    case _:
                        data[place:place] = data[place : place + 20]
            await send(raw, f"/runtime.v1.RuntimeService/{name}", bytes(data))
    assert resident(server) - before < 64 * MIB
    assert (await cri.version()).runtime_name == "polypod"


async def test_a9_a_message_of_100_mib_is_refused_and_not_kept(raw, cri: CriClient, server):
    before = resident(server)
    for _ in range(3):
        code = await send(raw, "/runtime.v1.RuntimeService/Version", b"\x0a" + b"x" * (100 * MIB))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert resident(server) - before < 64 * MIB
    assert (await cri.version()).runtime_name == "polypod"


async def test_a9_thousands_of_calls_that_are_cancelled_at_once(raw, cri: CriClient, server):
    before = resident(server)
    status = raw.unary_unary("/runtime.v1.RuntimeService/Status")
    for _ in range(20):
        calls = [status(b"") for _ in range(100)]
        for each in calls:
            each.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    assert resident(server) - before < 64 * MIB
    assert (await cri.version()).runtime_name == "polypod"


async def test_a9_clients_that_say_nothing_more_hold_nobody(cri: CriClient, server):
    """Connections that send half a preface, or a preface and no more."""
    path = server.endpoint.removeprefix("unix://")
    slow = []
    try:
        for number in range(100):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.connect(path)
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[: 5 + number % 20])
            slow.append(connection)
        for _ in range(20):
            assert (await cri.version()).runtime_name == "polypod"
    finally:
        for each in slow:
            each.close()


# Nothing crosses, nothing bad passes


async def test_a10_nothing_of_one_request_is_seen_in_another(
    pods, cri: CriClient, tmp_path, handler
):
    pod = await pods.run()
    marks = {f"box{number}": secrets.token_hex(12) for number in range(20)}

    async def made(name: str, mark: str) -> str:
        place = tmp_path / mark
        place.mkdir()
        return await pod.start(
            "echo $MARK; env; cat /mark/*; sleep 1000",
            name=name,
            envs=[pb.KeyValue(key="MARK", value=mark.encode())],
            annotations={"mark": mark},
            labels={"mark": mark},
            mounts=[pb.Mount(container_path=f"/mark-{mark}", host_path=str(place))],
        )

    ids = await asyncio.gather(*(made(name, mark) for name, mark in marks.items()))
    for box, (name, mark) in zip(ids, marks.items(), strict=True):
        await pod.said(box, mark)
        answer = await cri.container_status(box, verbose=True)
        shown = f"{answer}{log_text(answer.status.log_path)}"
        assert mark in shown
        others = [other for other in marks.values() if other != mark and other in shown]
        assert others == [], f"{name} shows what belongs to others"


@pytest.mark.parametrize(
    ("call", "method"), CALLS, ids=[call.rpartition("/")[2] for call, _ in CALLS]
)
async def test_a11_an_empty_message_is_answered_in_words(raw, call: str, method):
    """Every call of both services: what is missing is named, and no exception shows."""
    if method.server_streaming:
        assert await first_of(raw, call) in {
            grpc.StatusCode.OK,
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.DEADLINE_EXCEEDED,  # it has nothing to tell yet
            grpc.StatusCode.UNIMPLEMENTED,
        }
        return
    assert await send(raw, call, b"") in {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNIMPLEMENTED,
    }


async def first_of(channel, call: str) -> grpc.StatusCode:
    """Open a stream with an empty request; return how its first message came, or did not."""
    stream = channel.unary_stream(call)(b"", timeout=1)
    try:
        await stream.read()
    except grpc.aio.AioRpcError as error:
        code, said = error.code(), error.details() or ""
    else:
        return grpc.StatusCode.OK
    finally:
        stream.cancel()
    assert not TRACES.search(said), said
    return code


@pytest.mark.parametrize(
    "value", ["x" * 300, "nobody", "../../etc", "\0", "a b", "☃", "-", "%s%n", "'; drop", "0" * 64]
)
async def test_a11_ids_that_mean_nobody(cri: CriClient, value: str):
    for call in (
        cri.container_status(value),
        cri.sandbox_status(value),
        cri.exec_sync(value, ["a"]),
    ):
        error = await refused(call)
        assert error.code in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}
        assert not TRACES.search(error.text)


async def test_a12_everything_may_be_said_twice(pods, cri: CriClient):
    pod = await pods.run()
    box = await pod.start()
    for _ in range(2):
        await cri.stop_container(box, 0)
    for _ in range(2):
        await cri.remove_container(box)
    running = await pod.start(name="other")
    await cri.remove_container(running)
    for _ in range(2):
        await cri.stop_sandbox(pod.id)
    for _ in range(2):
        await cri.remove_sandbox(pod.id)
    for unknown in (pod.id, "f" * 64):
        await cri.stop_sandbox(unknown)
        await cri.remove_sandbox(unknown)
        assert (await refused(cri.sandbox_status(unknown))).code is grpc.StatusCode.NOT_FOUND


async def test_a13_large_labels_and_annotations_come_back_unchanged(pods, cri: CriClient):
    annotations = {f"example.com/{n}": secrets.token_hex(4096) for n in range(32)}  # 256 KiB
    labels = {f"label-{n}": "v" * 63 for n in range(64)}
    odd = {"ключ": "значение ☃", "empty": "", "newline": "a\nb", "quotes": "\"'`$(x)"}
    pod = await pods.run(annotations={**annotations, **odd}, labels=labels)
    status = await pod.status()
    assert (dict(status.annotations), dict(status.labels)) == ({**annotations, **odd}, labels)
    box = await pod.create(annotations={**annotations, **odd}, labels=labels)
    found = (await cri.container_status(box)).status
    assert (dict(found.annotations), dict(found.labels)) == ({**annotations, **odd}, labels)
    (listed,) = [each for each in await cri.list_sandboxes() if each.id == pod.id]
    assert dict(listed.annotations) == {**annotations, **odd}
