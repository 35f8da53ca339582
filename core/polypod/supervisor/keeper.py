"""The keeper: parent and only reaper of every container process, and holder of descriptors.

It is as small as it can be, because everything else may die as long as it lives:

* containers are cloned with ``CLONE_PARENT``, so they are its children; it writes each exit status to
  ``STATE/exits/ID`` *before* it reaps, and tells whoever watches;
* it holds duplicates of the descriptors that supervisor and logger would lose (pidfds, namespaces,
  log pipes), under keys, with a JSON note each, and passes duplicates of the one's to the other;
* it starts supervisor and logger, and starts them again.

What an earlier keeper left is taken over: processes that are not our children are watched by their
pidfds, and the kernel is asked for their code (PIDFD_INFO_EXIT), which is unknown where it cannot say.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time

from polypod.plan import channel
from polypod.supervisor import adoption, journal
from polypod.supervisor.kernel import process
from polypod.supervisor.ledger import Ledger
from polypod.supervisor.presence import Presence
from polypod.supervisor.roles import Roles
from polypod.supervisor.server import Loop, Peer, Refusal, identifier, mapping, note, page, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from polypod.supervisor.server import Answer, Message

_PROCESS = "process/"
_PAGE_BYTES = 32_000


class Entry:
    """What is held under one key."""

    __slots__ = ("fds", "meta")

    def __init__(self, meta: Message, fds: list[int]) -> None:
        self.meta = meta
        self.fds = fds


class Keeper:
    """See the module's description; `run` never returns before `shutdown`."""

    def __init__(self, state: str, presence: Presence) -> None:
        self.state = state
        self.ledger = Ledger(state)
        self.entries: dict[str, Entry] = {}
        self.exits = self.ledger.exits()
        self.ids_by_pid: dict[int, str] = {}
        self.loop = Loop(self.handle)
        self.roles = Roles(state, presence, self.loop, self._role_left)
        self.unread = adoption.Unread()
        self.strays = adoption.Strays()
        self.lost: list[str] = []
        """Processes that an earlier keeper knew and that are gone: their codes are still looked for."""

    def run(self) -> None:
        """Serve until `shutdown`."""
        process.set_child_subreaper()
        process.set_not_dumpable()
        self._watch_children()
        self._take_over()
        self.loop.listen(os.path.join(self.state, "keeper.sock"))
        self.roles.begin()
        while not self.loop.leaving:
            self._conclude()
            waits = (self.roles.start_due(), self.unread.pause())
            self.loop.timeout = min((wait for wait in waits if wait >= 0), default=-1)
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
            self._child_ended(ended.si_pid, ended.si_code, ended.si_status)
            os.waitid(os.P_PID, ended.si_pid, os.WEXITED)

    def _child_ended(self, pid: int, how: int, status: int) -> None:
        killed = how in (os.CLD_KILLED, os.CLD_DUMPED)
        if self.roles.ended(pid, f"signal {status}" if killed else f"code {status}"):
            return
        process_id = self.ids_by_pid.pop(pid, None)
        code = 128 + status if killed else status
        end: Message = {"code": code, "signal": status if killed else 0}
        if process_id is not None:
            self._record(process_id, end)
        else:
            self.strays.add(pid, end)

    def _record(self, process_id: str, how: Message) -> None:
        record = {"at": time.time_ns(), **how}
        self.exits[process_id] = record
        entry = self.entries.get(_PROCESS + process_id)
        if entry is not None:
            entry.meta["exit"] = record
        self.ledger.record(process_id, record)
        for peer in list(self.loop.peers.values()):
            if peer.watching:
                peer.push({"event": "exit", "process": process_id, **record})

    # What an earlier keeper left.

    def _take_over(self) -> None:
        for process_id, meta in self.ledger.processes().items():
            if process_id in self.exits:
                meta["exit"] = self.exits[process_id]
                self.entries[_PROCESS + process_id] = Entry(meta, [])
                continue
            pidfd = adoption.find(int(meta.get("pid") or 0), int(meta.get("start_time") or 0))
            self.entries[_PROCESS + process_id] = Entry(meta, [] if pidfd < 0 else [pidfd])
            if pidfd < 0:
                self.lost.append(process_id)
            else:
                self._watch(process_id, meta, pidfd)

    def _role_left(self) -> None:
        """What it handed over before it left must be seen before what follows."""
        self.loop.read_all_peers()

    def _conclude(self) -> None:
        """Once nobody is left who may know a code it is unknown; it is never 0."""
        for process_id, how in self.unread.take():
            self._record(process_id, how)
        if not self.lost or self.roles.awaits():
            return
        lost, self.lost = self.lost, []
        for process_id in lost:
            entry = self.entries.get(_PROCESS + process_id)
            if entry is not None and process_id not in self.exits:
                self._record(process_id, adoption.UNKNOWN)

    def _watch(self, process_id: str, meta: Message, pidfd: int) -> None:
        """Be told of an exit: as the parent, or else by the pidfd."""
        try:
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            self.loop.add(pidfd, lambda _events: self._adopted_ended(process_id, meta, pidfd))
        else:
            self.ids_by_pid[int(meta["pid"])] = process_id

    def _adopted_ended(self, process_id: str, meta: Message, pidfd: int) -> None:
        self.loop.drop(pidfd)
        self.unread.add(process_id, int(meta["pid"]), int(meta["start_time"]), pidfd)

    # Requests.

    def handle(self, peer: Peer, message: Message, fds: list[int]) -> Answer | None:
        """Serve one request."""
        operation = _OPERATIONS.get(str(message.get("op")))
        if operation is None:
            raise Refusal("Unimplemented", f"keeper: no operation {message.get('op')!r}")
        answer = operation(self, peer, message, fds)
        channel.close_all(fds)
        return answer

    def put(self, peer: Peer, message: Message, fds: list[int]) -> Answer:
        """Hold descriptors under a key, replacing what was there."""
        key, meta = text(message, "key"), message.get("meta")
        if not isinstance(meta, dict):
            raise Refusal("InvalidArgument", f"put {key}: meta must be an object")
        old = self.entries.get(key)
        process_id = key[len(_PROCESS) :] if key.startswith(_PROCESS) else ""
        if process_id:
            _check_process(key, meta, fds)
            if process_id in self.lost and fds:
                # Somebody has the pidfd after all, which may know the code.
                self.lost.remove(process_id)
                old = None
        # Better than nothing, or than the bare pidfd that the ledger led us to.
        if old is not None and message.get("spare") and len(fds) <= len(old.fds):
            return {}, []
        if process_id in self.exits:
            meta["exit"] = self.exits[process_id]
        self._release(key)
        entry = self.entries[key] = Entry(meta, fds[:])
        fds.clear()
        if process_id:
            if old is None or old.meta != meta:
                self.ledger.note(process_id, meta)
            if "exit" not in meta:
                self._watch(process_id, meta, entry.fds[0])
        self._tell_followers(peer, {"event": "held", "key": key, "meta": meta}, entry.fds)
        return {}, []

    def adopt(self, peer: Peer, message: Message, _fds: list[int]) -> Answer:
        """Name a process that somebody else's program left to us, also one that has ended already.

        Only the reaper can do that: to anybody else the pid may be another process by now.
        """
        process_id, pid = identifier(message, "process"), message.get("pid")
        if type(pid) is not int or pid <= 1:
            raise Refusal("InvalidArgument", f"adopt {process_id}: {pid!r} is no pid")
        key = _PROCESS + process_id
        entry = self.entries.get(key)
        if entry is None:
            found = self._unnamed(pid)
            if found is None:
                return {"meta": None}, []
            start_time, fds, ended = found
            meta: Message = {"pid": pid, "start_time": start_time}
            meta["labels"] = mapping(message, "labels")
            entry = self.entries[key] = Entry(meta, fds)
            self.ledger.note(process_id, meta)
            if ended is not None:
                self._record(process_id, ended)
            else:
                self._watch(process_id, meta, fds[0])
            self._tell_followers(peer, {"event": "held", "key": key, "meta": meta}, fds)
        elif entry.meta["pid"] != pid:
            raise Refusal("AlreadyExists", f"process {process_id} exists")
        return {"meta": entry.meta}, entry.fds

    def _unnamed(self, pid: int) -> tuple[int, list[int], Message | None] | None:
        """Return (start time, pidfd if it is there, its end if it is gone)."""
        try:
            pidfd = process.pidfd_open(pid)
        except OSError:
            pidfd = -1
        ended = None if _is_child(pidfd) else self.strays.take(pid)
        if ended is not None:
            if pidfd >= 0:
                os.close(pidfd)
            return ended[0], [], ended[1]
        return None if pidfd < 0 else (adoption.start_time_of(pid), [pidfd], None)

    def drop(self, peer: Peer, message: Message, _fds: list[int]) -> Answer:
        """Let go of a key; unknown ones are fine."""
        key = text(message, "key")
        if self._release(key):
            self._tell_followers(peer, {"event": "dropped", "key": key}, [])
        return {}, []

    def get(self, _peer: Peer, message: Message, _fds: list[int]) -> Answer:
        """Return the entries whose key starts with a prefix, after a key, as many as fit."""
        prefix, after = str(message.get("prefix", "")), str(message.get("after", ""))
        found: list[Message] = []
        sent: list[int] = []
        size = 0
        keys = sorted(key for key in self.entries if key.startswith(prefix) and key > after)
        for key in keys:
            entry = self.entries[key]
            row: Message = {"key": key, "meta": entry.meta, "fds": len(entry.fds)}
            size += len(json.dumps(row)) + 1
            if found and (len(sent) + len(entry.fds) > channel.MAX_FDS or size > _PAGE_BYTES):
                return {"entries": found, "more": True}, sent
            found.append(row)
            sent += entry.fds
        return {"entries": found, "more": False}, sent

    def follow(self, peer: Peer, message: Message, _fds: list[int]) -> Answer:
        """Pass duplicates of what others put below a prefix to this connection, now and later."""
        prefix = text(message, "prefix")
        peer.follows = (*peer.follows, prefix)
        for key, entry in self.entries.items():
            if key.startswith(prefix):
                peer.push({"event": "held", "key": key, "meta": entry.meta}, entry.fds)
        return {}, []

    def _tell_followers(self, source: Peer, message: Message, fds: list[int]) -> None:
        for peer in list(self.loop.peers.values()):
            if peer is not source and message["key"].startswith(peer.follows or ("\0",)):
                peer.push(message, fds)

    def watch(self, peer: Peer, _message: Message, _fds: list[int]) -> Answer:
        """Tell this connection of every exit from now on; `exits` has those before."""
        peer.watching = True
        return {"pid": os.getpid()}, []

    def list_exits(self, _peer: Peer, message: Message, _fds: list[int]) -> Answer:
        """Return exits that are not forgotten, after an id, as many as fit."""
        names, more = page(sorted(self.exits), message, 200)
        return {"exits": {name: self.exits[name] for name in names}, "more": more}, []

    def forget(self, peer: Peer, message: Message, _fds: list[int]) -> Answer:
        """Drop a process with its exit status; after the answer nothing is told of it any more."""
        process_id = identifier(message, "process")
        held = self._release(_PROCESS + process_id)
        self.exits.pop(process_id, None)
        self.ledger.forget(process_id)
        if held:
            self._tell_followers(peer, {"event": "dropped", "key": _PROCESS + process_id}, [])
        return {}, []

    def pids(self, _peer: Peer, _message: Message, _fds: list[int]) -> Answer:
        """Return who is who."""
        return {"keeper": os.getpid(), **self.roles.pids()}, []

    def shutdown(self, _peer: Peer, _message: Message, _fds: list[int]) -> Answer:
        """End supervisor, logger and the inits of pods, remove the sockets, leave.

        What was launched is left alone: whoever wants it gone ends it before.
        """
        self.loop.leaving = True
        self.roles.end()
        for key, entry in self.entries.items():
            if key.startswith("sandbox/") and entry.meta.get("init_pid") and entry.fds:
                with contextlib.suppress(OSError):
                    process.pidfd_send_signal(entry.fds[-1], signal.SIGKILL)
        for name in ("keeper", "supervisor", "logger"):
            try:
                os.unlink(os.path.join(self.state, f"{name}.sock"))
            except FileNotFoundError:
                continue
        return {}, []

    def _release(self, key: str) -> bool:
        entry = self.entries.pop(key, None)
        if entry is None:
            return False
        for fd in entry.fds:
            self.loop.drop(fd)
        channel.close_all(entry.fds)
        if key.startswith(_PROCESS):
            self.ids_by_pid.pop(int(entry.meta["pid"]), None)
            self.unread.forget(key[len(_PROCESS) :])
        return True


_OPERATIONS = {
    "put": Keeper.put,
    "adopt": Keeper.adopt,
    "drop": Keeper.drop,
    "get": Keeper.get,
    "follow": Keeper.follow,
    "watch": Keeper.watch,
    "exits": Keeper.list_exits,
    "forget": Keeper.forget,
    "pids": Keeper.pids,
    "shutdown": Keeper.shutdown,
}


def _is_child(pidfd: int) -> bool:
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError:
        return False
    return True


def _check_process(key: str, meta: Message, fds: list[int]) -> None:
    for name in ("pid", "start_time"):
        if type(meta.get(name)) is not int:
            raise Refusal("InvalidArgument", f"put {key}: {name} must be an integer")
    if not fds and "exit" not in meta:
        raise Refusal("InvalidArgument", f"put {key}: a pidfd must come with it")


def main(state: str) -> None:
    """Become the keeper: nobody's child, in a session of its own; leave at once if there is one."""
    if os.fork():
        os._exit(0)
    os.setsid()
    process.set_name("polypod-keeper")
    directory = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    journal.use("keeper", directory)
    presence = Presence.open(state)
    if not presence.take("keeper", wait=False):
        return
    note("begins")
    Keeper(state, presence).run()
    note("leaves")
