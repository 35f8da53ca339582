"""The logger: pumps the standard streams of every container into CRI log files.

It opens no path but its own socket: pipes, log files and console sockets are made by the daemon, which
leaves them with the keeper under ``log/ID`` and then says ``sync``. A logger that was killed finds
everything there again. It is a process of its own so that a log disk which hangs stops logs and
nothing else.
"""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Callable
from functools import partial

from polypod.plan import channel
from polypod.supervisor import journal, start
from polypod.supervisor.kernel import process
from polypod.supervisor.logger_container import Container
from polypod.supervisor.logger_file import LogFile
from polypod.supervisor.logger_sources import Scratch
from polypod.supervisor.presence import Presence
from polypod.supervisor.server import Loop, Peer, Refusal, identifier, note
from polypod.supervisor.store import Store

_PREFIX = "log/"
_PTY = "/pty"
_SWITCH_S = 1.0
"""How long a reopen waits for the end of a line that has begun."""
_PTY_SETTLES_S = 0.02
_FIND_KEEPER_S = 0.02
_ALONE_S = 1.0
_GUARDED = ("sandbox/", "process/")
"""What the supervisor put there, guarded here, too."""

Answer = tuple[dict[str, object], list[int]]


class Timers:
    """Callbacks for later."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call once, not before so many seconds from now."""
        self._number += 1
        heapq.heappush(self._due, (time.monotonic() + seconds, self._number, callback))

    def run(self) -> float:
        """Call what is due; return the seconds until the next, -1 if there is none."""
        while self._due and self._due[0][0] <= time.monotonic():
            heapq.heappop(self._due)[2]()
        return max(0.0, self._due[0][0] - time.monotonic()) if self._due else -1


