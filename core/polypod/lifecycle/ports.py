"""What lifecycle needs of others, as Protocols.

The real ones are in ``polypod.processes``, ``polypod.registry`` and `polypod.lifecycle.assemble`, the
fakes in ``polypod.testing``.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from polypod.lifecycle.views import Interface, StreamChoice
from polypod.plugin.ids import ContainerId, SandboxId
from polypod.plugin.images import Image, ImageStore
from polypod.plugin.observer import ContainerFacts, SandboxFacts
from polypod.plugin.oci import OciConfig
from polypod.plugin.requests import ContainerConfig, Resources, SandboxConfig, SandboxRequest
from polypod.plugin.runtime import PodResources, SandboxSpec
from polypod.plugin.services import ExitStatus, Stdio


class Captured(Protocol):
    """The output of one exec, read by the daemon itself: it dies with the call that asked for it."""

    stdio: Stdio
    """Hand it to the backend, then call `started`."""

    def started(self) -> None:
        """Close our copies of the process' ends."""
        ...

    async def collect(self) -> tuple[bytes, bytes]:
        """Return stdout and stderr as far as they were written when the exec ended.

        Reads until nothing is pending; never waits for a background child that keeps the pipe.
        """
        ...

    def close(self) -> None:
        """Close everything. Idempotent."""
        ...


class Attached(Protocol):
    """The client's ends of an attach, the caller's to close; None where there is no such stream."""

    @property
    def stdin(self) -> int | None: ...
    @property
    def stdout(self) -> int | None: ...
    @property
    def stderr(self) -> int | None: ...


class Logs(Protocol):
    """Standard streams of containers: made here, pumped by the logger, held by the keeper."""

    async def open(
        self,
        container_id: ContainerId,
        log_path: Path,
        /,
        *,
        base: Path,
        tty: bool,
        stdin: bool,
        stdin_once: bool,
    ) -> Stdio:
        """Make the streams of a container and its log file; both survive this daemon at once.

        Args:
            container_id: whose.
            log_path: absolute, below ``base``.
            base: the directory that must not be left: no link below it is followed (A7). Made if
                missing, off the event loop: a client's file system may hang.
            tty: one pty instead of pipes; the answer has ``console`` alone.
            stdin: keep a stdin.
            stdin_once: close it after the first attached client is gone.

        Raises:
            InvalidArgument: the path leads out of ``base`` or through a link.
        """
        ...

    async def reopen(self, container_id: ContainerId, log_path: Path, /, *, base: Path) -> None:
        """Write to a fresh file from the next line on. NotFound if the container has no streams."""
        ...

    async def drained(self, container_id: ContainerId, /) -> None:
        """Return when all that the ended container wrote is in the log; bounded, never raises."""
        ...

    async def close(self, container_id: ContainerId, /) -> None:
        """Forget the streams. Unknown ids succeed."""
        ...

    def capture(self, *, limit_bytes: int) -> Captured:
        """Make the streams of an exec whose output is wanted in memory."""
        ...

    async def attach(
        self, container_id: ContainerId, /, *, stdin: bool, stdout: bool, stderr: bool
    ) -> Attached:
        """Join a client to a container's streams; what was written before is not repeated.

        Raises:
            NotFound: the container has no streams.
            Unavailable: the logger does not answer.
        """
        ...

    async def resize(self, container_id: ContainerId, /, *, width: int, height: int) -> None:
        """Set the size of a container's terminal, in characters. FailedPrecondition: it has none."""
        ...


class Conversation(Protocol):
    """A command or container that a client talks to; whoever opened it must `close` it."""

    @property
    def ends(self) -> Mapping[str, int]:
        """Our ends of ``stdin``, ``stdout``, ``stderr``, as far as there are any.

        With a terminal of an exec the first two are one descriptor. What was closed is not there.
        """
        ...

    @property
    def ends_with_streams(self) -> bool:
        """Attach: it is over, too, when all its output has ended."""
        ...

    async def ended(self) -> int | None:
        """Return the exit code when the program is gone; None where nobody knows it."""
        ...

    async def resize(self, *, width: int, height: int) -> None:
        """Set the terminal's size, in characters. PolypodError: it has none, or is gone."""
        ...

    def close_stdin(self) -> None:
        """The client sends nothing more. A terminal stays open: its output comes from there. Idempotent."""
        ...

    async def abandon(self) -> None:
        """The client is gone: end an exec and all that it left behind; an attach only leaves."""
        ...

    def close(self) -> None:
        """Close the descriptors. Idempotent."""
        ...


class RemoteCommand(Protocol):
    """A checked request for exec or attach, to be opened when the client has come."""

    choice: StreamChoice

    async def open(self, size: tuple[int, int] | None = None, /) -> Conversation:
        """Start it.

        Args:
            size: of the terminal, (width, height) in characters, where it is known.

        Raises:
            PolypodError: it cannot be started (any more).
        """
        ...


class Forward(Protocol):
    """A checked request for a port-forward."""

    ports: tuple[int, ...]
    """The only ones that may be connected to; empty = any."""

    async def connect(self, port: int, /) -> socket.socket:
        """Return a non-blocking socket that is connected to a port of the sandbox.

        Raises:
            PolypodError: nobody listens there, or the sandbox is gone.
        """
        ...


