"""`polypod.plugin.services.Supervisor` over the supervisor's socket; exits come from the keeper."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from pathlib import Path

from polypod.plan.channel import close_all
from polypod.plan.operations import Plan
from polypod.plugin.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    PolypodError,
    Unavailable,
)
from polypod.plugin.ids import ProcessId, SandboxId
from polypod.plugin.services import (
    ExitStatus,
    IdMaps,
    Launched,
    LiveProcess,
    ProcessExit,
    SandboxNamespaces,
)
from polypod.processes.connection import Answer, Connection, Message, NotNow
from polypod.processes.exits import Exits

_log = logging.getLogger(__name__)
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_TRIES = 4
_AGAIN_S = 0.1
_LAUNCH_TRIES = 30
_SIGKILL = 9


class SupervisorClient:
    """See `polypod.plugin.services.Supervisor`.

    A supervisor that dies is started again within some 50 ms. What can be asked twice is asked again
    then; a launch that was not answered is undone and fails with `Unavailable`.
    """

    def __init__(self) -> None:
        self._exits = Exits()
        self._supervisor: Connection
        self._keeper: Connection
        self._tasks: set[asyncio.Task[None]] = set()

    def connect(self, supervisor: Connection, keeper: Connection) -> None:
        """Take the connections."""
        self._supervisor, self._keeper = supervisor, keeper

    @property
    def keeper_directory(self) -> Path:
        """See `polypod.plugin.services.HoldsDescriptors`."""
        return self._keeper.path.parent

    async def load(self) -> None:
        """Learn what lives and what has ended, after the connections are open."""
        for found in await self.processes():
            self._exits.know(found.process_id)
        # Only now: news of a process that was not known yet has been dropped.
        await self._catch_up()

    async def make_namespaces(
        self,
        sandbox_id: SandboxId,
        kinds: frozenset[str],
        /,
        *,
        hostname: str = "",
        sysctls: Mapping[str, str] | None = None,
        ids: IdMaps | None = None,
    ) -> SandboxNamespaces:
        """See `polypod.plugin.services.Supervisor.make_namespaces`."""
        if ("user" in kinds) is not (ids is not None):
            msg = f"sandbox {sandbox_id}: a user namespace and its mappings go together"
            raise InvalidArgument(msg)
        answer, fds = await self._repeat(
            "make_namespaces",
            sandbox=sandbox_id,
            kinds=sorted(kinds - {"user"}),
            hostname=hostname,
            sysctls=dict(sysctls or {}),
            **({} if ids is None else {"ids": _ids(ids)}),
        )
        return _namespaces(sandbox_id, answer, fds)

    async def map_ids(self, ids: IdMaps, /) -> int:
        """See `polypod.plugin.services.Supervisor.map_ids`."""
        _answer, fds = await self._repeat("map_ids", ids=_ids(ids))
        return fds[0]

    async def namespaces(self, sandbox_id: SandboxId, /) -> SandboxNamespaces | None:
        """See `polypod.plugin.services.Supervisor.namespaces`."""
        answer, fds = await self._repeat("namespaces", sandbox=sandbox_id)
        return None if answer["kinds"] is None else _namespaces(sandbox_id, answer, fds)

    async def list_namespaces(self) -> Sequence[SandboxId]:
        """See `polypod.plugin.services.Supervisor.list_namespaces`."""
        found: list[SandboxId] = []
        more = True
        while more:
            after = found[-1] if found else ""
            answer, _fds = await self._repeat("list_namespaces", after=after)
            found += [SandboxId(item) for item in answer["items"]]
            more = bool(answer["more"])
        return found

    async def drop_namespaces(self, sandbox_id: SandboxId, /) -> None:
        """See `polypod.plugin.services.Supervisor.drop_namespaces`."""
        await self._repeat("drop_namespaces", sandbox=sandbox_id)

    async def launch(
        self,
        process_id: ProcessId,
        plan: Plan,
        /,
        *,
        fds: Sequence[int],
        labels: Mapping[str, str] | None = None,
        hold: bool = False,
    ) -> Launched:
        """See `polypod.plugin.services.Supervisor.launch`."""
        return await self._launch(process_id, plan, fds, labels or {}, hold=hold, on_host=False)

    async def execute(
        self,
        process_id: ProcessId,
        plan: Plan,
        /,
        *,
        fds: Sequence[int],
        labels: Mapping[str, str] | None = None,
    ) -> Launched:
        """See `polypod.plugin.services.Supervisor.execute`."""
        return await self._launch(process_id, plan, fds, labels or {}, hold=False, on_host=True)

    async def _launch(
        self,
        process_id: ProcessId,
        plan: Plan,
        fds: Sequence[int],
        labels: Mapping[str, str],
        *,
        hold: bool,
        on_host: bool,
    ) -> Launched:
        if self._exits.is_known(process_id):
            msg = f"process {process_id} exists"
            raise AlreadyExists(msg)
        memfd, length = _plan_file(plan)
        # Known before it runs: its exit may be told before the launch is answered.
        self._exits.begin(process_id)
        try:
            answer, answer_fds = await self._ask_launch(
                process_id,
                [memfd, *fds],
                plan=length,
                labels=dict(labels),
                hold=hold,
                on_host=on_host,
            )
        except AlreadyExists:
            # Somebody else's: nothing of ours is left.
            self._exits.forget(process_id)
            raise
        except PolypodError as error:
            await asyncio.shield(self._background(self._undo(process_id, error)))
            raise
        except BaseException as error:
            # Cancelled: nobody will ever ask for this process.
            self._background(self._undo(process_id, error))
            raise
        finally:
            os.close(memfd)
        self._exits.succeed(process_id)
        return Launched(process_id, int(answer["pid"]), int(answer["start_time"]), answer_fds[0])

    async def _ask_launch(
        self, process_id: ProcessId, fds: Sequence[int], **fields: object
    ) -> Answer:
        """Ask again if nothing was done: a keeper is being replaced, or the supervisor died too early."""
        keepers = self._keeper.losses
        for left in reversed(range(_LAUNCH_TRIES)):
            try:
                return await self._supervisor.request("launch", fds, process=process_id, **fields)
            except NotNow:
                if not left:
                    raise
                await asyncio.sleep(_AGAIN_S)
            except Unavailable:
                answer, _fds = await self._repeat("abort", process=process_id)
                # If the keeper died, too, nobody can say that there is no such process.
                if answer["known"] or not left or self._keeper.losses != keepers:
                    raise
        raise AssertionError  # the last try returns or raises

    async def _undo(self, process_id: ProcessId, error: BaseException) -> None:
        """See to it that nothing is left of a launch, not even the news of its end."""
        try:
            if isinstance(error, Unavailable) or not isinstance(error, PolypodError):
                await self._repeat("abort", process=process_id)
            # After this answer the keeper tells nothing of it any more: the id may be used again.
            await self._repeat("forget", self._keeper, process=process_id)
        except PolypodError as failed:
            _log.error("launch %s: what is left of it stays: %s", process_id, failed)
        finally:
            self._exits.forget(process_id)

    async def adopt(
        self, process_id: ProcessId, pid: int, /, *, labels: Mapping[str, str] | None = None
    ) -> Launched:
        """See `polypod.plugin.services.Supervisor.adopt`."""
        if self._exits.is_known(process_id):
            msg = f"process {process_id} exists"
            raise AlreadyExists(msg)
        self._exits.begin(process_id)
        try:
            answer, fds = await self._repeat(
                "adopt", process=process_id, pid=pid, labels=dict(labels or {})
            )
        except (AlreadyExists, NotFound):
            self._exits.forget(process_id)
            raise
        except BaseException:
            # Nobody will ask for it; the process itself is somebody else's to end.
            self._background(self._disown(process_id))
            raise
        self._exits.succeed(process_id)
        pidfd = fds[0] if fds else -1
        return Launched(process_id, int(answer["pid"]), int(answer["start_time"]), pidfd)

    async def _disown(self, process_id: ProcessId) -> None:
        try:
            await self._repeat("forget", process=process_id)
        except PolypodError as error:
            _log.error("adopt %s: it may be known still: %s", process_id, error)
        finally:
            self._exits.forget(process_id)

    async def release(self, process_id: ProcessId, /) -> None:
        """See `polypod.plugin.services.Supervisor.release`."""
        again = False
        for _ in range(_TRIES):
            try:
                _answer, fds = await self._supervisor.request(
                    "release", process=process_id, again=again
                )
            except Unavailable:
                again = True
                await asyncio.sleep(_AGAIN_S)
            else:
                close_all(fds)
                return
        msg = f"process {process_id}: release: the supervisor does not answer"
        raise Unavailable(msg)

    async def kill(self, process_id: ProcessId, signal: int, /) -> None:
        """See `polypod.plugin.services.Supervisor.kill`."""
        # Programs tell one SIGTERM from two; only what cannot be noticed twice is sent twice.
        if signal in (0, _SIGKILL):
            await self._repeat("kill", process=process_id, signal=signal)
        else:
            await self._supervisor.request("kill", process=process_id, signal=signal)

    async def connect_tcp(self, sandbox_id: SandboxId, host: str, port: int, /) -> int:
        """See `polypod.plugin.services.Supervisor.connect_tcp`."""
        _answer, fds = await self._repeat("connect_tcp", sandbox=sandbox_id, host=host, port=port)
        return fds[0]

    async def processes(self) -> Sequence[LiveProcess]:
        """See `polypod.plugin.services.Supervisor.processes`."""
        found: list[LiveProcess] = []
        more = True
        while more:
            after = found[-1].process_id if found else ""
            answer, _fds = await self._repeat("processes", after=after)
            rows = answer["processes"]
            found.extend(self._live(ProcessId(name), rows[name]) for name in answer["items"])
            more = bool(answer["more"])
        return found

    def _live(self, name: ProcessId, row: Message) -> LiveProcess:
        ended = self._exits.status(name) or (_status(row["exit"]) if row.get("exit") else None)
        return LiveProcess(name, int(row["pid"]), int(row["start_time"]), row["labels"], ended)

    async def wait(self, process_id: ProcessId, /) -> ExitStatus:
        """See `polypod.plugin.services.Supervisor.wait`."""
        ended = self._exits.status(process_id)
        if ended is not None:
            return ended
        waiter = self._exits.waiter(process_id)
        if waiter is None:
            msg = f"process {process_id}: unknown"
            raise NotFound(msg)
        return await waiter

    async def forget(self, process_id: ProcessId, /) -> None:
        """See `polypod.plugin.services.Supervisor.forget`."""
        await self._repeat("forget", process=process_id)
        self._exits.forget(process_id)

    async def exits(self) -> AsyncIterator[ProcessExit]:
        """See `polypod.plugin.services.Supervisor.exits`."""
        async for item in self._exits.listen():
            yield item

    def close(self) -> None:
        """End `exits`, and what runs in the background."""
        for task in list(self._tasks):
            task.cancel()
        self._exits.close()

    async def _repeat(
        self, op: str, connection: Connection | None = None, /, **fields: object
    ) -> Answer:
        """Ask again if the peer died meanwhile: only for what may be done twice."""
        for left in reversed(range(_TRIES)):
            try:
                return await (connection or self._supervisor).request(op, (), **fields)
            except Unavailable:
                if not left:
                    raise
                await asyncio.sleep(_AGAIN_S)
        raise AssertionError  # the last try returns or raises

    def _background(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # What the keeper tells.

    def on_keeper_connect(self) -> None:
        """Watch exits, then ask for those that happened before."""
        self._background(self._catch_up())

    def on_keeper_event(self, message: Message) -> None:
        """One process is gone."""
        if message.get("event") == "exit":
            self._exits.note(ProcessId(str(message["process"])), _status(message))

    async def _catch_up(self) -> None:
        try:
            await self._keeper.request("watch")
            after, more = "", True
            while more:
                answer, _fds = await self._keeper.request("exits", after=after)
                for name, record in answer["exits"].items():
                    after = name
                    self._exits.know(ProcessId(name))
                    self._exits.note(ProcessId(name), _status(record))
                more = bool(answer["more"])
        except Unavailable as error:
            # The next connection catches up.
            _log.info("exits: %s", error)


def _namespaces(sandbox_id: SandboxId, answer: Message, fds: list[int]) -> SandboxNamespaces:
    named = dict(zip(answer["kinds"], fds, strict=True))
    netlink = named.pop("netlink", None)
    return SandboxNamespaces(sandbox_id, named, netlink, int(answer["init_pid"]) or None)


def _ids(ids: IdMaps) -> Message:
    return {
        name: [[each.container_id, each.host_id, each.size] for each in ranges]
        for name, ranges in (("uids", ids.uids), ("gids", ids.gids))
    }


def _status(record: Message) -> ExitStatus:
    at = int(record.get("at") or 0) or time.time_ns()
    code = record.get("code")
    return ExitStatus(None if code is None else int(code), int(record.get("signal") or 0), at)


def _plan_file(plan: Plan) -> tuple[int, int]:
    """Return a memfd with a plan and then its environment, and the length of the plan.

    The supervisor reads no further: every process that it clones has its memory until it executes.
    """
    wire, environment = plan.to_wire_apart()
    text = json.dumps(wire).encode()
    return _sealed(text + json.dumps(environment).encode()), len(text)


def _sealed(data: bytes) -> int:
    """Return a memfd that nobody can change any more."""
    fd = os.memfd_create("polypod-plan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, data)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd
