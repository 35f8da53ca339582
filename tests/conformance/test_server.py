"""What a kubelet asks a socket before it trusts it: Version, ImageFsInfo, Status, RuntimeConfig."""

from __future__ import annotations

import json
import re

import grpc
import pytest

from polypod.client import CriClient, CriError, pb
from polypod.plugin.runtime import Feature


def calls() -> dict[str, tuple[str, object, bool]]:
    """Return RPC → the service's name in the client, its request type, whether it streams answers."""
    found = {}
    for service, client in (("RuntimeService", "runtime"), ("ImageService", "images")):
        for method in pb.DESCRIPTOR.services_by_name[service].methods:
            request = getattr(pb, method.input_type.name)
            found[method.name] = (client, request, method.server_streaming)
    return found


async def test_a1_version_has_what_the_kubelet_checks(cri: CriClient):
    answer = await cri.version()
    assert (answer.version, answer.runtime_api_version) == ("0.1.0", "v1")
    assert answer.runtime_name
    assert re.match(r"\d+\.\d+\.\d+", answer.runtime_version)


async def test_a1_what_is_asked_first_works_without_an_image(cri: CriClient):
    await cri.version()
    usage = (await cri.image_filesystem()).image_filesystems[0]
    assert usage.timestamp > 0
    conditions = {each.type: each.status for each in (await cri.status()).status.conditions}
    assert conditions == {"RuntimeReady": True, "NetworkReady": True}


async def test_a5_05_the_default_handler_is_listed_under_the_empty_name_too(cri, handler):
    answer = await cri.status()
    listed = {each.name: each for each in answer.runtime_handlers}
    assert {"", handler.name} <= set(listed)
    assert listed[""].features == listed[handler.name].features
    assert answer.features.supplemental_groups_policy


async def test_status_tells_the_features_of_the_type(cri, handler):
    listed = {each.name: each for each in (await cri.status()).runtime_handlers}
    features = listed[handler.name].features
    assert features.user_namespaces == (Feature.USER_NAMESPACES in handler.features)
    expected = Feature.RECURSIVE_READ_ONLY in handler.features
    assert features.recursive_read_only_mounts == expected


async def test_status_has_facts_only_when_asked(cri: CriClient):
    assert not (await cri.status()).info
    assert "defaultHandler" in (await cri.status(verbose=True)).info["info"]


async def test_the_facts_of_a_handler_are_those_that_status_announces(cri: CriClient, handler):
    answer = await cri.status(verbose=True)
    facts = json.loads(answer.info["info"])["handlers"][handler.name]
    features = next(each for each in answer.runtime_handlers if each.name == handler.name).features
    assert facts["type"] == handler.type
    assert ("user-namespaces" in facts["features"]) == features.user_namespaces
    assert ("recursive-read-only" in facts["features"]) == features.recursive_read_only_mounts
    assert "Execs" in facts["protocols"]


async def test_a5_04_runtime_config_names_a_cgroup_driver(cri: CriClient):
    answer = await cri.call(cri.runtime, "RuntimeConfig", pb.RuntimeConfigRequest())
    assert answer.HasField("linux")
    assert answer.linux.cgroup_driver == pb.CGROUPFS


@pytest.mark.parametrize("cidr", ["", "10.9.0.0/24", "10.9.0.0/24,fd00:9::/64"])
async def test_update_runtime_config_succeeds(cri: CriClient, cidr: str):
    config = pb.RuntimeConfig(network_config=pb.NetworkConfig(pod_cidr=cidr))
    request = pb.UpdateRuntimeConfigRequest(runtime_config=config)
    await cri.call(cri.runtime, "UpdateRuntimeConfig", request)


@pytest.mark.parametrize("name", sorted(calls()))
async def test_no_call_is_unimplemented(cri: CriClient, name: str):
    client, request, streams = calls()[name]
    code = ""
    try:
        if streams:
            await _first(getattr(cri, client), name, request())
        else:
            await cri.call(getattr(cri, client), name, request())
    except CriError as error:
        code = error.code.name
    assert code != "UNIMPLEMENTED"


def test_there_are_43_calls():
    assert len(calls()) == 43


async def test_the_socket_is_its_owners_alone(server):
    socket = server.place / "cri.sock"
    assert socket.is_socket()
    assert socket.stat().st_mode & 0o777 == 0o600


async def _first(stub, name: str, request) -> None:
    """Take the first item of a streaming call, or its beginning, or see it refused."""
    # A stream of events begins, and nothing happens: that it has begun is what is asked.
    limit = 1 if name == "GetContainerEvents" else 30
    try:
        async for _item in getattr(stub, name)(request, timeout=limit):
            return
    except grpc.aio.AioRpcError as error:
        raise CriError(name, error.code(), error.details() or "") from None
