"""The requests of checkpoints → the values that `polypod.lifecycle` takes."""

from __future__ import annotations

from polypod.api import decode
from polypod.api import decode_values as values
from polypod.api.v1 import api_pb2 as pb
from polypod.plugin import requests as r
from polypod.plugin.errors import InvalidArgument


def checkpoint_container(request: pb.CheckpointContainerRequest) -> tuple[str, str, float]:
    """Return the container, the place of the archive, the time limit in seconds (0 = none given)."""
    return (
        decode.object_id(request.container_id, "container_id"),
        _path(request.location, "location"),
        decode.seconds(request.timeout, "timeout"),
    )


def checkpoint_pod(
    request: pb.CheckpointPodRequest,
) -> tuple[str, str, tuple[str, ...], dict[str, str]]:
    """Return the sandbox, the directory, the containers (none = all that run), the options."""
    chosen = tuple(
        decode.object_id(each, f"container_ids[{place}]")
        for place, each in enumerate(request.container_ids)
    )
    return (
        decode.object_id(request.pod_sandbox_id, "pod_sandbox_id"),
        _path(request.output_path, "output_path"),
        chosen,
        dict(request.options),
    )


def restore_pod(
    request: pb.RestorePodRequest,
) -> tuple[str, r.SandboxConfig, str, tuple[r.ContainerConfig, ...], dict[str, str]]:
    """Return the checkpoint's directory, the sandbox's config, the handler, the containers, the options."""
    values.require(request, "config", "config")
    return (
        _path(request.checkpoint_path, "checkpoint_path"),
        decode.sandbox_config(request.config, "config"),
        values.text(request.runtime_handler, "runtime_handler"),
        tuple(decode.container_config(each) for each in request.container_configs),
        dict(request.options),
    )


def _path(value: str, field: str) -> str:
    if not value:
        raise InvalidArgument(f"{field} is empty: give an absolute path")
    return values.text(value, field)
