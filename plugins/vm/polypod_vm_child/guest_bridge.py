"""The guest's side of the channel: what the daemon is on a host, for one pod.

It opens what launches need (disks, overlays, cgroups, streams), lets the guest's supervisor run the plans,
pumps the streams, and tells exits behind the last byte that was written before them.
"""

from __future__ import annotations

import os
import signal
import socket
import time

from polypod.plan import channel
from polypod.plan.operations import Plan
from polypod.supervisor.server import Loop
from polypod.supervisor.steps.namespaces import sysctl_path
from polypod_vm_child import guest_roots as roots
from polypod_vm_child.guest_channel import Channel
from polypod_vm_child.guest_forwards import Forwards
from polypod_vm_child.guest_launch import Opened, Refused, open_streams, resolve
from polypod_vm_child.guest_peers import Peers
from polypod_vm_child.guest_process import Farewell, Process
from polypod_vm_child.streams import Sink, Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    Message = dict[str, Any]

_SANDBOX = "pod"
_POD_CGROUP = "/pod"
_DRAINS_S = 5.0
_PTY_SETTLES_S = 0.05


class Bridge:
    """See the module's description."""

    def __init__(self, state: str) -> None:
        self.loop = Loop(_serve_nobody)
        self.processes: dict[str, Process] = {}
        self.namespaces: dict[str, int] = {}
        self.peers = Peers(self.loop, state, self._exited)
        self.forwards = Forwards(self)
        self.due: list[tuple[float, Callable[[], None]]] = []
        self._cgroups: Any = None
        self.channel = Channel(self)
        self.link = self.channel.link
        self.sources, self.sinks = self.channel.sources, self.channel.sinks

    def run(self) -> None:
        """Serve for ever."""
        while True:
            now = time.monotonic()
            for entry in [entry for entry in self.due if entry[0] <= now]:
                self.due.remove(entry)
                entry[1]()
            self.loop.timeout = min((each[0] - now for each in self.due), default=-1.0)
            if self.loop.timeout != -1.0:
                self.loop.timeout = max(0.0, self.loop.timeout)
            self.loop.step()

    def after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call once, later."""
        self.due.append((time.monotonic() + seconds, callback))

    @property
    def cgroups(self) -> Any:  # noqa: ANN401 - the engine's writer, imported when it is first needed
        """The namespaces engine's writer, on this kernel's cgroup v2."""
        if self._cgroups is None:
            from polypod.backend.cgroups import Cgroups, discover

            self._cgroups = Cgroups(discover())
        return self._cgroups

    def perform(self, message: Message, answer: Answer) -> None:
        """Do one request; what goes wrong is the answer."""
        try:
            operation = _OPERATIONS.get(str(message.get("op")))
            if operation is None:
                raise Refused("Unimplemented", f"guest: no operation {message.get('op')!r}")
            done = operation(self, message, answer)
        except Refused as error:
            answer(None, {"kind": error.kind, "message": str(error)})
        except Exception as error:
            answer(None, _described(error))
        else:
            if done is not None:
                answer(done)

    def greeted(self) -> None:
        """The host is there: prepare for its first request, and for no connections of an earlier relay."""
        self.forwards.close()
        self.after(0.0, lambda: self.cgroups.create(_POD_CGROUP))

    def tell_exits(self) -> None:
        """Tell every exit that was not forgotten (again): whether an earlier relay told it, nobody knows."""
        for name, process in self.processes.items():
            if process.exit is not None:
                self._say_farewell(name, process)

    # Requests: each returns its answer, or None and answers later.

    def configure(self, message: Message, answer: Answer) -> Message | None:
        """Set clock, entropy, files and network; make the pod's namespaces."""
        import base64

        time.clock_settime_ns(time.CLOCK_REALTIME, int(message["time_ns"]))
        with open("/dev/urandom", "wb") as pool:
            pool.write(base64.b64decode(message["entropy"]))
        roots.write_files(message["files"])
        network = message.get("network")
        if network is not None:
            from polypod_vm_child import guest_network

            guest_network.configure(network)
        hostname = str(message.get("hostname") or "")
        if hostname:
            socket.sethostname(hostname)

        def made(ok: Message | None, error: Message | None, fds: list[int]) -> None:
            if error is None:
                self.namespaces = dict(zip((ok or {})["kinds"], fds, strict=False))
            answer({}, error)

        request = {"op": "make_namespaces", "sandbox": _SANDBOX, "kinds": message["kinds"]}
        sysctls = message["sysctls"]
        _require_sysctls(sysctls)
        # The machine's network is the pod's, so all of them are set from inside of what is made here.
        self.peers.ask({**request, "hostname": hostname, "sysctls": sysctls}, [], made)
        return None

    def launch(self, message: Message, answer: Answer) -> None:
        """Open what a container needs and run its plan up to its gate."""
        name = str(message["process"])
        if name in self.processes:
            raise Refused("AlreadyExists", f"process {name} exists")
        cgroup = str(message["cgroup"])
        process = Process("container", cgroup, own_pids=bool(message["own_pids"]))
        opened = Opened()
        try:
            root = message["root"]
            lower = roots.mount_disk(root["serial"], root["fstype"])
            opened.add(f"disk:{root['serial']}", roots.make_root(name, lower))
            for source, bind in message["binds"].items():
                opened.add(source, roots.open_bind(bind["path"], bind["attributes"]))
            self.cgroups.create(cgroup)
            self.cgroups.apply(cgroup, {"": [tuple(each) for each in message["limits"]]})
            if message["devices"]:
                self._filter_devices(cgroup, message["devices"])
            opened.add("cgroup:own", self.cgroups.join_descriptors(cgroup)[0])
            self._start(name, process, message, opened, answer, hold=True)
        except BaseException:
            opened.close()
            self._discard(name, process)
            raise

    def _filter_devices(self, cgroup: str, program: str) -> None:
        import base64

        from polypod.backend import devicefilter

        directory = self.cgroups.directory("memory", cgroup)
        devicefilter.attach(str(directory), base64.b64decode(program))

    def exec(self, message: Message, answer: Answer) -> None:
        """Run an extra process in a container."""
        name, container = str(message["process"]), self._alive(str(message["container"]))
        group = f"{container.cgroup}/exec-{name[:16]}"
        process = Process("exec", group, own_pids=False)
        opened = Opened()
        try:
            opened.add("cgroup:own", self.cgroups.join_child(container.cgroup, group)[0])
            self._start(name, process, message, opened, answer, hold=False)
        except BaseException:
            opened.close()
            self.cgroups.remove_quietly(group)
            raise

    def _start(
        self,
        name: str,
        process: Process,
        message: Message,
        opened: Opened,
        answer: Answer,
        *,
        hold: bool,
    ) -> None:
        ours = open_streams(message["streams"], opened)
        plan = resolve(Plan.from_wire(message["plan"]), opened, self._named)
        self._pump(process, ours)
        self.processes[name] = process

        def launched(ok: Message | None, error: Message | None, fds: list[int]) -> None:
            if error is None:
                process.pid, process.pidfd = int((ok or {})["pid"]), fds[0]
                process.started = not hold
            else:
                self._discard(name, process)
            answer({"pid": process.pid}, error)
            if process.early_exit is not None:
                self._exited(name, process.early_exit)

        self.peers.launch(name, plan, opened.fds, launched, hold=hold)
        opened.close()

    def _named(self, source: str) -> int:
        """Return a descriptor of ours that a plan names."""
        kind, _, name = source.partition(":")
        if kind == "sandbox" and name in self.namespaces:
            return self.namespaces[name]
        if kind == "container":
            return self._alive(name).pidfd
        raise Refused("InvalidArgument", f"source {source!r}: there is no such thing in the guest")

    def _pump(self, process: Process, ours: list[tuple[int, str, int]]) -> None:
        for stream, direction, fd in ours:
            process.streams.append(stream)
            if direction == "out":
                self.sources[stream] = Source(
                    self.loop, self.link, stream, fd, self.after, live=self.channel.synced
                )
            elif direction == "in":
                self.sinks[stream] = Sink(self.loop, self.link, stream, fd)
            else:
                self._await_terminal(process, stream, fd)

    def _await_terminal(self, process: Process, stream: int, fd: int) -> None:
        """A pty's master will come over a socket: it is stream N for output and N + 1 for input."""
        process.terminal = True
        process.streams.append(stream + 1)
        console = socket.socket(fileno=fd)

        def came(_events: int) -> None:
            _data, fds, _flags, _address = socket.recv_fds(console, 64, 1)
            self.loop.drop(console.fileno())
            console.close()
            if not fds:
                self.link.send_end(stream)
                return
            self.sources[stream] = Source(
                self.loop, self.link, stream, fds[0], live=self.channel.synced
            )
            self.sinks[stream + 1] = Sink(self.loop, self.link, stream + 1, os.dup(fds[0]))

        self.loop.add(console.fileno(), came)

    def release(self, message: Message, answer: Answer) -> None:
        """Let a container's program run."""
        name = str(message["process"])
        process = self._known(name)

        def released(_ok: Message | None, error: Message | None, fds: list[int]) -> None:
            channel.close_all(fds)
            process.started = error is None
            answer({"pid": process.pid}, error)

        self.peers.ask({"op": "release", "process": name}, [], released)

    def kill(self, message: Message, _answer: Answer) -> Message:
        """Signal a first process, or (``whole``) all of its cgroup; who is gone is fine."""
        process = self.processes.get(str(message["process"]))
        if process is None:
            return {}
        number = int(message["signal"])
        if message["whole"]:
            self.cgroups.kill(process.cgroup, number)
        if process.exit is None and not (message["whole"] and process.started):
            self.peers.tell({"op": "kill", "process": message["process"], "signal": number})
        return {}

    def resize(self, message: Message, _answer: Answer) -> Message:
        """Set the size of a terminal."""
        import fcntl
        import struct
        import termios

        process = self.processes.get(str(message.get("process")))
        stream = process.streams[0] if process is not None and process.streams else -1
        source = self.sources.get(int(message.get("stream", stream)))
        if source is not None and source.fd >= 0:
            size = struct.pack("HHHH", int(message["height"]), int(message["width"]), 0, 0)
            fcntl.ioctl(source.fd, termios.TIOCSWINSZ, size)
        return {}

    def delete(self, message: Message, _answer: Answer) -> Message:
        """Give back what a process had; unknown ones are fine.

        An exec that left something running is kept, so that it can still be killed; it goes with its
        container.
        """
        name = str(message["process"])
        process = self.processes.get(name)
        if process is None:
            return {}
        if process.kind == "exec":
            self.cgroups.remove_quietly(process.cgroup)
            if self.cgroups.exists(process.cgroup):
                return {}
        for other, exec_ in list(self.processes.items()):
            if exec_.cgroup.startswith(f"{process.cgroup}/"):
                self._discard(other, exec_)
        self._discard(name, process)
        return {}

    def _discard(self, name: str, process: Process) -> None:
        self.processes.pop(name, None)
        if process.kind == "exec":
            self.cgroups.remove_quietly(process.cgroup)
        elif self.cgroups.exists(process.cgroup):
            self.cgroups.kill(process.cgroup, signal.SIGKILL)
            self.cgroups.remove(process.cgroup)
        for stream in process.streams:
            source, sink = self.sources.pop(stream, None), self.sinks.pop(stream, None)
            if source is not None:
                source.close()
            if sink is not None:
                sink.close()
        if process.kind == "container":
            roots.remove_root(name)
        self.peers.tell({"op": "forget" if process.pidfd >= 0 else "abort", "process": name})
        if process.pidfd >= 0:
            os.close(process.pidfd)

    def update(self, message: Message, _answer: Answer) -> Message:
        """Change limits, all or none."""
        from polypod.backend import limits

        cgroup = self._known(str(message["process"])).cgroup
        files = {"": [tuple(each) for each in message["limits"]]}
        limits.change(self.cgroups, cgroup, files)
        return {}

    def stats(self, message: Message, _answer: Answer) -> Message:
        """Return counters of containers that are alive."""
        from polypod_vm_child import guest_usage

        alive = {
            name: self.processes[name].cgroup
            for name in message["processes"]
            if name in self.processes and self.processes[name].exit is None
        }
        return {name: guest_usage.read(self.cgroups, path) for name, path in alive.items()}

    def list(self, _message: Message, _answer: Answer) -> Message:
        """Return every process that is not deleted."""
        return {name: process.describe() for name, process in self.processes.items()}

    def forward(self, message: Message, answer: Answer) -> None:
        """Connect to a port of the pod's localhost."""
        self.forwards.forward(message, answer)

    # Exits

    def _exited(self, name: str, record: Message) -> None:
        process = self.processes.get(name)
        if process is None or process.exit is not None:
            return
        if process.pidfd < 0:
            # Told behind the answer to its launch: who is told of an exit may forget the process.
            process.early_exit = record
            return
        process.exit = record
        if process.kind == "container" and not process.own_pids:
            self.cgroups.kill(process.cgroup, signal.SIGKILL)
        process.oom = record.get("code") != 0 and self._oom_kills(process.cgroup) > 0
        # The kernel hands a terminal's output over behind the writer: it may not be there yet.
        settles_s = _PTY_SETTLES_S if process.terminal else 0.0
        self.after(settles_s, lambda: self._say_farewell(name, process))

    def _say_farewell(self, name: str, process: Process) -> None:
        event = {"event": "exit", "process": name, "oom": process.oom, **(process.exit or {})}
        event["streams"] = process.streams
        sources = [self.sources[each] for each in process.streams if each in self.sources]
        farewell = Farewell(sources, lambda: self.link.send(event))
        # One that nobody reads on the host must not hide the exit.
        self.after(_DRAINS_S, farewell.now)

    def _oom_kills(self, path: str) -> int:
        names = [path, *(f"{path}/{name}" for name in self.cgroups.children(path))]
        return sum(self.cgroups.oom_kills(name) for name in names)

    # Small things

    def _known(self, name: str) -> Process:
        if name not in self.processes:
            raise Refused("NotFound", f"process {name}: unknown in the guest")
        return self.processes[name]

    def _alive(self, name: str) -> Process:
        process = self._known(name)
        if process.exit is not None or not process.started:
            raise Refused("BackendError", f"container {name}: it does not run")
        return process


