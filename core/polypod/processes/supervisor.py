"""`polypod.plugin.services.Supervisor` over the supervisor's socket; exits come from the keeper."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence

from polypod.plan.channel import close_all
from polypod.plan.operations import Plan
from polypod.plugin.errors import NotFound, Unavailable
from polypod.plugin.ids import ProcessId, SandboxId
from polypod.plugin.services import (
    ExitStatus,
    Launched,
    LiveProcess,
    ProcessExit,
    SandboxNamespaces,
)
from polypod.processes.connection import Connection, Message

_log = logging.getLogger(__name__)
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class SupervisorClient:
    """See `polypod.plugin.services.Supervisor`."""

    def __init__(self) -> None:
        self._known: set[ProcessId] = set()
        self._ended: dict[ProcessId, ExitStatus] = {}
        self._waiters: dict[ProcessId, list[asyncio.Future[ExitStatus]]] = {}
        self._exits: asyncio.Queue[ProcessExit | None] = asyncio.Queue()
        self._supervisor: Connection
        self._keeper: Connection
        self._tasks: set[asyncio.Task[None]] = set()

    def connect(self, supervisor: Connection, keeper: Connection) -> None:
        """Take the connections."""
        self._supervisor, self._keeper = supervisor, keeper

    async def load(self) -> None:
        """Learn what lives, after the connections are open."""
        for found in await self.processes():
            self._known.add(found.process_id)

    async def make_namespaces(
        self,
        sandbox_id: SandboxId,
        kinds: frozenset[str],
        /,
        *,
        hostname: str = "",
        sysctls: Mapping[str, str] | None = None,
    ) -> SandboxNamespaces:
        """See `polypod.plugin.services.Supervisor.make_namespaces`."""
        answer, fds = await self._supervisor.request(
            "make_namespaces",
            sandbox=sandbox_id,
            kinds=sorted(kinds),
            hostname=hostname,
            sysctls=dict(sysctls or {}),
        )
        return _namespaces(sandbox_id, answer, fds)

    async def namespaces(self, sandbox_id: SandboxId, /) -> SandboxNamespaces | None:
        """See `polypod.plugin.services.Supervisor.namespaces`."""
        answer, fds = await self._supervisor.request("namespaces", sandbox=sandbox_id)
        return None if answer["kinds"] is None else _namespaces(sandbox_id, answer, fds)

    async def list_namespaces(self) -> Sequence[SandboxId]:
        """See `polypod.plugin.services.Supervisor.list_namespaces`."""
        found: list[SandboxId] = []
        more = True
        while more:
            after = found[-1] if found else ""
            answer, _fds = await self._supervisor.request("list_namespaces", after=after)
            found += [SandboxId(item) for item in answer["items"]]
            more = bool(answer["more"])
        return found

    async def drop_namespaces(self, sandbox_id: SandboxId, /) -> None:
        """See `polypod.plugin.services.Supervisor.drop_namespaces`."""
        await self._supervisor.request("drop_namespaces", sandbox=sandbox_id)

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
        """Like `launch`, in the host's mount namespace: for runtimes, shims and hypervisors."""
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
        memfd = _sealed(json.dumps(plan.to_wire()).encode())
        # Known before it runs: its exit may be told before the launch is answered.
        self._known.add(process_id)
        try:
            answer, answer_fds = await self._supervisor.request(
                "launch",
                [memfd, *fds],
                process=process_id,
                labels=dict(labels),
                hold=hold,
                on_host=on_host,
            )
        except BaseException:
            self._known.discard(process_id)
            self._ended.pop(process_id, None)
            raise
        finally:
            os.close(memfd)
        return Launched(process_id, int(answer["pid"]), int(answer["start_time"]), answer_fds[0])

    async def release(self, process_id: ProcessId, /) -> None:
        """See `polypod.plugin.services.Supervisor.release`."""
        _answer, fds = await self._supervisor.request("release", process=process_id)
        close_all(fds)

    async def kill(self, process_id: ProcessId, signal: int, /) -> None:
        """See `polypod.plugin.services.Supervisor.kill`."""
        await self._supervisor.request("kill", process=process_id, signal=signal)

    async def connect_tcp(self, sandbox_id: SandboxId, host: str, port: int, /) -> int:
        """See `polypod.plugin.services.Supervisor.connect_tcp`."""
        _answer, fds = await self._supervisor.request(
            "connect_tcp", sandbox=sandbox_id, host=host, port=port
        )
        return fds[0]

    async def processes(self) -> Sequence[LiveProcess]:
        """See `polypod.plugin.services.Supervisor.processes`."""
        found: list[LiveProcess] = []
        more = True
        while more:
            after = found[-1].process_id if found else ""
            answer, _fds = await self._supervisor.request("processes", after=after)
            rows = answer["processes"]
            found.extend(self._live(ProcessId(name), rows[name]) for name in answer["items"])
            more = bool(answer["more"])
        return found

    def _live(self, name: ProcessId, row: Message) -> LiveProcess:
        ended = self._ended.get(name) or (_status(row["exit"]) if row.get("exit") else None)
        return LiveProcess(name, int(row["pid"]), int(row["start_time"]), row["labels"], ended)

    async def wait(self, process_id: ProcessId, /) -> ExitStatus:
        """See `polypod.plugin.services.Supervisor.wait`."""
        ended = self._ended.get(process_id)
        if ended is not None:
            return ended
        if process_id not in self._known:
            msg = f"process {process_id}: unknown"
            raise NotFound(msg)
        future: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(process_id, []).append(future)
        return await future

    async def forget(self, process_id: ProcessId, /) -> None:
        """See `polypod.plugin.services.Supervisor.forget`."""
        await self._supervisor.request("forget", process=process_id)
        self._known.discard(process_id)
        self._ended.pop(process_id, None)

    async def exits(self) -> AsyncIterator[ProcessExit]:
        """See `polypod.plugin.services.Supervisor.exits`."""
        while True:
            item = await self._exits.get()
            if item is None:
                return
            yield item

    def close(self) -> None:
        """End `exits`."""
        self._exits.put_nowait(None)

    # What the keeper tells.

    def on_keeper_connect(self) -> None:
        """Watch exits, then ask for those that happened before."""
        task = asyncio.ensure_future(self._catch_up())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def on_keeper_event(self, message: Message) -> None:
        """One process is gone."""
        if message.get("event") == "exit":
            self._note(ProcessId(str(message["process"])), _status(message))

    async def _catch_up(self) -> None:
        try:
            await self._keeper.request("watch")
            after, more = "", True
            while more:
                answer, _fds = await self._keeper.request("exits", after=after)
                for name, record in answer["exits"].items():
                    after = name
                    self._note(ProcessId(name), _status(record))
                more = bool(answer["more"])
            await self._note_lost_exits()
        except Unavailable as error:
            _log.info("exits: %s", error)

    async def _note_lost_exits(self) -> None:
        """Exits that a dead keeper could not record: the supervisor read them from the pidfds."""
        for found in await self.processes():
            if found.exit is not None:
                self._note(found.process_id, found.exit)

    def _note(self, process_id: ProcessId, status: ExitStatus) -> None:
        if process_id in self._ended:
            return
        self._ended[process_id] = status
        self._exits.put_nowait(ProcessExit(process_id, status))
        for future in self._waiters.pop(process_id, []):
            if not future.done():
                future.set_result(status)


def _namespaces(sandbox_id: SandboxId, answer: Message, fds: list[int]) -> SandboxNamespaces:
    named = dict(zip(answer["kinds"], fds, strict=True))
    netlink = named.pop("netlink", None)
    return SandboxNamespaces(sandbox_id, named, netlink, int(answer["init_pid"]) or None)


def _status(record: Message) -> ExitStatus:
    at = int(record.get("at") or 0) or time.time_ns()
    code = record.get("code")
    return ExitStatus(None if code is None else int(code), int(record.get("signal") or 0), at)


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
