"""Lifecycle's views → protobuf answers. Absent stays absent: no zero that nobody measured.

Spec:
    ``proto/runtime/v1/api.proto``; cri-client refuses answers without created_at, metadata or image.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from polypod.api import signals
from polypod.api.v1 import api_pb2 as pb
from polypod.lifecycle.views import (
    ContainerState,
    ContainerView,
    EventView,
    HandlerView,
    SandboxState,
    SandboxView,
    StatusView,
)
from polypod.plugin import requests as r
from polypod.plugin.images import FilesystemUsage, Image
from polypod.plugin.runtime import Feature

_SANDBOX_STATES = {
    SandboxState.CREATING: pb.SANDBOX_NOTREADY,
    SandboxState.READY: pb.SANDBOX_READY,
    SandboxState.NOT_READY: pb.SANDBOX_NOTREADY,
    SandboxState.UNKNOWN: pb.SANDBOX_NOTREADY,
    SandboxState.REMOVED: pb.SANDBOX_NOTREADY,
}
_CONTAINER_STATES = {
    ContainerState.CREATING: pb.CONTAINER_UNKNOWN,
    ContainerState.CREATED: pb.CONTAINER_CREATED,
    ContainerState.RUNNING: pb.CONTAINER_RUNNING,
    ContainerState.EXITED: pb.CONTAINER_EXITED,
    ContainerState.UNKNOWN: pb.CONTAINER_UNKNOWN,
    ContainerState.REMOVED: pb.CONTAINER_UNKNOWN,
}

_USERS_ON_HOST = {Feature.USER_NAMESPACES, Feature.HOST_NETWORK}


def info(values: Mapping[str, object]) -> dict[str, str]:
    """Return verbose facts as CRI wants them: one key, JSON text."""
    return {"info": json.dumps(values, default=str, sort_keys=True)} if values else {}


def sandbox(view: SandboxView) -> pb.PodSandbox:
    """Return one entry of ListPodSandbox."""
    return pb.PodSandbox(
        id=view.id,
        metadata=pod_metadata(view.config.metadata),
        state=_SANDBOX_STATES[view.state],
        created_at=view.created_at_ns,
        labels=view.config.labels,
        annotations=view.config.annotations,
        runtime_handler=view.handler,
    )


def sandbox_status(view: SandboxView) -> pb.PodSandboxStatus:
    """Return a sandbox' status; no address leaves the network message out (never an empty one)."""
    network = None
    if view.ips:
        network = pb.PodSandboxNetworkStatus(
            ip=view.ips[0], additional_ips=[pb.PodIP(ip=ip) for ip in view.ips[1:]]
        )
    options = _namespaces(view.config.security.namespaces)
    return pb.PodSandboxStatus(
        id=view.id,
        metadata=pod_metadata(view.config.metadata),
        state=_SANDBOX_STATES[view.state],
        created_at=view.created_at_ns,
        network=network,
        linux=pb.LinuxPodSandboxStatus(namespaces=pb.Namespace(options=options)),
        labels=view.config.labels,
        annotations=view.config.annotations,
        runtime_handler=view.handler,
    )


def container(view: ContainerView) -> pb.Container:
    """Return one entry of ListContainers."""
    meta = view.config.metadata
    return pb.Container(
        id=view.id,
        pod_sandbox_id=view.sandbox_id,
        metadata=pb.ContainerMetadata(name=meta.name, attempt=meta.attempt),
        image=_image_spec(view.config.image),
        image_ref=view.image_ref,
        state=_CONTAINER_STATES[view.state],
        created_at=view.created_at_ns,
        labels=view.config.labels,
        annotations=view.config.annotations,
        image_id=view.image_id,
    )


def container_status(view: ContainerView) -> pb.ContainerStatus:
    """Return a container's status."""
    meta = view.config.metadata
    return pb.ContainerStatus(
        id=view.id,
        metadata=pb.ContainerMetadata(name=meta.name, attempt=meta.attempt),
        state=_CONTAINER_STATES[view.state],
        created_at=view.created_at_ns,
        started_at=view.started_at_ns,
        finished_at=view.finished_at_ns,
        exit_code=view.exit_code,
        image=_image_spec(view.config.image),
        image_ref=view.image_ref,
        reason=view.reason,
        message=view.message,
        labels=view.config.labels,
        annotations=view.config.annotations,
        mounts=[_told_mount(item, view.volume_images) for item in view.config.mounts],
        log_path=str(view.log_path),
        resources=pb.ContainerResources(linux=_resources(view.resources or view.config.resources)),
        image_id=view.image_id,
        user=_user(view),
        stop_signal=signals.enum_value(view.stop_signal),  # type: ignore[arg-type]  # an int enum
    )


def event(view: EventView) -> pb.ContainerEventResponse:
    """Return what happened, with the pod's whole status at that moment."""
    return pb.ContainerEventResponse(
        container_id=view.object_id,
        container_event_type=view.kind.value,  # type: ignore[arg-type]  # same numbers
        created_at=view.at_ns,
        pod_sandbox_status=sandbox_status(view.sandbox),
        containers_statuses=[container_status(each) for each in view.containers],
    )


def filesystem(usage: FilesystemUsage) -> pb.FilesystemUsage:
    """Return what something takes of a file system."""
    return pb.FilesystemUsage(
        timestamp=usage.timestamp_ns,
        fs_id=pb.FilesystemIdentifier(mountpoint=str(usage.mountpoint)),
        used_bytes=pb.UInt64Value(value=usage.used_bytes),
        inodes_used=pb.UInt64Value(value=usage.inodes_used),
    )


