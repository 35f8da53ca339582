"""CheckpointContainer, CheckpointPod, RestorePod, on handlers whose backend can; a clear refusal on the others.

Spec:
    kubernetes/cri-api api.proto, RuntimeService.CheckpointContainer, CheckpointPod, RestorePod; reliability E20.
"""

import asyncio
import io
import json
import tarfile

import grpc
import pytest
from conformance.pods import log_text

from polypod.client import CriError, pb

SCRIPT = (
    "export A=kept; echo one; "
    "while true; do if test -e /go; then echo two $A; exit 7; fi; sleep 0.02; done"
)


async def refused(call):
    """Await a call that must fail; return its error."""
    with pytest.raises(CriError) as found:
        await call
    return found.value


@pytest.fixture
def able(handler):
    """Skip where no program can be captured: what the real ones need is a matter of the host's CRIU."""
    handler.needs_protocol("Checkpointable")


@pytest.fixture
async def captured(able, pods, cri, tmp_path):
    """A pod with one container, captured; both run on."""
    pod = await pods.run("first")
    box = await pod.start(SCRIPT, name="box")
    await pod.said(box, "one")
    place = tmp_path / "checkpoint"
    place.mkdir()
    await cri.checkpoint_pod(pod.id, str(place))
    return pod, box, place


def restored_config(pods, name, **fields):
    return pods.config(name, **fields)


async def restore(pods, cri, place, pod, name="second", **fields):
    config = restored_config(pods, name)
    box = pod.container_config(SCRIPT, name="box", **fields)
    answer = await cri.restore_pod(str(place), config, [box])
    return answer, config


async def test_a_handler_that_cannot_says_so_and_makes_nothing(handler, pods, cri, tmp_path):
    handler.lacks_protocol("Checkpointable")
    pod = await pods.run()
    box = await pod.start()
    (tmp_path / "out").mkdir()
    for call in (
        cri.checkpoint_container(box, str(tmp_path / "c.tar")),
        cri.checkpoint_pod(pod.id, str(tmp_path / "out")),
        cri.restore_pod(str(tmp_path / "out"), pods.config("other"), []),
    ):
        error = await refused(call)
        assert "checkpoint" in error.text.lower()
    assert not (tmp_path / "c.tar").exists()
    assert list((tmp_path / "out").iterdir()) == []
    assert len(await cri.list_sandboxes()) == 1


async def test_the_container_runs_on_and_its_archive_is_whole(able, pods, cri, tmp_path):
    pod = await pods.run()
    box = await pod.start(SCRIPT)
    await pod.said(box, "one")
    await cri.checkpoint_container(box, str(tmp_path / "c.tar"))
    with tarfile.open(tmp_path / "c.tar") as archive:
        names = archive.getnames()
        summary = json.load(archive.extractfile("checkpoint.json"))
    assert {"checkpoint.json", "backend"} <= {each.split("/")[0] for each in names}
    assert summary["name"] == "box"
    assert [each.name for each in tmp_path.glob("*c.tar*")] == ["c.tar"]
    await pod.sh(box, "echo > /go")
    assert (await pod.ended(box)).code == 7


async def test_a_restored_pod_goes_on_where_it_was(captured, pods, cri):
    pod, box, place = captured
    answer, _config = await restore(pods, cri, place, pod)
    (made,) = answer.restored_containers
    assert made.name == "box"
    status = (await cri.container_status(made.container_id)).status
    assert status.state == pb.CONTAINER_CREATED
    await cri.start_container(made.container_id)
    await pod.sh(made.container_id, "echo > /go")
    ended = await pod.ended(made.container_id)
    assert ended.code == 7
    assert log_text(ended.status.log_path) == "two kept\n"
    # The first one knows nothing of it.
    assert (await cri.container_status(box)).status.state == pb.CONTAINER_RUNNING


async def test_names_must_be_exactly_those(captured, pods, cri):
    pod, _box, place = captured
    for configs in (
        [],
        [pod.container_config(SCRIPT, name="other")],
        [pod.container_config(SCRIPT, name="box"), pod.container_config(SCRIPT, name="more")],
        [pod.container_config(SCRIPT, name="box"), pod.container_config(SCRIPT, name="box")],
    ):
        error = await refused(cri.restore_pod(str(place), pods.config("second"), configs))
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert "they must be the same" in error.text
    assert [each.id for each in await cri.list_sandboxes()] == [pod.id]


async def test_a_failed_restore_leaves_nothing(captured, pods, cri):
    pod, _box, place = captured
    config = pods.config("second")
    other = pod.container_config("echo another program", name="box")
    answer = await cri.restore_pod(str(place), config, [other])
    error = await refused(cri.start_container(answer.restored_containers[0].container_id))
    assert "the checkpoint is of" in error.text
    wrong = pod.container_config(SCRIPT, name="box", image=pb.ImageSpec(image="nobody/has:this"))
    error = await refused(cri.restore_pod(str(place), pods.config("third"), [wrong]))
    assert error.code is grpc.StatusCode.NOT_FOUND
    names = {each.metadata.name for each in await cri.list_sandboxes()}
    assert names == {"first", "second"}


async def test_a_name_that_is_taken_is_refused(captured, pods, cri):
    pod, _box, place = captured
    box = pod.container_config(SCRIPT, name="box")
    error = await refused(cri.restore_pod(str(place), pod.config, [box]))
    assert error.code is grpc.StatusCode.ALREADY_EXISTS


