"""The keeper: parent and only reaper of every container process, and holder of descriptors.

It is as small as it can be, because everything else may die as long as it lives:

* containers are cloned with ``CLONE_PARENT``, so they are its children; it writes each exit status to
  ``STATE/exits/ID`` *before* it reaps, and tells whoever watches;
* it holds duplicates of the descriptors that supervisor and logger would lose (pidfds, namespaces,
  log pipes), under keys, with a JSON note each;
* it starts supervisor and logger, and starts them again.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time

from polypod.plan import channel
from polypod.supervisor import start
from polypod.supervisor.kernel import process
from polypod.supervisor.server import Loop, Peer, Refusal, identifier, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Message = dict[str, Any]


_ROLES = ("supervisor", "logger")
_FIRST_BACKOFF_S = 0.05
_LONGEST_BACKOFF_S = 5.0
_PROCESS = "process/"

if TYPE_CHECKING:
    Answer = tuple[Message, list[int]]


class Entry:
    """What is held under one key."""

    __slots__ = ("fds", "meta")

    def __init__(self, meta: Message, fds: list[int]) -> None:
        self.meta = meta
        self.fds = fds


class Keeper:
    """See the module's description; `run` never returns before `shutdown`."""

    def __init__(self, state: str, *, adopting: bool) -> None:
        self.state = state
        self.exits = os.path.join(state, "exits")
        self.entries: dict[str, Entry] = {}
        self.ids_by_pid: dict[int, str] = {}
        self.children: dict[int, str] = {}
        self.started_at: dict[str, float] = {}
        self.backoff: dict[str, float] = {}
        self.due: dict[str, float] = {}
        self.awaited = set(_ROLES) if adopting else set()
        self.loop = Loop(self.handle)

    def run(self) -> None:
        """Serve until `shutdown`."""
        os.makedirs(self.exits, mode=0o700, exist_ok=True)
        process.set_child_subreaper()
        process.set_not_dumpable()
        self._watch_children()
        self.loop.listen(os.path.join(self.state, "keeper.sock"))
        for role in _ROLES:
            if role not in self.awaited:
                self._start(role)
        while not self.loop.leaving:
            self.loop.timeout = self._next_start()
            self.loop.step()

    # Children.

    def _watch_children(self) -> None:
        read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        self.loop.add(read_end, lambda _events: self._reap(read_end))

    def _reap(self, wakeup: int) -> None:
        try:
            os.read(wakeup, 4096)
        except BlockingIOError:
            return
        # Registrations that were sent before the process executed must be seen before its exit.
        self.loop.read_all_peers()
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            self._record(ended.si_pid, ended.si_code, ended.si_status)
            os.waitid(os.P_PID, ended.si_pid, os.WEXITED)

    def _record(self, pid: int, how: int, status: int) -> None:
        role = self.children.pop(pid, None)
        if role is not None:
            self._schedule(role)
            return
        process_id = self.ids_by_pid.pop(pid, None)
        if process_id is None:
            return
        killed = how in (os.CLD_KILLED, os.CLD_DUMPED)
        record = {
            "code": 128 + status if killed else status,
            "signal": status if killed else 0,
            "at": time.time_ns(),
        }
        self._write_exit(process_id, record)
        self._tell({"event": "exit", "process": process_id, **record})

    def _write_exit(self, process_id: str, record: Message) -> None:
        entry = self.entries.get(_PROCESS + process_id)
        if entry is not None:
            entry.meta["exit"] = record
        path = os.path.join(self.exits, process_id)
        with open(path, "w") as file:
            file.write(json.dumps(record))

    def _tell(self, message: Message) -> None:
        for peer in self.loop.peers.values():
            if peer.watching:
                peer.push(message)

    # Supervisor and logger.

    def _start(self, role: str) -> None:
        self.due.pop(role, None)
        self.started_at[role] = time.monotonic()
        self.children[start.child(role, self.state)] = role

    def _schedule(self, role: str) -> None:
        if self.loop.leaving:
            return
        lived = time.monotonic() - self.started_at.get(role, 0.0)
        last = self.backoff.get(role, 0.0)
        if lived > _LONGEST_BACKOFF_S:
            delay = 0.0
        else:
            delay = min(last * 2 if last else _FIRST_BACKOFF_S, _LONGEST_BACKOFF_S)
        self.backoff[role] = delay
        if delay == 0.0:
            self._start(role)
        else:
            self.due[role] = time.monotonic() + delay

    def _next_start(self) -> float:
        now = time.monotonic()
        for role in [role for role, moment in self.due.items() if moment <= now]:
            self._start(role)
        return min((moment - now for moment in self.due.values()), default=-1.0)

    # Requests.

    def handle(self, peer: Peer, message: Message, fds: list[int]) -> Answer | None:
        """Serve one request."""
        operation = _OPERATIONS.get(str(message.get("op")))
        if operation is None:
            raise Refusal("Unimplemented", f"keeper: no operation {message.get('op')!r}")
        return operation(self, peer, message, fds)

    def put(self, _peer: Peer, message: Message, fds: list[int]) -> Answer:
        """Hold descriptors under a key, replacing what was there."""
        key = text(message, "key")
        meta = message.get("meta")
        if not isinstance(meta, dict):
            raise Refusal("InvalidArgument", f"put {key}: meta must be an object")
        self._release(key)
        self.entries[key] = Entry(meta, fds)
        if key.startswith(_PROCESS) and "exit" not in meta:
            self.ids_by_pid[int(meta.get("pid") or 0)] = key[len(_PROCESS) :]
        return {}, []

    def drop(self, _peer: Peer, message: Message, fds: list[int]) -> Answer:
        """Let go of a key; unknown ones are fine."""
        channel.close_all(fds)
        self._release(text(message, "key"))
        return {}, []

    def get(self, _peer: Peer, message: Message, fds: list[int]) -> Answer:
        """Return the entries whose key starts with a prefix, after a key, as many as fit."""
        channel.close_all(fds)
        prefix, after = str(message.get("prefix", "")), str(message.get("after", ""))
        found: list[Message] = []
        sent: list[int] = []
        size = 0
        keys = sorted(key for key in self.entries if key.startswith(prefix) and key > after)
        for key in keys:
            entry = self.entries[key]
            row: Message = {"key": key, "meta": entry.meta, "fds": len(entry.fds)}
            size += len(json.dumps(row)) + 1
            if found and (len(sent) + len(entry.fds) > channel.MAX_FDS or size > 32_000):
                return {"entries": found, "more": True}, sent
            found.append(row)
            sent += entry.fds
        return {"entries": found, "more": False}, sent

    def watch(self, peer: Peer, _message: Message, fds: list[int]) -> Answer:
        """Tell this connection of every exit from now on; `exits` has those before."""
        channel.close_all(fds)
        peer.watching = True
        return {"pid": os.getpid()}, []

    def list_exits(self, _peer: Peer, message: Message, fds: list[int]) -> Answer:
        """Return exits that are not forgotten, after an id, as many as fit."""
        channel.close_all(fds)
        after = str(message.get("after", ""))
        names = sorted(name for name in os.listdir(self.exits) if name > after)
        records = {name: self._read_exit(name) for name in names[:200]}
        return {"exits": records, "more": len(names) > 200}, []

    def forget(self, _peer: Peer, message: Message, fds: list[int]) -> Answer:
        """Drop a process with its exit status."""
        channel.close_all(fds)
        process_id = identifier(message, "process")
        self._release(_PROCESS + process_id)
        try:
            os.unlink(os.path.join(self.exits, process_id))
        except FileNotFoundError:
            return {}, []
        return {}, []

    def handed_over(self, _peer: Peer, message: Message, fds: list[int]) -> Answer:
        """An adopted supervisor or logger has given us everything: start ours."""
        channel.close_all(fds)
        role = text(message, "role")
        if role in self.awaited:
            self.awaited.discard(role)
            self._start(role)
        return {}, []

    def pids(self, _peer: Peer, _message: Message, fds: list[int]) -> Answer:
        """Return who is who."""
        channel.close_all(fds)
        roles: Message = {role: pid for pid, role in self.children.items()}
        return {"keeper": os.getpid(), **roles}, []

    def shutdown(self, _peer: Peer, _message: Message, fds: list[int]) -> Answer:
        """End supervisor and logger, remove the sockets, leave."""
        channel.close_all(fds)
        self.loop.leaving = True
        for pid in self.children:
            os.kill(pid, signal.SIGTERM)
        for pid in self.children:
            os.waitpid(pid, 0)
        for name in ("keeper", *_ROLES):
            try:
                os.unlink(os.path.join(self.state, f"{name}.sock"))
            except FileNotFoundError:
                continue
        return {}, []

    def _release(self, key: str) -> None:
        entry = self.entries.pop(key, None)
        if entry is None:
            return
        channel.close_all(entry.fds)
        if key.startswith(_PROCESS):
            self.ids_by_pid.pop(int(entry.meta.get("pid") or 0), None)

    def _read_exit(self, name: str) -> object:
        try:
            with open(os.path.join(self.exits, name)) as file:
                return json.loads(file.read())
        except (OSError, ValueError):
            # Half a record cannot be trusted: the code is unknown then, not zero.
            return {"code": None, "signal": 0, "at": 0}


