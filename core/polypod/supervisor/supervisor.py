"""The supervisor: makes and joins namespaces, runs launch plans, sends signals. One thread.

It is a child of the keeper and its children are the keeper's (CLONE_PARENT): when it dies, the keeper
starts another, which fetches its descriptors from the keeper's store, and nothing else has changed.
When the keeper dies, the supervisor starts a new keeper, hands everything over, and leaves: the new
keeper starts a supervisor that is its own child.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket

from polypod.plan import channel
from polypod.plan.operations import Plan
from polypod.supervisor import start, trim
from polypod.supervisor.keeper import Store
from polypod.supervisor.kernel import namespace, process
from polypod.supervisor.launch import Launch, Launcher, Process
from polypod.supervisor.sandboxes import Home, Sandbox
from polypod.supervisor.server import Loop, Peer, Refusal, identifier, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Message = dict[str, Any]


_KINDS = frozenset({"network", "ipc", "uts", "pid"})
_PLAN_LIMIT = 8 * 1024 * 1024
_CONNECT_TIMEOUT_MS = 10_000

if TYPE_CHECKING:
    Answer = tuple[Message, list[int]]


class Supervisor:
    """See the module's description."""

    def __init__(
        self, state: str, listener: socket.socket, host_mounts: int, state_fd: int
    ) -> None:
        self.state = state
        self.state_fd = state_fd
        self.loop = Loop(self.handle)
        self.launcher = Launcher(host_mounts)
        self.home = Home(self.launcher.proc)
        self.store = Store(self._state_path())
        self.processes: dict[str, Process] = {}
        self.sandboxes: dict[str, Sandbox] = {}
        self.launches: set[Launch] = set()
        self._restore()
        self.loop.add(listener.fileno(), lambda _events: self._accept(listener))
        self._watch_keeper()

    def _state_path(self) -> str:
        """The state directory through its descriptor: no path of the host exists in here."""
        return f"/proc/self/fd/{self.state_fd}"

    def _accept(self, listener: socket.socket) -> None:
        connection, _address = listener.accept()
        try:
            channel.check_peer(connection)
        except channel.ChannelError:
            connection.close()
            return
        self.loop.add_peer(connection)

    # The keeper.

    def _restore(self) -> None:
        for key, meta, fds in self.store.fetch("process/"):
            found = Process(
                key[8:], int(meta["pid"]), fds[0], int(meta["start_time"]), dict(meta["labels"])
            )
            found.exit = meta.get("exit")
            self.processes[found.process_id] = found
        for key, meta, fds in self.store.fetch("sandbox/"):
            self.sandboxes[key[8:]] = Sandbox.restore(meta, fds)

    def _watch_keeper(self) -> None:
        self.loop.add(self.store.sock.fileno(), lambda _events: self._read_keeper())

    def _read_keeper(self) -> None:
        """Answers to puts do not matter; the end of the connection does."""
        try:
            received = channel.receive(self.store.sock)
        except (OSError, channel.ChannelError):
            received = None
        if received is None:
            self._replace_keeper()

    def _replace_keeper(self) -> None:
        self.loop.drop(self.store.sock.fileno())
        self.store.sock.close()
        self._start_keeper()
        self.store = Store(self._state_path())
        for found in self.processes.values():
            ended = process.exit_status(found.pidfd)
            if ended is not None and found.exit is None:
                found.exit = _exit_record(ended)
            meta = found.meta()
            if found.exit is not None:
                meta["exit"] = found.exit
            self.store.put(f"process/{found.process_id}", meta, [found.pidfd])
        for name, sandbox in self.sandboxes.items():
            self.store.put(f"sandbox/{name}", sandbox.meta(), sandbox.held())
        self.store.tell({"op": "handed_over", "role": "supervisor"})
        self.loop.leaving = True

    def _start_keeper(self) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                if self.launcher.host_mounts >= 0:
                    namespace.setns(self.launcher.host_mounts, process.CLONE_NEWNS)
                arguments = start.command("keeper", self.state, "--adopting")
                os.execv(arguments[0], arguments)
            finally:
                os._exit(127)
        os.waitpid(pid, 0)
        path = f"{self._state_path()}/keeper.sock"
        for _ in range(500):
            try:
                channel.connect(path).close()
                return
            except (OSError, channel.ChannelError):
                select.select([], [], [], 0.01)

    # Requests.

    def handle(self, peer: Peer, message: Message, fds: list[int]) -> Answer | None:
        """Serve one request; what it does not keep of the descriptors is closed."""
        operation = _OPERATIONS.get(str(message.get("op")))
        if operation is None:
            raise Refusal("Unimplemented", f"supervisor: no operation {message.get('op')!r}")
        return operation(self, peer, message, fds)

    def make_namespaces(self, _peer: Peer, message: Message, fds: list[int]) -> Answer:
        """Make and pin; a known sandbox gets what it has."""
        channel.close_all(fds)
        name = identifier(message, "sandbox")
        if name not in self.sandboxes:
            kinds = _strings(message, "kinds")
            if not set(kinds) <= _KINDS:
                raise Refusal("InvalidArgument", f"namespaces {kinds}: known are {sorted(_KINDS)}")
            sysctls = _mapping(message, "sysctls")
            made = self.home.make(kinds, str(message.get("hostname") or ""), sysctls)
            self.sandboxes[name] = made
            self.store.put(f"sandbox/{name}", made.meta(), made.held())
        return self._namespaces_of(name)

    def namespaces(self, _peer: Peer, message: Message, fds: list[int]) -> Answer:
        """Return what is pinned."""
        channel.close_all(fds)
        name = identifier(message, "sandbox")
        return self._namespaces_of(name) if name in self.sandboxes else ({"kinds": None}, [])

    def _namespaces_of(self, name: str) -> Answer:
        sandbox = self.sandboxes[name]
        return {"kinds": list(sandbox.fds), "init_pid": sandbox.init_pid}, list(
            sandbox.fds.values()
        )

    def list_namespaces(self, _peer: Peer, message: Message, fds: list[int]) -> Answer:
        """Return the sandboxes, a page at a time."""
        channel.close_all(fds)
        return _page(sorted(self.sandboxes), message, 400)

    def drop_namespaces(self, _peer: Peer, message: Message, fds: list[int]) -> Answer:
        """Unpin; the kernel frees them when the last process is gone."""
        channel.close_all(fds)
        name = identifier(message, "sandbox")
        sandbox = self.sandboxes.pop(name, None)
        if sandbox is not None:
            if sandbox.init_pidfd >= 0:
                _signal(sandbox.init_pidfd, signal.SIGKILL)
            self.store.drop(f"sandbox/{name}")
            channel.close_all(sandbox.held())
        return {}, []

    def launch(self, peer: Peer, message: Message, fds: list[int]) -> None:
        """Run a plan; the answer comes when it executed, failed, or is held."""
        process_id = identifier(message, "process")
        if process_id in self.processes:
            raise Refusal("AlreadyExists", f"process {process_id} exists")
        if not fds:
            raise Refusal("InvalidArgument", f"launch {process_id}: no plan came with it")
        plan = _read_plan(fds.pop(0))
        launch = Launch(plan, peer, message.get("id"), bool(message.get("hold")))
        labels: Message = dict(_mapping(message, "labels"))
        on_host = bool(message.get("on_host"))
        launched = self.launcher.clone(launch, process_id, fds, labels, on_host=on_host)
        # The keeper has the pidfd before the process may execute: see its _reap.
        self.store.put(f"process/{process_id}", launched.meta(), [launched.pidfd])
        channel.close_all(fds)
        self.processes[process_id] = launched
        self.launches.add(launch)
        self.loop.add(launch.status, lambda _events: self._status(launch))
        if not launch.hold:
            _open_gate(launched)

    def release(self, peer: Peer, message: Message, fds: list[int]) -> None:
        """Let a held process go on."""
        channel.close_all(fds)
        process_id = identifier(message, "process")
        for launch in self.launches:
            launched = launch.process
            if launched is not None and launched.process_id == process_id and launched.gate >= 0:
                launch.peer, launch.number, launch.hold = peer, message.get("id"), False
                _open_gate(launched)
                return
        raise Refusal("NotFound", f"process {process_id}: none is held")

    def _status(self, launch: Launch) -> None:
        """The child is at its gate, or it has executed, or it is gone."""
        if not os.read(launch.status, 1):
            self._settled(launch)
        elif launch.process is not None:
            self._answer_launch(launch, launch.process)

    def _settled(self, launch: Launch) -> None:
        """The status pipe has closed: the child executed, or it is gone."""
        self.loop.drop(launch.status)
        os.close(launch.status)
        self.launches.discard(launch)
        launched = launch.process
        failure = launch.report.failure(launch.plan)
        launch.report.close()
        if launched is None:
            return
        if launched.gate >= 0:
            _close_gate(launched)
        if failure is None:
            self._answer_launch(launch, launched)
            return
        self._forget(launched.process_id)
        if launch.peer is not None:
            self.loop.refuse(launch.peer, launch.number, failure)

    def _answer_launch(self, launch: Launch, launched: Process) -> None:
        answer: Message = {"pid": launched.pid, "start_time": launched.start_time}
        if launch.peer is not None:
            launch.peer.push({"id": launch.number, "ok": answer}, [launched.pidfd])
        launch.peer = None

    def kill(self, _peer: Peer, message: Message, fds: list[int]) -> Answer:
        """Signal through the pidfd."""
        channel.close_all(fds)
        process_id = identifier(message, "process")
        found = self.processes.get(process_id)
        number = message.get("signal")
        if not isinstance(number, int) or not 0 <= number < signal.NSIG:
            raise Refusal("InvalidArgument", f"signal {number!r}: not a signal number")
        if found is None or not _signal(found.pidfd, number):
            raise Refusal("NotFound", f"process {process_id}: not running")
        return {}, []

    def connect_tcp(self, peer: Peer, message: Message, fds: list[int]) -> None:
        """Connect from inside a sandbox; answered when it stands or fails."""
        channel.close_all(fds)
        name = identifier(message, "sandbox")
        sandbox = self.sandboxes.get(name)
        if sandbox is None or "network" not in sandbox.fds:
            raise Refusal("NotFound", f"sandbox {name}: no network namespace is pinned")
        host, port = text(message, "host"), int(message.get("port") or 0)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = self.home.tcp_socket(sandbox.fds["network"], family)
        number = message.get("id")
        try:
            sock.connect((host, port))
        except BlockingIOError:
            self.loop.add(
                sock.fileno(), lambda _events: self._connected(peer, number, sock), select.EPOLLOUT
            )
            return
        except OSError:
            sock.close()
            raise
        self.loop.answer(peer, number, {}, [sock.detach()])

    def _connected(self, peer: Peer, number: object, sock: socket.socket) -> None:
        self.loop.drop(sock.fileno())
        failed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed:
            sock.close()
            self.loop.refuse(peer, number, OSError(failed, f"connect: {os.strerror(failed)}"))
            return
        self.loop.answer(peer, number, {}, [sock.detach()])

    def list_processes(self, _peer: Peer, message: Message, fds: list[int]) -> Answer:
        """Return processes, a page at a time."""
        channel.close_all(fds)
        answer, _none = _page(sorted(self.processes), message, 100)
        names: list[str] = answer["items"]
        rows = {
            name: {**self.processes[name].meta(), "exit": self.processes[name].exit}
            for name in names
        }
        return {"items": names, "more": answer["more"], "processes": rows}, []

    def forget(self, _peer: Peer, message: Message, fds: list[int]) -> Answer:
        """Drop a process that is gone."""
        channel.close_all(fds)
        self._forget(identifier(message, "process"))
        return {}, []

    def _forget(self, process_id: str) -> None:
        found = self.processes.pop(process_id, None)
        self.store.tell({"op": "forget", "process": process_id})
        if found is not None:
            os.close(found.pidfd)

    def run(self) -> None:
        """Serve until asked to leave, and until no launch is in flight."""
        while not self.loop.leaving or self.launches:
            self.loop.step()


