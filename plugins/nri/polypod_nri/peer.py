"""One NRI plugin: its connection, what it wants to be told, and all calls to it, one after the other.

Calls are queued at once and made in that order, so that a plugin hears of things in the order in which
they happened; the first one in the queue is Synchronize. A plugin that does not answer in time, sends
garbage or ends is closed: what is queued for it then ends as if it had never been there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from polypod_nri import wire
from polypod_nri.connection import Code, Connection, Gone, Refused
from polypod_nri.framing import ProtocolError
from polypod_nri.settings import Settings
from polypod_nri.wire import api

log = logging.getLogger(__name__)

RUNTIME = "nri.pkg.api.v1alpha1.Runtime"
PLUGIN = "nri.pkg.api.v1alpha1.Plugin"
NRI_VERSION = "v0.12.0"
"""Of the interface that is spoken here."""

EVENTS = {
    "RunPodSandbox": api.RUN_POD_SANDBOX,
    "UpdatePodSandbox": api.UPDATE_POD_SANDBOX,
    "PostUpdatePodSandbox": api.POST_UPDATE_POD_SANDBOX,
    "StopPodSandbox": api.STOP_POD_SANDBOX,
    "RemovePodSandbox": api.REMOVE_POD_SANDBOX,
    "CreateContainer": api.CREATE_CONTAINER,
    "PostCreateContainer": api.POST_CREATE_CONTAINER,
    "StartContainer": api.START_CONTAINER,
    "PostStartContainer": api.POST_START_CONTAINER,
    "UpdateContainer": api.UPDATE_CONTAINER,
    "PostUpdateContainer": api.POST_UPDATE_CONTAINER,
    "StopContainer": api.STOP_CONTAINER,
    "RemoveContainer": api.REMOVE_CONTAINER,
    "ValidateContainerAdjustment": api.VALIDATE_CONTAINER_ADJUSTMENT,
}
"""Method → event."""
ALL_EVENTS = sum(1 << (event - 1) for event in EVENTS.values())
_ANSWERED = {
    "UpdatePodSandbox",
    "CreateContainer",
    "UpdateContainer",
    "StopContainer",
    "ValidateContainerAdjustment",
}
"""Methods whose answers count: what the others tell came by StateChange once."""

_INDEX = re.compile(r"[0-9]{2}")
_NAME = re.compile(r"[A-Za-z0-9_.+-]+")
_MAX_QUEUE = 10_000
M = TypeVar("M", bound=wire.Message)


@dataclass(slots=True)
class _Job:
    """A call that waits for its turn."""

    work: Callable[[], Awaitable[wire.Message | None]]
    done: asyncio.Future[wire.Message | None] = field(init=False)

    def __post_init__(self) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self.done.add_done_callback(_look)


class Peer:
    """One plugin."""

    def __init__(
        self,
        sock: socket.socket,
        settings: Settings,
        *,
        asked: Callable[[Peer, api.UpdateContainersRequest], Awaitable[wire.Message]],
        changed: Callable[[Peer], None],
        identity: tuple[str, str] | None = None,
    ) -> None:
        """Take a connected socket.

        Args:
            sock: of the plugin; taken.
            settings: time limits.
            asked: answers UpdateContainers.
            changed: called when it becomes something else: what is reported of it.
            identity: index and name of one that the server has started; others tell theirs.
        """
        self.pid = _peer_pid(sock)
        self.index, self.name = identity or ("", "")
        self.launched = identity is not None
        self.events = 0
        self.state = "connecting"
        """``connecting``, ``synchronizing``, ``connected`` or ``closed``."""
        self.reason = ""
        """Why it is closed."""
        self._settings = settings
        self._asked = asked
        self._changed = changed
        self._registered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._older: set[str] = set()
        """Methods that it does not know: told by StateChange."""
        self._queue: deque[_Job] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._connection = Connection(sock, self._serve, self._ended)

    @property
    def title(self) -> str:
        """Index and name, as in the names of programs: ``10-logger``."""
        return f"{self.index or '??'}-{self.name or 'unregistered'}"

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self.state != "closed"

    def wants(self, method: str) -> bool:
        """Whether it wants to be told of something."""
        return bool(self.events >> (EVENTS[method] - 1) & 1)

    # From connection to closure

    async def introduce(self, config: str, version: str) -> None:
        """Wait until it has registered, then configure it.

        Raises:
            Gone: it does not come that far; it is closed.
        """
        await self._connection.start()
        try:
            await asyncio.wait_for(self._registered, self._settings.registration_timeout_s)
            request = api.ConfigureRequest(
                config=config,
                runtime_name="polypod",
                runtime_version=version,
                registration_timeout=int(self._settings.registration_timeout_s * 1000),
                request_timeout=int(self._settings.request_timeout_s * 1000),
                NRI_version=NRI_VERSION,
            )
            answer = await self._call("Configure", request, api.ConfigureResponse)
        except TimeoutError as error:
            limit = self._settings.registration_timeout_s
            self.abandon(f"it did not register within {limit:g} s")
            raise Gone(self.reason) from error
        except Refused as error:
            self.abandon(f"it refused its configuration: {error}")
            raise Gone(self.reason) from error
        if answer.events & ~ALL_EVENTS:
            self.abandon(f"it wants events that there are not: {answer.events:#x}")
            raise Gone(self.reason)
        self.events = answer.events or ALL_EVENTS

    def join(self, synchronize: Callable[[Peer], Awaitable[None]]) -> None:
        """Begin to make the calls that are queued, after ``synchronize`` has told what there is."""
        self.state = "synchronizing"
        self._changed(self)

        async def first() -> None:
            await synchronize(self)
            self.state = "connected"
            self._changed(self)

        self._queue.append(_Job(first))
        self._worker = asyncio.create_task(self._work(), name=f"nri plugin {self.title}")

    def abandon(self, reason: str) -> None:
        """Close it; what is queued ends with `Gone`. Idempotent."""
        self._connection.abandon(reason)

    async def close(self) -> None:
        """Tell it that the server leaves, then close it."""
        if self.alive:
            try:
                await self._call("Shutdown", api.Empty(), api.Empty, timeout_s=1.0)
            except (Gone, Refused):
                log.debug("NRI plugin %s did not take its leave", self.title)
        await self._connection.close("the server leaves")
        if self._worker is not None:
            await asyncio.gather(self._worker, return_exceptions=True)

    def _ended(self, reason: str) -> None:
        self.state, self.reason = "closed", reason
        if not self._registered.done():
            self._registered.set_exception(Gone(reason))
            self._registered.exception()  # somebody may have stopped waiting
        for job in self._queue:
            _fail(job, Gone(reason))
        self._queue.clear()
        if self._worker is not None and self._worker is not asyncio.current_task():
            self._worker.cancel()
        self._changed(self)

    # Calls to it

    def ask(self, method: str, request: wire.Message, kind: type[M]) -> asyncio.Future[M | None]:
        """Queue a call; the answer is None where it does not know the method.

        What comes of it: `Gone` if it is closed before, `Refused` if it answers with an error.
        """

        async def work() -> M | None:
            return await self._tell(method, request, kind)

        return self._enqueue(work)  # type: ignore[return-value]  # `work` answers an M

    def _enqueue(
        self, work: Callable[[], Awaitable[wire.Message | None]]
    ) -> asyncio.Future[wire.Message | None]:
        job = _Job(work)
        if not self.alive:
            _fail(job, Gone(self.reason))
            return job.done
        if len(self._queue) >= _MAX_QUEUE:
            self.abandon(f"{len(self._queue)} calls wait for it")
            _fail(job, Gone(self.reason))
            return job.done
        self._queue.append(job)
        self._wake()
        return job.done

    def _wake(self) -> None:
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work(), name=f"nri plugin {self.title}")

    async def _work(self) -> None:
        while self._queue:
            job = self._queue.popleft()
            try:
                answer = await job.work()
            except (Gone, Refused) as error:
                _fail(job, error)
            except asyncio.CancelledError:
                _fail(job, Gone(self.reason or "closed"))
                raise
            except Exception as error:
                log.exception("call to NRI plugin %s failed", self.title)
                _fail(job, Gone(repr(error)))
            else:
                if not job.done.done():
                    job.done.set_result(answer)

    async def _tell(self, method: str, request: wire.Message, kind: type[M]) -> M | None:
        try:
            if method not in self._older:
                return await self._call(method, request, kind)
        except Refused as error:
            if error.code != Code.UNIMPLEMENTED:
                raise
            if method in _ANSWERED:
                return None
            self._older.add(method)
            log.info("NRI plugin %s does not know %s: told by StateChange", self.title, method)
        event = api.StateChangeEvent(event=EVENTS[method])
        for name in ("pod", "container"):
            if name in request.DESCRIPTOR.fields_by_name and request.HasField(name):
                getattr(event, name).CopyFrom(getattr(request, name))
        try:
            await self._call("StateChange", event, api.Empty)
        except Refused as error:
            if error.code != Code.UNIMPLEMENTED:
                raise
        return None

    async def synchronize(self, request: api.SynchronizeRequest) -> api.SynchronizeResponse:
        """Tell a part of what there is; for the work that `join` is given."""
        return await self._call("Synchronize", request, api.SynchronizeResponse)

    async def _call(
        self, method: str, request: wire.Message, kind: type[M], timeout_s: float | None = None
    ) -> M:
        """Make a call now.

        Raises:
            Refused: it answered with an error.
            Gone: it is closed, because it did not answer in time or not in kind, or before.
        """
        seconds = self._settings.request_timeout_s if timeout_s is None else timeout_s
        try:
            data = await self._connection.call(PLUGIN, method, request.SerializeToString(), seconds)
            return wire.decode(kind, data)
        except TimeoutError as error:
            self.abandon(f"it did not answer {method} within {seconds:g} s")
            raise Gone(self.reason) from error
        except (wire.Garbage, ProtocolError) as error:
            self.abandon(f"{method}: {error}")
            raise Gone(self.reason) from error

    # Calls of it

    async def _serve(self, service: str, method: str, payload: bytes) -> bytes:
        if service != RUNTIME or method not in {"RegisterPlugin", "UpdateContainers"}:
            raise Refused(Code.UNIMPLEMENTED, f"there is no {service}/{method}")
        if method == "RegisterPlugin":
            self._register(wire.decode(api.RegisterPluginRequest, payload))
            return api.Empty().SerializeToString()
        if self.state not in {"synchronizing", "connected"}:
            raise Refused(Code.FAILED_PRECONDITION, "register first")
        answer = await self._asked(self, wire.decode(api.UpdateContainersRequest, payload))
        return answer.SerializeToString()

    def _register(self, request: api.RegisterPluginRequest) -> None:
        if self._registered.done():
            raise Refused(Code.FAILED_PRECONDITION, "registered already")
        if not self.launched:
            if not _INDEX.fullmatch(request.plugin_idx) or not _NAME.fullmatch(request.plugin_name):
                reason = (
                    f"it registers as {request.plugin_idx!r} {request.plugin_name!r}: two digits and a "
                    "name of letters, digits and _.+- were expected"
                )
                asyncio.get_running_loop().call_soon(self.abandon, reason)
                raise Refused(Code.INVALID_ARGUMENT, reason)
            self.index, self.name = request.plugin_idx, request.plugin_name
        log.info(
            "NRI plugin registered name=%s pid=%d version=%s",
            self.title,
            self.pid,
            request.NRI_version or "unknown",
        )
        self._registered.set_result(None)
        self._changed(self)


def parse_name(file_name: str) -> tuple[str, str] | None:
    """Return index and name of a program ``NN-NAME``, or None if it is none."""
    index, dash, name = file_name.partition("-")
    if dash and _INDEX.fullmatch(index) and _NAME.fullmatch(name):
        return index, name
    return None


def _fail(job: _Job, error: Exception) -> None:
    if not job.done.done():
        job.done.set_exception(error)


def _look(done: asyncio.Future[wire.Message | None]) -> None:
    """Look at an outcome that perhaps nobody waits for, so that asyncio does not complain."""
    if not done.cancelled():
        done.exception()


def _peer_pid(sock: socket.socket) -> int:
    pid: int = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    return 0 if pid == os.getpid() else pid
