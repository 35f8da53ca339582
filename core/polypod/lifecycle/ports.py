"""What lifecycle needs of others, as Protocols.

The real ones are in ``polypod.processes``, ``polypod.registry`` and `polypod.lifecycle.assemble`, the
fakes in ``polypod.testing``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from polypod.plugin.ids import ContainerId, SandboxId
from polypod.plugin.images import Image, ImageStore
from polypod.plugin.oci import OciConfig
from polypod.plugin.requests import ContainerConfig, SandboxConfig, SandboxRequest
from polypod.plugin.runtime import SandboxSpec
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


class HookCalls(Protocol):
    """The choose, adjust and observe hooks of all plugins; ``polypod.registry`` drives them."""

    def choose_handler(self, request: SandboxRequest, /) -> str | None:
        """Return another handler's name, or None. FailedPrecondition: the sandbox is refused."""
        ...

    async def adjust(
        self,
        container_id: ContainerId,
        sandbox: SandboxConfig,
        request: ContainerConfig,
        config: OciConfig,
        /,
    ) -> OciConfig:
        """Return the config after every plugin has seen it, each under a deadline.

        Raises:
            BackendError: a plugin failed; the text names it.
        """
        ...

    def notify_sandbox_ready(
        self, sandbox_id: SandboxId, sandbox: SandboxConfig, handler: str, /
    ) -> None:
        """Tell the observers; never raises. So do all that follow."""
        ...

    def notify_sandbox_stopped(self, sandbox_id: SandboxId, /) -> None: ...
    def notify_sandbox_removed(self, sandbox_id: SandboxId, /) -> None: ...
    def notify_container_started(self, container_id: ContainerId, pid: int | None, /) -> None: ...
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

    async def container(self, request: ConfigRequest, /) -> BuiltConfig:
        """Return a container's config.

        Raises:
            InvalidArgument: the request contradicts itself; the text names the field.
            Unsupported: what was asked cannot be expressed here.
        """
        ...