if TYPE_CHECKING:
    Answer = Callable[..., None]

_OPERATIONS: dict[str, Callable[[Bridge, Message, Answer], Message | None]] = {
    "configure": Bridge.configure,
    "launch": Bridge.launch,
    "exec": Bridge.exec,
    "release": Bridge.release,
    "kill": Bridge.kill,
    "resize": Bridge.resize,
    "delete": Bridge.delete,
    "update": Bridge.update,
    "stats": Bridge.stats,
    "list": Bridge.list,
    "forward": Bridge.forward,
}


def _require_sysctls(names: Iterable[str]) -> None:
    for name in names:
        if not os.path.exists(f"/proc/sys/{sysctl_path(name)}"):
            release = os.uname().release
            raise Refused("Unsupported", f"sysctl {name}: the guest's kernel {release} has none")


def _serve_nobody(_peer: object, _message: object, _fds: object) -> None:
    """The bridge listens to nobody but the channel."""


def _described(error: Exception) -> Message:
    number = getattr(error, "errno", 0) or 0
    said = (error.strerror if isinstance(error, OSError) else "") or str(error)
    return {"kind": type(error).__name__, "message": f"guest: {said}", "errno": number}


def main(state: str) -> None:
    """Become the bridge."""
    Bridge(state).run()