_OPERATIONS = {
    "put": Keeper.put,
    "drop": Keeper.drop,
    "get": Keeper.get,
    "watch": Keeper.watch,
    "exits": Keeper.list_exits,
    "forget": Keeper.forget,
    "handed_over": Keeper.handed_over,
    "pids": Keeper.pids,
    "shutdown": Keeper.shutdown,
}


def main(state: str, *, adopting: bool) -> None:
    """Become the keeper: nobody's child, in a session of its own."""
    if os.fork():
        os._exit(0)
    os.setsid()
    process.set_name("polypod-keeper")
    Keeper(state, adopting=adopting).run()


class Store:
    """The keeper's descriptor store as supervisor and logger use it: puts are not waited for."""

    def __init__(self, state: str) -> None:
        self.sock: socket.socket = channel.connect(os.path.join(state, "keeper.sock"))
        self._number = 0

    def put(self, key: str, meta: Message, fds: list[int]) -> None:
        """Hand descriptors over; they are safe once this returns: the queue outlives us."""
        channel.send(self.sock, {"op": "put", "key": key, "meta": meta}, fds)

    def drop(self, key: str) -> None:
        """Give up a key."""
        channel.send(self.sock, {"op": "drop", "key": key})

    def tell(self, message: Message) -> None:
        """Send a request whose answer does not matter."""
        channel.send(self.sock, message)

    def fetch(self, prefix: str) -> list[tuple[str, Message, list[int]]]:
        """Return everything held below a prefix; waits."""
        found: list[tuple[str, Message, list[int]]] = []
        after, more = "", True
        while more:
            self._number += 1
            request = {"id": self._number, "op": "get", "prefix": prefix, "after": after}
            channel.send(self.sock, request)
            answer, fds = self._wait()
            more = bool(answer["more"])
            for row in answer["entries"]:
                count = row["fds"]
                found.append((row["key"], row["meta"], fds[:count]))
                fds = fds[count:]
                after = row["key"]
        return found

    def _wait(self) -> tuple[Message, list[int]]:
        select.select([self.sock], [], [])
        received = channel.receive(self.sock)
        if received is None:
            raise channel.ChannelError("the keeper left")
        message, fds = received
        ok = message.get("ok")
        if not isinstance(ok, dict):
            raise channel.ChannelError(f"the keeper refused: {message.get('error')}")
        return ok, fds
