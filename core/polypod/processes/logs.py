"""`polypod.lifecycle.ports.Logs`: makes the streams of containers; keeper and logger take them over.

The daemon makes pipes and opens files, leaves them with the keeper, and is not needed any more. The
logger is only told; whether its disk hangs does not matter to a container's start.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from polypod.plan.channel import close_all
from polypod.plugin.errors import BackendError, PolypodError, ResourceExhausted, Unavailable
from polypod.plugin.ids import ContainerId
from polypod.plugin.services import Stdio
from polypod.processes.capture import Capture
from polypod.processes.connection import Connection
from polypod.processes.log_paths import open_log

_log = logging.getLogger(__name__)
_PATH_THREADS = 8
_OPEN_S = 10.0
_DRAIN_S = 2.0
_F_SETPIPE_SZ = 1031  # linux/fcntl.h
_PIPE_BYTES = 256 * 1024
"""The logger consumes what it has read only once it is in the log: meanwhile the container writes on."""
_LOGGER_S = 10.0
_TELL_TRIES = 50
_TELL_AGAIN_S = 0.2


@dataclass(frozen=True, slots=True)
class AttachedStreams:
    """The client's ends of an attach, the caller's to close; None where there is no such stream.

    A client that reads too slowly loses output beyond some 1 MiB; the container never waits for it.
    """

    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None


class LogService:
    """See `polypod.lifecycle.ports.Logs`."""

    def __init__(self, keeper: Connection, logger: Connection) -> None:
        """Use the connections of a `polypod.processes.host.ProcessHost`."""
        self._keeper = keeper
        self._logger = logger
        # A pool of its own: a log disk that hangs takes these threads and no others.
        self._threads = ThreadPoolExecutor(_PATH_THREADS, thread_name_prefix="polypod-log-paths")
        self._tasks: set[asyncio.Task[None]] = set()
        self._plain: set[ContainerId] = set()
        """Opened by us without a terminal: the keeper holds no pty of theirs."""

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
        """See `polypod.lifecycle.ports.Logs.open`."""
        log = await self._open_log(container_id, log_path, base)
        ends: dict[str, int] = {"log": log}
        theirs: dict[str, int] = {}
        try:
            _make_streams(ends, theirs, tty=tty, stdin=stdin)
            meta = {"tty": tty, "stdin": stdin, "stdin_once": stdin_once, "fds": list(ends)}
            fds = list(ends.values())
            # The keeper passes them on to the logger.
            await self._keeper.request("put", fds, key=f"log/{container_id}", meta=meta)
        except BaseException as error:
            close_all(list(theirs.values()))
            if isinstance(error, OSError):
                msg = f"container {container_id}: standard streams: {error.strerror}"
                raise ResourceExhausted(msg) from error
            raise
        finally:
            close_all(list(ends.values()))
        if not tty:
            self._plain.add(container_id)
        return Stdio(**theirs)

    async def reopen(self, container_id: ContainerId, log_path: Path, /, *, base: Path) -> None:
        """See `polypod.lifecycle.ports.Logs.reopen`."""
        # Asked first: a container without streams gets no new file either.
        await self._ask("sync", container_id, known=True)
        log = await self._open_log(container_id, log_path, base)
        try:
            await self._ask("reopen", container_id, fds=[log])
        finally:
            os.close(log)

    async def drained(self, container_id: ContainerId, /) -> None:
        """See `polypod.lifecycle.ports.Logs.drained`."""
        with contextlib.suppress(PolypodError, TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                await self._logger.request("drained", container=container_id)

    async def close(self, container_id: ContainerId, /) -> None:
        """See `polypod.lifecycle.ports.Logs.close`."""
        self._tell("close", container_id)
        await self._keeper.request("drop", key=f"log/{container_id}")
        if container_id not in self._plain:
            await self._keeper.request("drop", key=f"log/{container_id}/pty")
        self._plain.discard(container_id)

    def capture(self, *, limit_bytes: int) -> Capture:
        """See `polypod.lifecycle.ports.Logs.capture`."""
        return Capture(limit_bytes=limit_bytes)

    async def attach(
        self, container_id: ContainerId, /, *, stdin: bool, stdout: bool, stderr: bool
    ) -> AttachedStreams:
        """Join a client to a container's streams; nothing that was written before is repeated.

        Raises:
            NotFound: the container has no streams.
            Unavailable: the logger does not answer.
        """
        asked = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
        wanted = [name for name, is_wanted in asked.items() if is_wanted]
        names, fds = await self._ask("attach", container_id, streams=wanted)
        found = names.get("streams")
        if not isinstance(found, list) or len(found) != len(fds):
            close_all(fds)
            msg = f"container {container_id}: attach: the logger's answer makes no sense"
            raise BackendError(msg)
        return AttachedStreams(**dict(zip(found, fds, strict=True)))

    async def resize(self, container_id: ContainerId, /, *, width: int, height: int) -> None:
        """Set the size of a container's terminal, in characters.

        Raises:
            NotFound: the container has no streams.
            FailedPrecondition: it has no terminal.
        """
        await self._ask("resize", container_id, width=width, height=height)

    async def aclose(self) -> None:
        """Stop what runs in the background; the streams live on."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _open_log(self, container_id: str, log_path: Path, base: Path) -> int:
        loop = asyncio.get_running_loop()
        opening = loop.run_in_executor(self._threads, open_log, container_id, log_path, base)
        try:
            return await asyncio.wait_for(asyncio.shield(opening), _OPEN_S)
        except (TimeoutError, asyncio.CancelledError) as error:
            # The thread may come back one day; its descriptor must not stay open then.
            opening.add_done_callback(_close_result)
            if isinstance(error, asyncio.CancelledError):
                raise
            msg = f"container {container_id}: opening {log_path} hangs; is its disk alive?"
            raise Unavailable(msg) from error

    async def _ask(
        self, op: str, container_id: str, fds: Sequence[int] = (), **fields: object
    ) -> tuple[dict[str, object], list[int]]:
        try:
            async with asyncio.timeout(_LOGGER_S):
                return await self._logger.request(op, fds, container=container_id, **fields)
        except TimeoutError as error:
            msg = f"container {container_id}: {op}: the logger does not answer; a log disk may hang"
            raise Unavailable(msg) from error

    def _tell(self, op: str, container_id: str) -> None:
        task = asyncio.get_running_loop().create_task(self._tell_until_heard(op, container_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell_until_heard(self, op: str, container_id: str) -> None:
        for _ in range(_TELL_TRIES):
            try:
                await self._logger.request(op, container=container_id)
            except Unavailable:
                await asyncio.sleep(_TELL_AGAIN_S)
            except PolypodError as error:
                _log.warning("logger: %s %s: %s", op, container_id, error)
                return
            else:
                return
        _log.error("logger: %s %s: it could not be reached", op, container_id)


def _make_streams(ends: dict[str, int], theirs: dict[str, int], *, tty: bool, stdin: bool) -> None:
    """Fill in the logger's ends and the process' ends."""
    if tty:
        ours, process = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ends["console"], theirs["console"] = ours.detach(), process.detach()
        return
    for name in ("stdout", "stderr"):
        ends[name], theirs[name] = os.pipe2(os.O_CLOEXEC)
        _widen(theirs[name])
    if stdin:
        theirs["stdin"], ends["stdin"] = os.pipe2(os.O_CLOEXEC)


def _widen(pipe: int) -> None:
    """Give a log pipe room, where the user's budget of pipe pages has it."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe, _F_SETPIPE_SZ, _PIPE_BYTES)


def _close_result(opening: asyncio.Future[int]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result())