async def test_a_repeated_restore_joins_the_first(captured, pods, cri):
    pod, _box, place = captured
    config = pods.config("second")
    box = pod.container_config(SCRIPT, name="box")
    first, again = await asyncio.gather(
        *(cri.restore_pod(str(place), config, [box]) for _ in range(2))
    )
    assert first == again
    assert len(await cri.list_sandboxes()) == 2
    await cri.start_container(first.restored_containers[0].container_id)
    another = pod.container_config("echo another", name="box")
    third = pods.config("third")
    results = await asyncio.gather(
        *(cri.restore_pod(str(place), third, [each]) for each in (box, another)),
        return_exceptions=True,
    )
    (refusal,) = [each for each in results if isinstance(each, CriError)]
    assert refusal.code is grpc.StatusCode.ALREADY_EXISTS
    assert len(await cri.list_sandboxes()) == 3


async def test_places_and_options_that_are_wrong(able, pods, cri, tmp_path):
    pod = await pods.run()
    box = await pod.start()
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("x")
    cases = [
        (cri.checkpoint_container(box, "relative.tar"), "INVALID_ARGUMENT"),
        (cri.checkpoint_container(box, ""), "INVALID_ARGUMENT"),
        (cri.checkpoint_container(box, f"{tmp_path}/no/such/c.tar"), "NOT_FOUND"),
        (cri.checkpoint_container(box, str(full)), "INVALID_ARGUMENT"),
        (cri.checkpoint_container("nobody", f"{tmp_path}/c.tar"), "NOT_FOUND"),
        (cri.checkpoint_pod(pod.id, str(full)), "ALREADY_EXISTS"),
        (cri.checkpoint_pod(pod.id, f"{tmp_path}/nowhere"), "NOT_FOUND"),
        (cri.checkpoint_pod(pod.id, f"{tmp_path}/nowhere", options={"a": "b"}), "INVALID_ARGUMENT"),
        (cri.restore_pod(f"{tmp_path}/nowhere", pods.config("x"), []), "NOT_FOUND"),
    ]
    for call, code in cases:
        assert (await refused(call)).code.name == code
    assert [each.name for each in full.iterdir()] == ["mine"]
    assert (await cri.container_status(box)).status.state == pb.CONTAINER_RUNNING


async def test_what_does_not_run_cannot_be_captured_and_leaves_nothing(able, pods, cri, tmp_path):
    pod = await pods.run()
    created = await pod.create(name="created")
    out = tmp_path / "out"
    out.mkdir()
    error = await refused(cri.checkpoint_container(created, f"{tmp_path}/c.tar"))
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    error = await refused(cri.checkpoint_pod(pod.id, str(out)))
    assert "no container runs" in error.text
    running = await pod.start(SCRIPT, name="running")
    error = await refused(cri.checkpoint_pod(pod.id, str(out), [running, created]))
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert list(out.iterdir()) == []
    # It was not left frozen.
    await pod.sh(running, "echo > /go")
    assert (await pod.ended(running)).code == 7


async def test_containers_of_another_pod_are_refused(able, pods, cri, tmp_path):
    one, other = await pods.run("one"), await pods.run("other")
    await one.start()
    box = await other.start()
    error = await refused(cri.checkpoint_pod(one.id, str(tmp_path), [box]))
    assert error.code.name in {"INVALID_ARGUMENT", "ALREADY_EXISTS"}


def tampered(place, member, data=b"", **fields):
    """Put one more member into the pod's only archive."""
    (path,) = place.glob("*.tar")
    info = tarfile.TarInfo(member)
    info.size = len(data)
    for name, value in fields.items():
        setattr(info, name, value)
    with tarfile.open(path, "a") as archive:
        archive.addfile(info, io.BytesIO(data) if data else None)


@pytest.mark.parametrize(
    ("member", "fields"),
    [
        ("../out", {}),
        ("/etc/passwd", {}),
        ("container.log", {}),
        ("backend/link", {"type": tarfile.SYMTYPE, "linkname": "/etc/shadow"}),
        ("backend/hard", {"type": tarfile.LNKTYPE, "linkname": "checkpoint.json"}),
        ("backend/device", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}),
        ("backend/fifo", {"type": tarfile.FIFOTYPE}),
        ("changes.tar", {"type": tarfile.DIRTYPE}),
    ],
)
async def test_e20_an_archive_holds_our_files_and_nothing_else(captured, pods, cri, member, fields):
    pod, _box, place = captured
    tampered(place, member, **fields)
    box = pod.container_config(SCRIPT, name="box")
    error = await refused(cri.restore_pod(str(place), pods.config("second"), [box]))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert member in error.text
    assert [each.id for each in await cri.list_sandboxes()] == [pod.id]


async def test_e20_nothing_but_state_comes_from_the_archive(captured, pods, cri, server):
    pod, _box, place = captured
    summary = json.loads((place / "pod.json").read_text())
    summary["annotations"] = {"io.kubernetes.cri.mounts": "/etc"}
    summary["labels"] = {"from": "archive"}
    (place / "pod.json").write_text(json.dumps(summary))
    answer, _config = await restore(pods, cri, place, pod)
    status = (await cri.container_status(answer.restored_containers[0].container_id)).status
    assert (dict(status.labels), dict(status.annotations), list(status.mounts)) == ({}, {}, [])
    assert list((server.state / "restores").iterdir()) == []


@pytest.mark.parametrize("file", ["../0.tar", "/etc/passwd", "..", ""])
async def test_e20_a_summary_does_not_lead_out_of_its_directory(captured, pods, cri, file):
    pod, _box, place = captured
    summary = json.loads((place / "pod.json").read_text())
    summary["containers"]["box"] = file
    (place / "pod.json").write_text(json.dumps(summary))
    box = pod.container_config(SCRIPT, name="box")
    error = await refused(cri.restore_pod(str(place), pods.config("second"), [box]))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "no plain file name" in error.text