class Logger:
    """See the module's description."""

    def __init__(self, state: str) -> None:
        self.state = state
        self.loop = Loop(self.handle)
        self.timers = Timers()
        self.scratch = Scratch()
        self.containers: dict[str, Container] = {}
        self.store: Store | None = None
        self.last_store: Store | None = None
        self.alone_since = 0.0

    def run(self) -> None:
        """Serve until the keeper ends us or another logger has taken over."""
        # Listen before fetching: a `sync` that comes between finds us, and is never lost.
        self.loop.listen(os.path.join(self.state, "logger.sock"))
        try:
            self._use_keeper(Store(self.state, follow=_GUARDED))
            self._adopt("", restarted=True)
            self._hear_of_new()
        except (OSError, channel.ChannelError, Refusal) as error:
            note(f"the keeper is gone already: {error}")
            self._keeper_left()
        while not self.loop.leaving:
            self.loop.timeout = self.timers.run()
            # After a hand-over not one more read: two loggers on one pipe would both log it.
            if not self.loop.leaving:
                self.loop.step()

    # The keeper.

    def _use_keeper(self, store: Store) -> None:
        self.store = store
        self.loop.add(store.sock.fileno(), lambda _events: self._keeper_spoke())

    def _keeper_spoke(self) -> None:
        """News of new containers, duplicates of the supervisor's descriptors, and the end."""
        if self.store is None:
            return
        if not self.store.listen():
            self._keeper_left()
        else:
            self._take_news(self.store)

    def _take_news(self, store: Store) -> None:
        """Containers of which the keeper told us while we waited for it, or just now."""
        known = set(self.containers)
        for key in sorted(key for key in store.spares if key.startswith(_PREFIX)):
            meta, fds = store.spares.pop(key)
            if key[len(_PREFIX) :].removesuffix(_PTY) in known:
                channel.close_all(fds)
            else:
                self._take(key, meta, fds, restarted=True)

    def _keeper_left(self) -> None:
        if self.store is not None:
            self.loop.drop(self.store.sock.fileno())
            self.store.sock.close()
            self.last_store, self.store = self.store, None
        self.alone_since = time.monotonic()
        self.timers.after(_FIND_KEEPER_S, self._find_keeper)

    def _hear_of_new(self) -> None:
        """From now on; what is told twice is taken once."""
        if self.store is not None:
            self.store.tell({"op": "follow", "prefix": _PREFIX})

    def _find_keeper(self) -> None:
        if self.store is not None or self.loop.leaving:
            return
        try:
            self._hand_over(Store(self.state))
        except (OSError, channel.ChannelError):
            # The supervisor starts one; unless it has died, too.
            if time.monotonic() - self.alone_since > _ALONE_S:
                self.alone_since = time.monotonic()
                _start_keeper(self.state)
            self.timers.after(_FIND_KEEPER_S, self._find_keeper)

    def _hand_over(self, store: Store) -> None:
        """Give everything to a new keeper, whose own logger goes on; we must not pump any more."""
        for container_id, container in self.containers.items():
            for stream in container.streams.values():
                stream.pump(flush=True)
            meta, fds = _entry(container)
            store.put(_PREFIX + container_id, meta, fds)
            if meta.get("tty") and "stdout" in container.streams:
                pty = container.streams["stdout"].source.fd
                store.put(_PREFIX + container_id + _PTY, {"whole": True}, [pty])
        if self.last_store is not None:
            self.last_store.hand_over_spares(store)
        store.confirm()
        note("the keeper was replaced: handed over, leaves")
        self.loop.leaving = True

    def _hold(self, key: str, meta: dict[str, object], fds: list[int]) -> None:
        if self.store is None:
            return
        try:
            self.store.put(key, meta, fds)
        except OSError:
            self._keeper_left()

    def _drop(self, key: str) -> None:
        if self.store is None:
            return
        try:
            self.store.drop(key)
        except OSError:
            self._keeper_left()

    def _hold_container(self, container_id: str, container: Container) -> None:
        meta, fds = _entry(container)
        self._hold(_PREFIX + container_id, meta, fds)

    def _hold_pty(self, container_id: str, master: int) -> None:
        self._hold(_PREFIX + container_id + _PTY, {"whole": False}, [master])

    # Containers.

    def _adopt(self, container_id: str, *, restarted: bool) -> None:
        """Take from the keeper what we do not have yet."""
        if self.store is None:
            raise Refusal("Unavailable", "logger: the keeper is away; try again")
        try:
            found = self.store.fetch(_PREFIX + container_id)
        except (OSError, channel.ChannelError) as error:
            self._keeper_left()
            raise Refusal("Unavailable", f"logger: the keeper went away: {error}") from error
        known = set(self.containers)
        for key, meta, fds in sorted(found, key=lambda row: row[0]):
            if key[len(_PREFIX) :].removesuffix(_PTY) in known:
                channel.close_all(fds)
            else:
                self._take(key, meta, fds, restarted=restarted)
        self._take_news(self.store)

    def _take(self, key: str, meta: dict[str, object], fds: list[int], *, restarted: bool) -> None:
        name = key[len(_PREFIX) :]
        if key.endswith(_PTY):
            self._adopt_pty(name.removesuffix(_PTY), fds, whole=bool(meta.get("whole")))
        else:
            self._add(name, meta, fds, restarted=restarted)

    def _add(
        self, container_id: str, meta: dict[str, object], fds: list[int], *, restarted: bool
    ) -> None:
        names = meta.get("fds")
        if not isinstance(names, list) or len(names) != len(fds) or "log" not in names:
            channel.close_all(fds)
            return
        held = dict(zip(map(str, names), fds, strict=True))
        container = Container(self.loop, self.scratch, self.timers.after, meta, held)
        container.changed = partial(self._hold_container, container_id, container)
        container.pty_came = partial(self._hold_pty, container_id)
        container.pty_went = partial(self._drop, _PREFIX + container_id + _PTY)
        if restarted:
            container.log.repair()
        self.containers[container_id] = container

    def _adopt_pty(self, container_id: str, fds: list[int], *, whole: bool) -> None:
        container = self.containers.get(container_id)
        if container is None or len(fds) != 1:
            channel.close_all(fds)
            return
        container.add_pty(fds[0])
        if not whole:
            note = "the logger was restarted; terminal output may be missing here, at most 64 KiB"
            container.streams["stdout"].note(note)
        self._hold_pty(container_id, fds[0])

    # Requests.

    def handle(self, peer: Peer, message: dict[str, object], fds: list[int]) -> Answer | None:
        """Serve one request."""
        operation = _OPERATIONS.get(str(message.get("op")))
        if operation is None:
            raise Refusal("Unimplemented", f"logger: no operation {message.get('op')!r}")
        answer = operation(self, peer, message, fds)
        if operation is not Logger.reopen:
            channel.close_all(fds)
        return answer

    def _find(self, message: dict[str, object]) -> Container:
        container_id = identifier(message, "container")
        if container_id not in self.containers:
            self._adopt(container_id, restarted=False)
        if container_id not in self.containers:
            raise Refusal("NotFound", f"container {container_id}: it has no standard streams here")
        return self.containers[container_id]

    def sync(self, _peer: Peer, message: dict[str, object], _fds: list[int]) -> Answer:
        """Take over what the keeper holds, of one container or of all; ``known``: or NotFound."""
        container_id = identifier(message, "container") if "container" in message else ""
        if message.get("known"):
            self._find(message)
        else:
            self._adopt(container_id, restarted=False)
        return {}, []

    def reopen(self, peer: Peer, message: dict[str, object], fds: list[int]) -> Answer | None:
        """Write to another file from the next line on; answers after the switch."""
        if len(fds) != 1:
            raise Refusal("InvalidArgument", "reopen: one descriptor is wanted, the log file's")
        container_id = identifier(message, "container")
        container = self._find(message)
        old = container.log
        container.fds["log"] = fds[0]
        container.use_log(LogFile(fds[0]))
        self._hold_container(container_id, container)
        number = message.get("id")
        self._switched(
            container_id,
            container,
            old,
            time.monotonic(),
            partial(self.loop.answer, peer, number, {}, []),
        )
        return None

    def _switched(
        self,
        container_id: str,
        container: Container,
        old: LogFile,
        since: float,
        answer: Callable[[], None],
    ) -> None:
        if container.switched(now=time.monotonic() - since > _SWITCH_S):
            old.close()
            answer()
        else:
            again = partial(self._switched, container_id, container, old, since, answer)
            self.timers.after(0.01, again)

    def drained(self, peer: Peer, message: dict[str, object], _fds: list[int]) -> Answer | None:
        """Answer when all that was written until now is in the log; waits for no writer."""
        container = self._find(message)
        container.drain()
        if container.quiet():
            return {}, []
        number = message.get("id")
        self.timers.after(_PTY_SETTLES_S, partial(self._drained_pty, peer, number, container))
        return None

    def _drained_pty(self, peer: Peer, number: object, container: Container) -> None:
        container.drain()
        self.loop.answer(peer, number, {}, [])

    def close(self, _peer: Peer, message: dict[str, object], _fds: list[int]) -> Answer:
        """Forget a container; an unknown one is fine."""
        container_id = identifier(message, "container")
        container = self.containers.pop(container_id, None)
        if container is not None:
            container.drain()
            container.close()
        self._drop(_PREFIX + container_id)
        if container is None or container.meta.get("tty"):
            self._drop(_PREFIX + container_id + _PTY)
        return {}, []

    def attach(self, peer: Peer, message: dict[str, object], _fds: list[int]) -> Answer | None:
        """Return descriptors for one more client: it reads stdout and stderr, and writes stdin."""
        streams = message.get("streams")
        if not isinstance(streams, list):
            raise Refusal("InvalidArgument", "attach: streams must be a list")
        names, ends = self._find(message).attach([str(name) for name in streams])
        self.loop.answer(peer, message.get("id"), {"streams": names}, ends)
        return None

    def resize(self, _peer: Peer, message: dict[str, object], _fds: list[int]) -> Answer:
        """Set the size of a terminal, in characters."""
        width, height = message.get("width"), message.get("height")
        if not (isinstance(width, int) and isinstance(height, int)):
            raise Refusal("InvalidArgument", "resize: width and height must be integers")
        if not (0 < width < 65536 and 0 < height < 65536):
            raise Refusal("InvalidArgument", f"resize: {width}x{height} is no size of a terminal")
        self._find(message).resize(width, height)
        return {}, []

    def status(self, _peer: Peer, _message: dict[str, object], _fds: list[int]) -> Answer:
        """Return figures for `polypod doctor` and for tests."""
        return {"pid": os.getpid(), "containers": len(self.containers)}, []


def _entry(container: Container) -> tuple[dict[str, object], list[int]]:
    pipes = {name: fd for name, fd in container.fds.items() if fd >= 0}
    return {**container.meta, "fds": list(pipes)}, list(pipes.values())


_OPERATIONS = {
    "sync": Logger.sync,
    "reopen": Logger.reopen,
    "drained": Logger.drained,
    "close": Logger.close,
    "attach": Logger.attach,
    "resize": Logger.resize,
    "status": Logger.status,
}


def _start_keeper(state: str) -> None:
    note("no keeper and nobody who starts one: starts one")
    os.waitpid(start.child("keeper", state), 0)


def main(state: str) -> None:
    """Become the logger; one that hands over is just leaving."""
    process.set_name("polypod-logger")
    journal.use("logger", os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    process.set_not_dumpable()
    presence = Presence.open(state)
    presence.take("logger", wait=True)
    Logger(state).run()
