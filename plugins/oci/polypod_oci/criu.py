"""Checkpoints by a runtime's ``checkpoint`` and ``restore``, which execute CRIU.

What CRIU writes is the program's memory, its credentials and its open files: whoever restores it runs what it
says. So a handler restores only where its options allow it (``restore = true``); everything around the
program, mounts, devices, namespaces, cgroup, comes from the request.

Spec:
    runc-checkpoint(8), runc-restore(8); criu(8). Reliability E20.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from polypod.plugin import (
    BackendError,
    ContainerId,
    FailedPrecondition,
    Launched,
    ProcessId,
    Stdio,
)
from polypod_oci.calls import Calls
from polypod_oci.inventory import Bundle
from polypod_oci.tool import Tool

_SHARED: Final = ("--tcp-established", "--ext-unix-sk", "--file-locks")
"""Connections, sockets of others (``/dev/log``) and locks: a container in use has them."""
_IMAGES: Final = "criu"
_REASONS: Final = 3
_LOG_BYTES: Final = 1 << 20


async def can_checkpoint(tool: Tool) -> bool:
    """Tell whether a runtime has the two commands; CRIU itself shows what it can when it is asked."""
    try:
        return b"--image-path" in await tool.run("checkpoint", "--help")
    except BackendError:
        return False


class Criu:
    """The two commands of one handler."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def checkpoint(self, container_id: ContainerId, directory: Path) -> None:
        """Write a container's program into an empty directory; it runs on.

        Raises:
            FailedPrecondition: CRIU cannot, with its own words.
        """
        work = self._calls.bundle(container_id).path / "criu-work"
        images = directory / _IMAGES
        try:
            await asyncio.to_thread(_fresh, images, work)
            await self._calls.tool.run(
                "checkpoint",
                *("--image-path", str(images)),
                *("--work-path", str(work)),
                "--leave-running",
                *_SHARED,
                container_id,
            )
        except BackendError as error:
            reason = await asyncio.to_thread(why, work / "dump.log")
            raise FailedPrecondition(f"{error}; {reason}") from error
        finally:
            await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)

    async def restore(
        self,
        directory: Path,
        bundle: Bundle,
        stdio: Stdio,
        process_id: ProcessId,
        labels: Mapping[str, str],
    ) -> Launched:
        """Make a container of a bundle go on from what `checkpoint` wrote.

        Raises:
            FailedPrecondition: the handler's options do not allow it; CRIU cannot.
        """
        if not self._calls.tool.restores:
            raise FailedPrecondition(
                f"{self._calls.tool.name}: a checkpoint says with which credentials its program runs, so "
                "restoring is off: set handlers.NAME.options.restore = true if you trust who writes them"
            )
        work = bundle.path / "criu-work"
        command = ["restore", "--detach", "--no-subreaper", *_SHARED]
        command += ["--image-path", str(directory / _IMAGES), "--work-path", str(work)]
        try:
            await asyncio.to_thread(work.mkdir, 0o700)
            return await self._calls.make(bundle, stdio, process_id, labels, command)
        except BackendError as error:
            reason = await asyncio.to_thread(why, work / "restore.log")
            raise FailedPrecondition(f"{error}; {reason}") from error


def why(path: Path) -> str:
    """Return the last errors of a log of CRIU's."""
    try:
        with path.open("rb") as file:
            text = file.read(_LOG_BYTES).decode(errors="replace")
    except OSError:
        return "CRIU wrote no log: is it installed?"
    errors = [line.partition("Error ")[2].strip() for line in text.splitlines() if "Error " in line]
    return "CRIU: " + ("; ".join(errors[-_REASONS:]) or "no error in its log")


def _fresh(images: Path, work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(mode=0o700)
    images.mkdir(mode=0o700)