class Interfaces(Protocol):
    """Counters of the interfaces inside pods; ``polypod.processes`` reads them."""

    async def read(
        self, sockets: Mapping[SandboxId, int], /
    ) -> Mapping[SandboxId, Sequence[Interface]]:
        """Return the interfaces of pods, without their loopbacks; a pod that cannot be read is left out.

        Args:
            sockets: each pod's NETLINK_ROUTE socket (`SandboxNamespaces.netlink`); they stay the caller's.
        """
        ...


class Telemetry(Protocol):
    """Is told how long things took; ``polypod.telemetry`` measures. Nothing here may fail or wait."""

    def stage(self, name: str, seconds: float, error: str, /) -> None:
        """A stage of a sandbox's or container's life has just ended; ``error`` is empty if well."""
        ...

    def pulled(self, received: int, seconds: float, error: str, /) -> None:
        """A pull has just ended; it has brought ``received`` bytes."""
        ...


class StreamUrls(Protocol):
    """Makes the URLs that Exec, Attach and PortForward answer; ``polypod.streaming`` serves them."""

    def exec(self, command: RemoteCommand, /) -> str:
        """Return a URL that works once and not for long. Unavailable: the server does not stream."""
        ...

    def attach(self, command: RemoteCommand, /) -> str:
        """As `exec`."""
        ...

    def forward(self, forward: Forward, /) -> str:
        """As `exec`."""
        ...


class HookCalls(Protocol):
    """The choose, adjust and observe hooks of all plugins; ``polypod.registry`` drives them."""

    def choose_handler(self, request: SandboxRequest, /) -> str | None:
        """Return another handler's name, or None. FailedPrecondition: the sandbox is refused."""
        ...

    async def adjust(
        self,
        container_id: ContainerId,
        sandbox_id: SandboxId,
        sandbox: SandboxConfig,
        request: ContainerConfig,
        config: OciConfig,
        /,
    ) -> OciConfig:
        """Return the config after every plugin has seen it, each under a deadline.

        Raises:
            BackendError: a plugin failed; the text names it.
            FailedPrecondition: a plugin refuses. So with all that follow and are awaited.
        """
        ...

    async def before_sandbox_ready(self, sandbox: SandboxFacts, /) -> None: ...
    async def before_container_start(self, container: ContainerFacts, /) -> None: ...
    async def adjust_update(
        self, container: ContainerFacts, resources: Resources, /
    ) -> Resources: ...
    async def before_sandbox_resize(
        self, sandbox: SandboxFacts, limits: PodResources, /
    ) -> None: ...
    async def before_sandbox_stop(self, sandbox: SandboxFacts, /) -> None:
        """Ask every plugin, whatever others answer; raises what the first failed with."""
        ...

    def notify_sandbox_ready(
        self, sandbox_id: SandboxId, sandbox: SandboxConfig, handler: str, /
    ) -> None:
        """Tell the observers; never raises. So do all that follow."""
        ...

    def notify_sandbox_stopped(self, sandbox_id: SandboxId, /) -> None: ...
    def notify_sandbox_removed(self, sandbox_id: SandboxId, /) -> None: ...
    def notify_sandbox_resized(self, sandbox: SandboxFacts, /) -> None: ...
    def notify_container_created(self, container: ContainerFacts, /) -> None: ...
    def notify_container_started(self, container_id: ContainerId, pid: int | None, /) -> None: ...
    def notify_container_updated(self, container: ContainerFacts, /) -> None: ...
    def notify_container_exited(self, container_id: ContainerId, status: ExitStatus, /) -> None: ...
    def notify_container_removed(self, container_id: ContainerId, /) -> None: ...


@dataclass(frozen=True, slots=True)
class ConfigRequest:
    """All that a container's OCI config is made of."""

    container_id: ContainerId
    sandbox: SandboxSpec
    config: ContainerConfig
    image: Image
    image_store: ImageStore
    """For ``/etc/passwd`` and ``/etc/group`` of the image."""
    cgroup: str


@dataclass(frozen=True, slots=True)
class BuiltConfig:
    """A container's OCI config, and what status reports of it."""

    oci: OciConfig
    stop_signal: int


class ConfigBuilder(Protocol):
    """CRI requests to OCI configs; ``polypod.lifecycle.assemble`` does it with ``polypod.spec``."""

    def sysctls(self, config: SandboxConfig, /) -> Mapping[str, str]:
        """Return the checked sysctls of a sandbox. InvalidArgument: one is unsafe or malformed."""
        ...

    def sandbox_files(
        self, config: SandboxConfig, addresses: Sequence[str] = (), /
    ) -> Mapping[str, str]:
        """Return name → text of the sandbox's files (``hostname``, ``hosts``, ``resolv.conf``).

        Args:
            config: the sandbox's.
            addresses: its own, once they are known.

        Raises:
            InvalidArgument: a value would break out of its line (E18).
        """
        ...

    def limits(self, config: OciConfig, change: Resources, /) -> OciConfig:
        """Return a container's config after an update of its limits; what is not set stays.

        Raises:
            InvalidArgument: a value is out of range.
            Unsupported: this host has no controller for it.
        """
        ...

    async def container(self, request: ConfigRequest, /) -> BuiltConfig:
        """Return a container's config.

        Raises:
            InvalidArgument: the request contradicts itself; the text names the field.
            Unsupported: what was asked cannot be expressed here.
        """
        ...
