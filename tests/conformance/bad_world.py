"""What bad requests are made against: pods and containers in every state, and builders of requests."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.pods import Pod, Pods

from polypod.client import CriClient, pb
from polypod.plugin.runtime import Feature

UNKNOWN = "fedcba9876543210" * 4


@dataclass(frozen=True)
class Row:
    """One bad request and what must come of it."""

    name: str
    call: str
    request: Callable[[World], Any]
    code: str
    words: tuple[str, ...] = ()
    needs: tuple[Feature, ...] = ()
    """What the handler must offer for the request to be looked at that closely."""
    lacks: tuple[Feature, ...] = ()
    """What it must not offer: the row says how that is refused."""
    real: bool = False
    """Only real programs and images can be asked for that."""


@dataclass(frozen=True)
class World:
    """Objects that stand there while bad requests come."""

    place: Path
    image: str
    ready: str
    stopped: str
    other: str
    created: str
    running: str
    exited: str
    elsewhere: str
    """A running container of another pod."""
    twice: str
    """A prefix that two containers share."""
    pod_config: pb.PodSandboxConfig
    stopped_config: pb.PodSandboxConfig

    def pod(self, change: Callable[[pb.PodSandboxConfig], Any] | None = None) -> Any:
        """Return RunPodSandbox for a new pod, after a change of its config."""
        config = Pods(None, self.image, self.place).config("bad")  # type: ignore[arg-type]
        if change is not None:
            change(config)
        return pb.RunPodSandboxRequest(config=config)

    def box(
        self, change: Callable[[pb.ContainerConfig], Any] | None = None, pod: str = ""
    ) -> pb.CreateContainerRequest:
        """Return CreateContainer for a new container of the ready pod, after a change of its config."""
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=f"bad-{secrets.token_hex(4)}"),
            image=pb.ImageSpec(image=self.image),
            command=["sh", "-c", "sleep 1000"],
            log_path="bad.log",
        )
        config.linux.security_context.namespace_options.pid = pb.CONTAINER
        if change is not None:
            change(config)
        return pb.CreateContainerRequest(
            pod_sandbox_id=pod or self.ready, config=config, sandbox_config=self.pod_config
        )


async def make(cri: CriClient, image: str, place: Path) -> World:
    """Make the objects."""
    pods = Pods(cri, image, place)
    ready, stopped, other = [await pods.run(name) for name in ("ready", "stopped", "other")]
    await cri.stop_sandbox(stopped.id)
    exited = await ready.run("exit 0", name="exited")
    return World(
        place=place,
        image=image,
        ready=ready.id,
        stopped=stopped.id,
        other=other.id,
        created=await ready.create(name="created"),
        running=await ready.start(name="running"),
        exited=exited.status.id,
        elsewhere=await other.start(name="elsewhere"),
        twice=await _twins(other),
        pod_config=ready.config,
        stopped_config=stopped.config,
    )


async def _twins(pod: Pod) -> str:
    """Make containers until two ids begin with the same digit, and return it."""
    seen: set[str] = set()
    for number in range(17):
        digit = (await pod.create(name=f"twin-{number}"))[0]
        if digit in seen:
            return digit
        seen.add(digit)
    raise AssertionError("17 ids, 16 digits")


def setting(path: str, value: Any) -> Callable[[Any], None]:
    """Return a change that sets one field, named with dots; a list replaces what is there."""

    def change(message: Any) -> None:
        *parents, last = path.split(".")
        for name in parents:
            message = getattr(message, name)
        if isinstance(value, (list, dict)):
            message.ClearField(last)
            field = getattr(message, last)
            field.update(value) if isinstance(value, dict) else field.extend(value)
        elif hasattr(value, "DESCRIPTOR"):
            getattr(message, last).CopyFrom(value)
        else:
            setattr(message, last, value)

    return change


def pod_row(name: str, path: str, value: Any, *words: str, code: str = "", **more: Any) -> Row:
    """Return a row: RunPodSandbox with one field of its config set."""
    change = setting(path, value)
    return Row(
        f"run: {name}",
        "RunPodSandbox",
        lambda world: world.pod(change),
        code or "INVALID_ARGUMENT",
        words,
        **more,
    )


def box_row(name: str, path: str, value: Any, *words: str, code: str = "", **more: Any) -> Row:
    """Return a row: CreateContainer with one field of its config set."""
    change = setting(path, value)
    return Row(
        f"create: {name}",
        "CreateContainer",
        lambda world: world.box(change),
        code or "INVALID_ARGUMENT",
        words,
        **more,
    )
