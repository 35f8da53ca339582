"""What plugins are shown of sandboxes and containers: values of one moment."""

from __future__ import annotations

import os

from polypod.lifecycle.heart import Heart
from polypod.lifecycle.objects import Container, Sandbox
from polypod.lifecycle.views import ContainerState, SandboxState
from polypod.plugin.observer import ContainerFacts, SandboxFacts, Snapshot


def sandbox_facts(sandbox: Sandbox) -> SandboxFacts:
    """Return what plugins are shown of a sandbox."""
    record = sandbox.record
    held = sandbox.namespaces.fds if sandbox.namespaces is not None else {}
    return SandboxFacts(
        id=record.id,
        config=record.config,
        handler=record.handler,
        state=str(record.state),
        created_at_ns=record.created_at_ns,
        cgroup=record.cgroup,
        ips=sandbox.view.ips,
        namespaces={kind: f"/proc/{os.getpid()}/fd/{fd}" for kind, fd in held.items()},
        resources=record.config.resources if record.resources is None else record.resources,
        overhead=record.config.overhead if record.overhead is None else record.overhead,
    )


def container_facts(heart: Heart, container: Container) -> ContainerFacts:
    """Return what plugins are shown of a container; its OCI config is read from the records if need be."""
    record = container.record
    config = container.oci
    if config is None and record.state is not ContainerState.CREATING:
        config = heart.oci_configs.get(record.id)
    return ContainerFacts(
        id=record.id,
        sandbox_id=record.sandbox_id,
        request=record.config,
        state=str(record.state),
        created_at_ns=record.created_at_ns,
        cgroup=f"{container.sandbox.record.cgroup}/{record.id}",
        config=config,
        image_id=record.image_id,
        image_ref=record.image_ref,
        pid=record.pid,
        started_at_ns=record.started_at_ns,
        finished_at_ns=record.finished_at_ns,
        exit_code=record.exit_code,
        reason=record.reason,
        message=record.message,
    )


def snapshot(heart: Heart) -> Snapshot:
    """Return all that is listed, in one step of the loop."""
    listed = [s for s in heart.sandboxes if s.record.state is not SandboxState.CREATING]
    return Snapshot(
        tuple(sandbox_facts(each) for each in listed),
        tuple(
            container_facts(heart, each)
            for sandbox in listed
            for each in sandbox.containers.values()
            if each.record.state is not ContainerState.CREATING
        ),
    )
