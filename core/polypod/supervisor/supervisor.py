"""The supervisor: makes and joins namespaces, runs launch plans, sends signals. One thread.

It is a child of the keeper and its children are the keeper's (CLONE_PARENT): when it dies, the keeper
starts another, which fetches its descriptors from the keeper's store, and nothing else has changed.
When the keeper dies, the supervisor starts a new keeper, hands everything over, and leaves: the new
keeper starts a supervisor that is its own child.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time

from polypod.plan import channel
from polypod.supervisor import child, owned, start, tcp
from polypod.supervisor.adoption import has_ended
from polypod.supervisor.kernel import namespace, process, signals
from polypod.supervisor.launch import Launch, Launcher, Process
from polypod.supervisor.plans import read_plan
from polypod.supervisor.presence import Presence
from polypod.supervisor.sandboxes import KINDS, Home, Sandbox
from polypod.supervisor.server import (
    Loop,
    Peer,
    Refusal,
    identifier,
    mapping,
    note,
    page,
    strings,
)
from polypod.supervisor.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from polypod.supervisor.server import Answer, Message

_GUARDED = ("log/",)
"""What the logger put there, guarded here, too."""
_LABELS_MAX = 16 * 1024
_PAGE_BYTES = 32 * 1024
_LOOKS_S = 0.05
_SETTLES_S = 2.0
"""How long launches in flight may take when the keeper is replaced."""
_KEEPER_TRIES = 3
_KEEPER_STARTS_S = 5.0


class Supervisor:
    """See the module's description."""

    def __init__(self, state: str, state_fd: int, host_mounts: int, presence: Presence) -> None:
        self.state = state
        self.presence = presence
        # No path of the host exists in here: the state directory is reached by its descriptor.
        self.state_path = f"/proc/self/fd/{state_fd}"
        self.loop = Loop(self.handle)
        # Before anything is cloned: what we execute inherits it.
        signals.default_reserved()
        self.launcher = Launcher(host_mounts)
        self.home = Home(self.launcher.proc)
        self.processes: dict[str, Process] = {}
        self.sandboxes: dict[str, Sandbox] = {}
        self.launches: dict[str, Launch] = {}
        self.handing_over = False
        self.leaves_by = 0.0
        self.old_store: Store | None = None
        self.store = self._find_keeper()
        self._restore()
        self._watch_keeper()

    # The keeper.

    def _find_keeper(self, *, follow: tuple[str, ...] = _GUARDED) -> Store:
        """Connect to the keeper; start one if ours died before we knew it."""
        for _ in range(_KEEPER_TRIES):
            deadline = time.monotonic() + _KEEPER_STARTS_S
            while time.monotonic() < deadline:
                try:
                    return Store(self.state_path, follow=follow)
                except (OSError, channel.ChannelError):
                    if not self.presence.holder("keeper"):
                        self._start_keeper()
                    select.select([], [], [], 0.005)
        raise SystemExit("no keeper can be reached or started")

    def _start_keeper(self) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                if self.launcher.host_mounts >= 0:
                    namespace.setns(self.launcher.host_mounts, process.CLONE_NEWNS)
                arguments = start.command("keeper", self.state)
                os.execv(arguments[0], arguments)
            finally:
                os._exit(127)
        os.waitpid(pid, 0)

    def _restore(self) -> None:
        for key, meta, fds in self.store.fetch("process/"):
            found = Process.restore(key[8:], meta, fds)
            self.processes[found.process_id] = found
            if len(fds) == _HELD_FDS:
                report = child.Report(fd=fds[3])
                launch = Launch(found, report, status=fds[2], gate=fds[1], hold=True)
                self._await(launch)
        for key, meta, fds in self.store.fetch("sandbox/"):
            self.sandboxes[key[8:]] = Sandbox.restore(meta, fds)

    def _watch_keeper(self) -> None:
        self.loop.add(self.store.sock.fileno(), lambda _events: self._read_keeper())

    def _read_keeper(self) -> None:
        """Duplicates of the logger's descriptors come here; the end of the connection matters most."""
        if not self.store.listen():
            self._replace_keeper()

    def _replace_keeper(self) -> None:
        note("the keeper is gone: finding another one, handing over")
        self.handing_over = True
        self.loop.timeout = _LOOKS_S
        self.leaves_by = time.monotonic() + _SETTLES_S
        self.loop.drop(self.store.sock.fileno())
        self.store.sock.close()
        if not self.store.spares and self.old_store is not None:
            # It died before it had everything; what we guarded we still have.
            self.store.spares = self.old_store.spares
        self.old_store = self.store
        self.store = self._find_keeper(follow=())
        self._watch_keeper()
        try:
            self._hand_over()
        except (OSError, channel.ChannelError) as error:
            # The loop sees the end of the connection, and we come here again.
            note(f"keeper: handing over: {error}")

    def _hand_over(self) -> None:
        if self.old_store is not None:
            self.old_store.hand_over_spares(self.store)
        for name, found in self.processes.items():
            held = self.launches.get(name)
            fds = held.held() if held is not None and held.hold else _pidfds(found)
            self.store.put(f"process/{name}", found.meta(), fds)
        for name, sandbox in self.sandboxes.items():
            self.store.put(f"sandbox/{name}", sandbox.meta(), sandbox.held())
        self.store.confirm()

    def _hold(self, key: str, meta: Message, fds: list[int]) -> None:
        """Let the keeper hold what we have; one that is gone gets it when it has been replaced."""
        try:
            self.store.put(key, meta, fds)
        except OSError as error:
            note(f"keeper: put {key}: {error}")

    def _tell(self, message: Message) -> None:
        try:
            self.store.tell(message)
        except OSError as error:
            note(f"keeper: {message['op']}: {error}")

    # Requests.

    def handle(self, peer: Peer, message: Message, fds: list[int]) -> Answer | None:
        """Serve one request; what it does not keep of the descriptors is closed."""
        operation = _OPERATIONS.get(str(message.get("op")))
        if operation is None:
            raise Refusal("Unimplemented", f"supervisor: no operation {message.get('op')!r}")
        if self.handing_over:
            raise Refusal("Unavailable", "supervisor: the keeper is being replaced; try again")
        answer = operation(self, peer, message, fds)
        channel.close_all(fds)
        return answer

    def make_namespaces(self, _peer: Peer, message: Message, _fds: list[int]) -> Answer:
        """Make and pin; a known sandbox gets what it has."""
        name = identifier(message, "sandbox")
        if name not in self.sandboxes:
            kinds = strings(message, "kinds")
            if not set(kinds) <= KINDS:
                raise Refusal("InvalidArgument", f"namespaces {kinds}: known are {sorted(KINDS)}")
            sysctls, maps = mapping(message, "sysctls"), owned.read_maps(message)
            hostname = str(message.get("hostname") or "")
            if maps is None:
                made = self.home.make(kinds, hostname, sysctls)
            else:
                made = self.home.make_owned(kinds, hostname, sysctls, maps)
            self.sandboxes[name] = made
            self._hold(f"sandbox/{name}", made.meta(), made.held())
        return self._namespaces_of(name)

    def namespaces(self, _peer: Peer, message: Message, _fds: list[int]) -> Answer:
        """Return what is pinned."""
        name = identifier(message, "sandbox")
        return self._namespaces_of(name) if name in self.sandboxes else ({"kinds": None}, [])

    def _namespaces_of(self, name: str) -> Answer:
        sandbox = self.sandboxes[name]
        answer: Message = {"kinds": list(sandbox.fds), "init_pid": sandbox.init_pid}
        return answer, list(sandbox.fds.values())

    def map_ids(self, peer: Peer, message: Message, _fds: list[int]) -> None:
        """Make a user namespace for who maps the ids of mounts; it is not kept."""
        maps = owned.read_maps(message)
        if maps is None:
            raise Refusal("InvalidArgument", "map_ids: ids are missing")
        self.loop.answer(peer, message.get("id"), {}, [self.home.map_ids(maps)])

    def list_namespaces(self, _peer: Peer, message: Message, _fds: list[int]) -> Answer:
        """Return the sandboxes, a page at a time."""
        names, more = page(sorted(self.sandboxes), message, 400)
        return {"items": names, "more": more}, []

    def drop_namespaces(self, _peer: Peer, message: Message, _fds: list[int]) -> Answer:
        """Unpin; the kernel frees them when the last process is gone."""
        name = identifier(message, "sandbox")
        sandbox = self.sandboxes.pop(name, None)
        if sandbox is not None:
            if sandbox.init_pidfd >= 0:
                _signal(sandbox.init_pidfd, signal.SIGKILL)
            self._tell({"op": "drop", "key": f"sandbox/{name}"})
            channel.close_all(sandbox.held())
        return {}, []

    def launch(self, peer: Peer, message: Message, fds: list[int]) -> None:
        """Run a plan; the answer comes when it executed, failed, or is held."""
        process_id = identifier(message, "process")
        if process_id in self.processes:
            raise Refusal("AlreadyExists", f"process {process_id} exists")
        labels = _labels(message)
        if not fds:
            raise Refusal("InvalidArgument", f"launch {process_id}: no plan came with it")
        length = message.get("plan")
        plan = read_plan(fds[0], length)
        environment = length if isinstance(length, int) else -1
        hold, on_host = bool(message.get("hold")), bool(message.get("on_host"))
        launch = self.launcher.clone(
            plan, process_id, fds, dict(labels), environment, hold=hold, on_host=on_host
        )
        launch.peer, launch.number = peer, message.get("id")
        if launch.birth < 0:
            self._begin(launch)
            return
        self.processes[process_id] = launch.process
        self.launches[process_id] = launch
        self.loop.add(launch.birth, lambda _events: self._born(launch))

    def _begin(self, launch: Launch) -> None:
        process_id = launch.process.process_id
        try:
            # The keeper has the pidfd before the process may execute: see its _reap. With all that is
            # held another supervisor can release it.
            held = launch.held() if launch.hold else _pidfds(launch.process)
            self.store.put(f"process/{process_id}", launch.process.meta(), held)
        except OSError as error:
            launch.close()
            os.close(launch.process.pidfd)
            raise Refusal("Unavailable", f"launch {process_id}: keeper: {error}") from error
        self.processes[process_id] = launch.process
        self._await(launch)
        if not launch.hold:
            launch.open_gate()

    def _born(self, launch: Launch) -> None:
        """The process that will execute is there, or there will be none."""
        process_id = launch.process.process_id
        self.loop.drop(launch.birth)
        del self.processes[process_id], self.launches[process_id]
        if self.launcher.is_born(launch):
            try:
                self._begin(launch)
            except Refusal as error:
                self._refuse_launch(launch, error)
            return
        os.close(launch.process.pidfd)
        self._refuse_launch(launch, launch.failure())
        launch.close()

    def _refuse_launch(self, launch: Launch, error: Exception) -> None:
        if launch.peer is not None:
            self.loop.refuse(launch.peer, launch.number, error)

    def _await(self, launch: Launch) -> None:
        self.launches[launch.process.process_id] = launch
        self.loop.add(launch.status, lambda _events: self._status(launch))

    def release(self, peer: Peer, message: Message, _fds: list[int]) -> Answer | None:
        """Let a held process go on; asked again (our predecessor may have died), it went on already."""
        process_id = identifier(message, "process")
        launch = self.launches.get(process_id)
        if launch is None or not launch.hold:
            if message.get("again") and process_id in self.processes:
                return {}, []
            raise Refusal("NotFound", f"process {process_id}: none is held")
        launch.peer, launch.number, launch.hold = peer, message.get("id"), False
        launch.open_gate()
        self._hold(f"process/{process_id}", launch.process.meta(), [launch.process.pidfd])
        return None

    def _status(self, launch: Launch) -> None:
        """The child is at its gate, or it has executed, or it is gone."""
        if not os.read(launch.status, 1):
            self._settled(launch)
            return
        self._answer_launch(launch)

    def _settled(self, launch: Launch) -> None:
        """The status pipe has closed: the child executed, or it is gone."""
        process_id = launch.process.process_id
        self.loop.drop(launch.status)
        self.launches.pop(process_id, None)
        failure = launch.report.failure(launch.plan)
        if failure is not None and launch.peer is not None:
            self._forget(process_id)
            self.loop.refuse(launch.peer, launch.number, failure)
        else:
            # A failure of which nobody is told: it was held and was killed. Its exit tells.
            self._answer_launch(launch)
            if launch.hold:
                self._hold(f"process/{process_id}", launch.process.meta(), _pidfds(launch.process))
        launch.close()

    def _answer_launch(self, launch: Launch) -> None:
        found = launch.process
        if launch.peer is not None:
            answer: Message = {"pid": found.pid, "start_time": found.start_time}
            launch.peer.push({"id": launch.number, "ok": answer}, [found.pidfd])
        launch.peer = None

    def adopt(self, _peer: Peer, message: Message, _fds: list[int]) -> Answer:
        """Take over what a program that we launched left to the keeper; asked again, it is the same one."""
        process_id, labels = identifier(message, "process"), _labels(message)
        found = self.processes.get(process_id)
        if found is None:
            try:
                held = self.store.adopt(process_id, int(message.get("pid") or 0), labels)
            except (OSError, channel.ChannelError) as error:
                raise Refusal("Unavailable", f"adopt {process_id}: {error}") from error
            if held is None:
                text = f"process {process_id}: no child {message.get('pid')} is there or has ended"
                raise Refusal("NotFound", text)
            found = self.processes[process_id] = Process.restore(process_id, *held)
        elif found.pid != message.get("pid"):
            raise Refusal("AlreadyExists", f"process {process_id} exists")
        return {"pid": found.pid, "start_time": found.start_time}, _pidfds(found)

    def abort(self, _peer: Peer, message: Message, _fds: list[int]) -> Answer:
        """End and forget a process whose launch was never answered; an unknown one is fine."""
        process_id = identifier(message, "process")
        found = self.processes.get(process_id)
        if found is not None and found.pidfd >= 0:
            _signal(found.pidfd, signal.SIGKILL)
        self._give_up(process_id)
        self._forget(process_id)
        return {"known": found is not None}, []

    def _give_up(self, process_id: str) -> None:
        """End a launch that has not executed, and tell who waits for it."""
        launch = self.launches.pop(process_id, None)
        if launch is None:
            return
        _signal(launch.process.pidfd, signal.SIGKILL)
        self.loop.drop(launch.status)
        self.loop.drop(launch.birth)
        text = f"process {process_id}: forgotten before it executed"
        self._refuse_launch(launch, Refusal("BackendError", text))
        launch.close()

    def kill(self, _peer: Peer, message: Message, _fds: list[int]) -> Answer:
        """Signal through the pidfd."""
        process_id = identifier(message, "process")
        found = self.processes.get(process_id)
        number = message.get("signal")
        if not isinstance(number, int) or not 0 <= number < signal.NSIG:
            raise Refusal("InvalidArgument", f"signal {number!r}: not a signal number")
        if found is None or found.pidfd < 0 or not _signal(found.pidfd, number):
            raise Refusal("NotFound", f"process {process_id}: not running")
        return {}, []

    def connect_tcp(self, peer: Peer, message: Message, _fds: list[int]) -> None:
        """Connect from inside a sandbox; answered when it stands or fails."""
        name = identifier(message, "sandbox")
        sandbox = self.sandboxes.get(name)
        if sandbox is None or "network" not in sandbox.fds:
            raise Refusal("NotFound", f"sandbox {name}: no network namespace is pinned")
        family, address = tcp.address(message)
        sock = self.home.tcp_socket(sandbox.fds["network"], family)
        tcp.connect(self.loop, peer, message.get("id"), sock, address)

    def list_processes(self, _peer: Peer, message: Message, _fds: list[int]) -> Answer:
        """Return processes, as many as fit, after an id."""
        names, more = page(sorted(self.processes), message, 100)
        rows: Message = {}
        size = 0
        for name in names:
            found = self.processes[name]
            size += 100 + sum(len(key) + len(value) for key, value in found.labels.items())
            if rows and size > _PAGE_BYTES:
                more = True
                break
            rows[name] = found.meta()
        return {"items": list(rows), "more": more, "processes": rows}, []

    def forget(self, _peer: Peer, message: Message, _fds: list[int]) -> Answer:
        """Drop a process that is gone; one whose launch is under way is ended."""
        process_id = identifier(message, "process")
        launch = self.launches.get(process_id)
        if launch is not None and launch.birth < 0 and _is_readable(launch.status):
            # It has executed, or has failed: who waits for it gets that answer while there is one.
            self._status(launch)
        self._give_up(process_id)
        self._forget(process_id)
        return {}, []

    def _forget(self, process_id: str) -> None:
        found = self.processes.pop(process_id, None)
        self._tell({"op": "forget", "process": process_id})
        if found is not None and found.pidfd >= 0:
            os.close(found.pidfd)

    def run(self, listener: socket.socket) -> None:
        """Serve; after a change of keepers only until no launch is in flight, then leave."""
        self.loop.accept_from(listener)
        while not self._may_leave():
            self.loop.step()
        note("handed over: leaves")
        self.loop.close_up(listener)

    def _may_leave(self) -> bool:
        """Tell whether all is with a keeper that lives, and nothing is in flight.

        A launch that hangs is not waited for: it fails as if we had been killed.
        """
        if not self.handing_over:
            return False
        in_flight = not all(launch.hold for launch in self.launches.values())
        if in_flight and time.monotonic() < self.leaves_by:
            return False
        try:
            self.store.confirm()
        except (OSError, channel.ChannelError):
            return False
        return True


_HELD_FDS = 4
_OPERATIONS = {
    "make_namespaces": Supervisor.make_namespaces,
    "namespaces": Supervisor.namespaces,
    "map_ids": Supervisor.map_ids,
    "list_namespaces": Supervisor.list_namespaces,
    "drop_namespaces": Supervisor.drop_namespaces,
    "launch": Supervisor.launch,
    "release": Supervisor.release,
    "abort": Supervisor.abort,
    "adopt": Supervisor.adopt,
    "kill": Supervisor.kill,
    "connect_tcp": Supervisor.connect_tcp,
    "processes": Supervisor.list_processes,
    "forget": Supervisor.forget,
}


def _labels(message: Message) -> dict[str, str]:
    labels = mapping(message, "labels")
    if sum(len(name) + len(value) for name, value in labels.items()) > _LABELS_MAX:
        raise Refusal("InvalidArgument", f"{message.get('op')}: labels above {_LABELS_MAX} bytes")
    return labels


def _is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _signal(pidfd: int, number: int) -> bool:
    # One that is not reaped yet would take the signal without a word.
    if has_ended(pidfd):
        return False
    try:
        process.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def _pidfds(found: Process) -> list[int]:
    return [found.pidfd] if found.pidfd >= 0 else []