_OPERATIONS = {
    "make_namespaces": Supervisor.make_namespaces,
    "namespaces": Supervisor.namespaces,
    "list_namespaces": Supervisor.list_namespaces,
    "drop_namespaces": Supervisor.drop_namespaces,
    "launch": Supervisor.launch,
    "release": Supervisor.release,
    "kill": Supervisor.kill,
    "connect_tcp": Supervisor.connect_tcp,
    "processes": Supervisor.list_processes,
    "forget": Supervisor.forget,
}


def main(state: str, *, inside: bool) -> None:
    """Become the supervisor: first outside, opening what must be open; then again, trimmed, inside."""
    process.set_name("polypod-superv")
    if inside:
        numbers = json.loads(os.environ.pop("POLYPOD_DESCRIPTORS"))
    else:
        numbers = _open_all(state)
        if trim.can_trim():
            _execute_inside(state, numbers)
    for fd in numbers.values():
        if fd >= 0:
            os.set_inheritable(fd, False)
    process.set_not_dumpable()
    listener = socket.socket(fileno=numbers["listener"])
    supervisor = Supervisor(state, listener, numbers["mounts"], numbers["state"])
    signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(0))
    supervisor.run()


def _open_all(state: str) -> dict[str, int]:
    listener = channel.listen(os.path.join(state, "supervisor.sock"))
    return {
        "listener": listener.detach(),
        "state": os.open(state, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC),
        "mounts": os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        if trim.can_trim()
        else -1,
    }


