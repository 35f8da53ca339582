"""Answers of lists as bytes are those that protobuf would make of the same views."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from polypod.api import encode
from polypod.api.v1 import api_pb2 as pb
from polypod.api.wire_lists import WireList
from polypod.lifecycle.views import ContainerState, ContainerView, SandboxState, SandboxView
from polypod.plugin import requests as r

CONTAINER = ContainerView(
    id="b" * 64,
    sandbox_id="a" * 64,
    config=r.ContainerConfig(r.ContainerMetadata("c", 1), r.ImageSpec("img")),
    state=ContainerState.EXITED,
    image_id="sha256:1",
    image_ref="x@sha256:2",
    created_at_ns=6,
    log_path=Path("/logs/c.log"),
)


def _sandbox(number, labels=()):
    config = r.SandboxConfig(r.PodMetadata("n", "u", "ns", 1), labels=dict(labels))
    return SandboxView(f"{number:064x}", config, SandboxState.READY, 5, "", "namespaces")


def test_answer_is_what_protobuf_makes_of_the_same_views():
    views = [
        _sandbox(1),
        _sandbox(2, {"a": "b"}),
        _sandbox(3, {"long": "x" * 300}),
        _sandbox(4, {"longer": "é" * 20_000}),
    ]
    lists = WireList(encode.sandbox)
    for shown in (views, views[1:3], [], views, list(reversed(views))):
        answer = pb.ListPodSandboxResponse.FromString(lists.answer(shown))
        assert answer == pb.ListPodSandboxResponse(items=[encode.sandbox(each) for each in shown])
    containers = WireList(encode.container).answer([CONTAINER])
    assert pb.ListContainersResponse.FromString(containers) == pb.ListContainersResponse(
        containers=[encode.container(CONTAINER)]
    )


def test_entry_of_a_view_that_was_replaced_is_made_anew():
    encoded = []

    def encode_and_note(view):
        encoded.append((view.id, view.state))
        return encode.sandbox(view)

    lists = WireList(encode_and_note)
    one, two = _sandbox(1), _sandbox(2)
    lists.answer([one, two])
    lists.answer([two, one])
    assert len(encoded) == 2
    stopped = replace(one, state=SandboxState.NOT_READY)
    answer = pb.ListPodSandboxResponse.FromString(lists.answer([stopped, two]))
    assert [item.state for item in answer.items] == [
        pb.SANDBOX_NOTREADY,
        encode.sandbox(two).state,
    ]
    assert encoded[2:] == [(one.id, SandboxState.NOT_READY)]


def test_entries_of_objects_that_are_gone_are_not_kept_for_ever():
    lists = WireList(encode.sandbox)
    for number in range(2000):
        lists.answer([_sandbox(number)])
    assert len(lists._known) < 300
