"""Running the runtime's binary: in the host's mount namespace, as the keeper's child, one run per call."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from polypod.backend.containers import end_process
from polypod.plan.operations import CloseDescriptors, Execute, Plan, StartSession, UseStdio
from polypod.plugin import BackendError, ProcessId, Stdio, Supervisor
from polypod.plugin.ids import new_id
from polypod_oci.errors import said
from polypod_oci.features import Facts, read_features
from polypod_oci.options import Options

_log = logging.getLogger(__name__)
_ENVIRONMENT: Final = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
_UNIFIED: Final = Path("/sys/fs/cgroup/unified")
_HIDE_UNIFIED: Final = (
    *("unshare", "--mount", "--propagation", "unchanged", "sh", "-c"),
    f'mount --make-private {_UNIFIED.parent} && umount {_UNIFIED} && exec "$@"',
    "sh",
)
"""crun refuses hybrid cgroups as a whole: it runs where it does not see the second hierarchy.

All other mounts stay as they are, so that what a container mounts on a shared volume arrives on the host.
"""


@dataclass(slots=True)
class Memory:
    """What a program writes, kept in a file of memory; `path` is how another process opens it."""

    fd: int = field(default_factory=lambda: os.memfd_create("polypod-oci", os.MFD_CLOEXEC))

    @property
    def path(self) -> str:
        """Return a path for a program that opens its log itself."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def take(self) -> bytes:
        """Return what was written, and close."""
        with os.fdopen(self.fd, "rb") as file:
            file.seek(0)
            return file.read()


class Tool:
    """One handler's runtime."""

    def __init__(self, options: Options, supervisor: Supervisor, handler: str) -> None:
        self.name = options.name
        self.root = options.root
        """Where the runtime keeps a directory for each container."""
        self.restores = options.restore
        self._supervisor = supervisor
        self._labels = {"handler": handler, "kind": "tool"}
        hides = options.name == "crun" and _UNIFIED.is_mount()
        self._words = (
            *(_HIDE_UNIFIED if hides else ()),
            options.path,
            *("--root", str(options.root)),
            *options.arguments,
        )

    async def facts(self) -> tuple[Facts, bool]:
        """Ask the binary for its features, and whether its execs can have a child cgroup."""
        usage = await self._try("exec", "--help")
        try:
            facts = read_features(await self._try("features"))
        except ValueError as error:
            _log.info("%s has no features command: %s", self.name, error)
            facts = Facts()
        return facts, b"--cgroup" in usage

    async def _try(self, *command: str) -> bytes:
        try:
            return await self.run(*command)
        except BackendError as error:
            _log.debug("%s", error)
            return b""

    async def run(self, *command: str, stdio: Stdio | None = None) -> bytes:
        """Run one command to its end; return what it printed.

        Args:
            command: with its arguments.
            stdio: the container's streams, for ``create`` and ``exec``: the runtime hands its own on.

        Raises:
            BackendError: it failed; the text has its name, the command, and its last words.
        """
        log, output = Memory(), Memory()
        words = (*self._words, "--log", log.path, "--log-format", "json", *command)
        streams = stdio or Stdio(None, output.fd, output.fd)
        try:
            code = await self._run(words, streams)
        finally:
            logged, printed = log.take(), output.take()
        if code != 0:
            how = "was killed" if code is None else f"ended with {code}"
            raise BackendError(f"{self.name} {command[0]} {how}: {said(logged, printed)}")
        return printed

    async def _run(self, words: Sequence[str], stdio: Stdio) -> int | None:
        process_id = ProcessId(f"oci-{new_id()[:24]}")
        fds = [fd for fd in (stdio.stdin, stdio.stdout, stdio.stderr) if fd is not None]
        launched = await self._supervisor.execute(
            process_id, _plan(words, stdio, fds), fds=fds, labels=self._labels
        )
        os.close(launched.pidfd)
        try:
            status = await self._supervisor.wait(process_id)
        except BaseException:
            await asyncio.shield(end_process(self._supervisor, process_id))
            raise
        await self._supervisor.forget(process_id)
        return None if status.signal else status.code


def _plan(words: Sequence[str], stdio: Stdio, fds: Sequence[int]) -> Plan:
    def source(fd: int | None) -> str:
        return "" if fd is None else f"fd:{fds.index(fd)}"

    streams = UseStdio(
        stdin=source(stdio.stdin),
        stdout=source(stdio.stdout),
        stderr=source(stdio.stderr),
        uid=-1,
    )
    execute = Execute(args=list(words), env=list(_ENVIRONMENT), search=True)
    return Plan(0, [StartSession(), streams, CloseDescriptors(), execute])


async def both(first: Coroutine[None, None, bytes], second: asyncio.Task[None]) -> None:
    """Run a command together with what serves it; a command that fails ends the other one."""
    try:
        await first
        await second
    finally:
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
