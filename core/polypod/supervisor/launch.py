"""Launches in flight: from clone3 to a successful execve."""

from __future__ import annotations

import os
import signal
from functools import partial

from polypod.plan import channel
from polypod.plan.operations import Plan
from polypod.supervisor import child
from polypod.supervisor.kernel import namespace, process
from polypod.supervisor.steps.context import Context
from polypod.supervisor.steps.process import Program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from polypod.supervisor.server import Peer

    Message = dict[str, Any]


class Process:
    """A process that was launched and is not forgotten."""

    __slots__ = ("exit", "gate", "labels", "pid", "pidfd", "process_id", "start_time")

    def __init__(
        self, process_id: str, pid: int, pidfd: int, start_time: int, labels: Message
    ) -> None:
        self.process_id = process_id
        self.pid = pid
        self.pidfd = pidfd
        self.start_time = start_time
        self.labels = labels
        self.gate = -1
        self.exit: object = None

    def meta(self) -> Message:
        """Return the note that the keeper holds."""
        return {"pid": self.pid, "start_time": self.start_time, "labels": self.labels}


class Launch:
    """One clone that has not executed yet."""

    __slots__ = ("hold", "number", "peer", "plan", "process", "report", "status", "watched")

    def __init__(self, plan: Plan, peer: Peer | None, number: object, hold: bool) -> None:
        self.plan = plan
        self.peer = peer
        self.number = number
        self.hold = hold
        self.report = child.Report()
        self.status = -1
        self.watched = False
        self.process: Process | None = None


class Launcher:
    """Clones children; owns the descriptors that every child needs."""

    def __init__(self, host_mounts: int) -> None:
        self.host_mounts = host_mounts
        self.proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._own_pids = os.open("self/ns/pid", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc)

    def clone(
        self,
        launch: Launch,
        process_id: str,
        fds: list[int],
        labels: Message,
        *,
        on_host: bool,
    ) -> Process:
        """Clone the child of a launch; it runs its plan while we go on.

        Raises:
            OSError: clone3 failed, or the plan names what is not there; nothing is left.
        """
        try:
            program = Program(launch.plan.execute)
            context = Context(fds, program, proc=self.proc, null=-1)
            status_read, status_write = os.pipe2(os.O_CLOEXEC)
        except BaseException:
            launch.report.close()
            raise
        gate_read, gate_write = os.pipe2(os.O_CLOEXEC)
        context.keep = (status_write, gate_read)
        try:
            pid, pidfd = self._clone_into(launch.plan, context)
        except OSError:
            channel.close_all([status_read, status_write, gate_read, gate_write])
            launch.report.close()
            raise
        if pid == 0:
            # The write end must go, or the gate would never see the supervisor die.
            self._in_child(launch, context, gate_read, gate_write, on_host)
        os.close(status_write)
        os.close(gate_read)
        launch.status = status_read
        launched = Process(process_id, pid, pidfd, self._start_time(pid), labels)
        launched.gate = gate_write
        launch.process = launched
        return launched

    def _clone_into(self, plan: Plan, context: Context) -> tuple[int, int]:
        """Clone, into the pid namespace that the plan names: no process can move to another one."""
        flags = process.CLONE_PARENT | plan.clone_flags
        if not plan.pid_namespace:
            return process.clone3(flags)
        namespace.setns(context.source(plan.pid_namespace), process.CLONE_NEWPID)
        pid = -1
        try:
            pid, pidfd = process.clone3(flags)
        finally:
            if pid != 0:
                namespace.setns(self._own_pids, process.CLONE_NEWPID)
        return pid, pidfd

    def _in_child(
        self, launch: Launch, context: Context, gate_read: int, gate_write: int, on_host: bool
    ) -> NoReturn:
        """Everything here runs in the child and never returns."""
        try:
            os.close(gate_write)
            os.umask(0)
            _default_signals()
            context.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            if on_host:
                namespace.setns(self.host_mounts, process.CLONE_NEWNS)
                context.root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            gate = partial(_pass_gate, gate_read, context.keep[0] if launch.hold else -1)
            child.run(launch.plan, context, launch.report, gate)
        except OSError as error:
            launch.report.fail(-1, error.errno or 0, error.strerror or str(error))
        finally:
            os._exit(127)

    def _start_time(self, pid: int) -> int:
        try:
            fd = os.open(f"{pid}/stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc)
        except OSError:
            return 0
        try:
            return int(os.read(fd, 4096).rpartition(b")")[2].split()[19])
        finally:
            os.close(fd)


def _pass_gate(gate_read: int, status: int) -> None:
    """Wait for the go; if the supervisor died first, do not execute: nobody knows of us."""
    if status >= 0:
        os.write(status, b"r")
    if os.read(gate_read, 1) != b"g":
        os._exit(126)


_DEFAULTS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


def _default_signals() -> None:
    """Python ignores SIGPIPE and SIGXFSZ; a program must not inherit that, nor our mask."""
    for number in _DEFAULTS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