def _execute_inside(state: str, numbers: dict[str, int]) -> None:
    trim.enter()
    for fd in numbers.values():
        os.set_inheritable(fd, True)
    arguments = start.command("supervisor", state, "--inside")
    os.execve(arguments[0], arguments, {"POLYPOD_DESCRIPTORS": json.dumps(numbers)})


def _read_plan(fd: int) -> Plan:
    try:
        size = os.fstat(fd).st_size
        if size > _PLAN_LIMIT:
            raise Refusal("InvalidArgument", f"launch plan of {size} bytes: at most {_PLAN_LIMIT}")
        plan = Plan.from_wire(json.loads(os.pread(fd, size, 0)))
    except ValueError as error:
        raise Refusal("InvalidArgument", f"launch plan: {error}") from error
    finally:
        os.close(fd)
    return plan


def _open_gate(launched: Process) -> None:
    try:
        os.write(launched.gate, b"g")
    except BrokenPipeError:
        # It failed before the gate; the status pipe says so.
        launched.labels = dict(launched.labels)
    _close_gate(launched)


def _close_gate(launched: Process) -> None:
    os.close(launched.gate)
    launched.gate = -1


def _signal(pidfd: int, number: int) -> bool:
    try:
        process.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def _exit_record(status: int) -> Message:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return {"code": 128 + number, "signal": number, "at": 0}
    return {"code": os.WEXITSTATUS(status), "signal": 0, "at": 0}


def _page(items: list[str], message: Message, size: int) -> Answer:
    after = str(message.get("after") or "")
    rest = [item for item in items if item > after]
    return {"items": rest[:size], "more": len(rest) > size}, []


def _strings(message: Message, key: str) -> list[str]:
    value = message.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Refusal("InvalidArgument", f"{message.get('op')}: {key} must be a list of strings")
    return value


def _mapping(message: Message, key: str) -> dict[str, str]:
    value = message.get(key) or {}
    if not isinstance(value, dict):
        raise Refusal("InvalidArgument", f"{message.get('op')}: {key} must be an object")
    return {str(name): str(item) for name, item in value.items()}