def image(view: Image) -> pb.Image:
    """Return one image; its user becomes ``uid`` if numeric, else ``username``."""
    answer = pb.Image(
        id=view.id,
        repo_tags=view.repo_tags,
        repo_digests=view.repo_digests,
        size=view.size_bytes,
        spec=pb.ImageSpec(image=view.id),
        pinned=view.pinned,
    )
    user = view.config.user.partition(":")[0]
    if user.isascii() and user.isdigit():
        answer.uid.value = int(user)
    elif user:
        answer.username = user
    return answer


def status(view: StatusView, *, verbose: bool) -> pb.StatusResponse:
    """Return the runtime's status; the default handler appears under ``""`` too."""
    conditions = [
        pb.RuntimeCondition(type=c.type, status=c.status, reason=c.reason, message=c.message)
        for c in view.conditions
    ]
    return pb.StatusResponse(
        status=pb.RuntimeStatus(conditions=conditions),
        info=info(view.info) if verbose else {},
        runtime_handlers=list(_handlers(view.handlers)),
        features=pb.RuntimeFeatures(
            supplemental_groups_policy=view.supplemental_groups_policy,
            user_namespaces_host_network=any(
                each.features >= _USERS_ON_HOST for each in view.handlers if not each.unusable
            ),
            mount_options=True,
        ),
    )


def _handlers(handlers: Iterable[HandlerView]) -> Iterable[pb.RuntimeHandler]:
    usable = sorted((h for h in handlers if not h.unusable), key=lambda h: h.name)
    for handler in usable:
        features = pb.RuntimeHandlerFeatures(
            recursive_read_only_mounts=Feature.RECURSIVE_READ_ONLY in handler.features,
            user_namespaces=Feature.USER_NAMESPACES in handler.features,
        )
        if handler.is_default:
            yield pb.RuntimeHandler(name="", features=features)
        yield pb.RuntimeHandler(name=handler.name, features=features)


def pod_metadata(meta: r.PodMetadata) -> pb.PodSandboxMetadata:
    """Return what names a sandbox."""
    return pb.PodSandboxMetadata(
        name=meta.name, uid=meta.uid, namespace=meta.namespace, attempt=meta.attempt
    )


def _image_spec(spec: r.ImageSpec) -> pb.ImageSpec:
    return pb.ImageSpec(
        image=spec.image,
        annotations=spec.annotations,
        user_specified_image=spec.user_specified_image,
        runtime_handler=spec.runtime_handler,
        image_ref=spec.image_ref,
    )


def _id_mappings(items: Iterable[r.IdMapping]) -> list[pb.IDMapping]:
    return [
        pb.IDMapping(host_id=m.host_id, container_id=m.container_id, length=m.length) for m in items
    ]


def _namespaces(options: r.NamespaceOptions) -> pb.NamespaceOption:
    answer = pb.NamespaceOption(
        network=int(options.network),  # type: ignore[arg-type]  # same numbers
        pid=int(options.pid),  # type: ignore[arg-type]
        ipc=int(options.ipc),  # type: ignore[arg-type]
        target_id=options.target_id,
    )
    if options.userns is not None:
        answer.userns_options.CopyFrom(
            pb.UserNamespace(
                mode=int(options.userns.mode),  # type: ignore[arg-type]
                uids=_id_mappings(options.userns.uids),
                gids=_id_mappings(options.userns.gids),
            )
        )
    return answer


def _told_mount(mount: r.Mount, images: Mapping[str, str]) -> pb.Mount:
    """A mounted image comes with the id that it had when it was mounted, whatever its name means today."""
    told = _mount(mount)
    if mount.image is not None and mount.container_path in images:
        told.image.image_ref = images[mount.container_path]
    return told


def _mount(mount: r.Mount) -> pb.Mount:
    return pb.Mount(
        container_path=mount.container_path,
        host_path=mount.host_path,
        readonly=mount.readonly,
        selinux_relabel=mount.selinux_relabel,
        propagation=int(mount.propagation),  # type: ignore[arg-type]  # same numbers
        uidMappings=_id_mappings(mount.uid_mappings),
        gidMappings=_id_mappings(mount.gid_mappings),
        recursive_read_only=mount.recursive_read_only,
        image=_image_spec(mount.image) if mount.image is not None else None,
        image_sub_path=mount.image_sub_path,
        mount_options=mount.mount_options,
    )


def _resources(resources: r.Resources) -> pb.LinuxContainerResources:
    return pb.LinuxContainerResources(
        cpu_period=resources.cpu_period,
        cpu_quota=resources.cpu_quota,
        cpu_shares=resources.cpu_shares,
        memory_limit_in_bytes=resources.memory_limit_in_bytes,
        oom_score_adj=resources.oom_score_adj,
        cpuset_cpus=resources.cpuset_cpus,
        cpuset_mems=resources.cpuset_mems,
        hugepage_limits=[
            pb.HugepageLimit(page_size=item.page_size, limit=item.limit)
            for item in resources.hugepage_limits
        ],
        unified=resources.unified,
        memory_swap_limit_in_bytes=resources.memory_swap_limit_in_bytes,
    )


def _user(view: ContainerView) -> pb.ContainerUser | None:
    if view.user is None:
        return None
    uid, gid, groups = view.user
    return pb.ContainerUser(
        linux=pb.LinuxContainerUser(uid=uid, gid=gid, supplemental_groups=groups)
    )
