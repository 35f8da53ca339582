"""Launches in flight: from clone3 to a successful execve."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import signal
import socket
import struct
from functools import partial

from polypod.plan import channel
from polypod.plan.operations import Plan
from polypod.supervisor import child
from polypod.supervisor.kernel import files, mounts, namespace, process
from polypod.supervisor.kernel.birth import PID
from polypod.supervisor.plans import read_environment
from polypod.supervisor.steps.birth import be_born
from polypod.supervisor.steps.context import Context
from polypod.supervisor.steps.process import Program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from polypod.supervisor.server import Peer

    Message = dict[str, Any]


_CREDENTIALS = struct.Struct("=iII")
_ANCILLARY_BYTES = socket.CMSG_SPACE(4 * 8) + socket.CMSG_SPACE(_CREDENTIALS.size)


class Process:
    """A process that was launched and is not forgotten; ``pidfd`` is -1 for one that is gone."""

    __slots__ = ("exit", "labels", "pid", "pidfd", "process_id", "start_time")

    def __init__(
        self, process_id: str, pid: int, pidfd: int, start_time: int, labels: Message
    ) -> None:
        self.process_id = process_id
        self.pid = pid
        self.pidfd = pidfd
        self.start_time = start_time
        self.labels = labels
        self.exit: Message | None = None

    def meta(self) -> Message:
        """Return the note that the keeper holds."""
        found: Message = {
            "pid": self.pid,
            "start_time": self.start_time,
            "labels": self.labels,
        }
        if self.exit is not None:
            found["exit"] = self.exit
        return found

    @classmethod
    def restore(cls, process_id: str, meta: Message, fds: list[int]) -> Process:
        """Build from what the keeper held."""
        pidfd = fds[0] if fds else -1
        found = cls(process_id, meta["pid"], pidfd, meta["start_time"], meta["labels"])
        found.exit = meta.get("exit")
        return found


class Launch:
    """A clone that has not executed yet. ``peer`` waits for an answer, or nobody does."""

    __slots__ = ("birth", "gate", "hold", "number", "peer", "plan", "process", "report", "status")

    def __init__(
        self, process: Process, report: child.Report, *, status: int, gate: int, hold: bool
    ) -> None:
        self.process = process
        self.report = report
        self.status = status
        self.gate = gate
        self.hold = hold
        self.plan: Plan | None = None
        self.peer: Peer | None = None
        self.number: object = None
        self.birth = -1
        """A socket that tells of the process that goes on where the cloned one, ``process``, does not."""

    def held(self) -> list[int]:
        """Return what another supervisor needs to release it."""
        return [self.process.pidfd, self.gate, self.status, self.report.fd]

    def open_gate(self) -> None:
        """Let it go on; one that failed before the gate is told of by its status pipe."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self.gate, b"g")
        self.close_gate()

    def close_birth(self) -> None:
        """Nobody is to be told of any more."""
        if self.birth >= 0:
            os.close(self.birth)
            self.birth = -1

    def close_gate(self) -> None:
        """It will not execute if it has not passed."""
        if self.gate >= 0:
            os.close(self.gate)
            self.gate = -1

    def failure(self) -> OSError:
        """Return why it came to nothing."""
        return self.report.failure(self.plan) or OSError(errno.ECANCELED, "the process was killed")

    def close(self) -> None:
        """Give everything back but the process."""
        self.close_gate()
        self.close_birth()
        os.close(self.status)
        self.report.close()


class Launcher:
    """Clones children; owns the descriptors that every child needs."""

    def __init__(self, host_mounts: int) -> None:
        self.host_mounts = host_mounts
        self.proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._own_pids = os.open("self/ns/pid", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc)
        self._can_show_others = mounts.can_show_others(self._own_pids)

    def clone(
        self,
        plan: Plan,
        process_id: str,
        fds: list[int],
        labels: Message,
        environment: int = -1,
        *,
        hold: bool,
        on_host: bool,
    ) -> Launch:
        """Clone the child of a launch; it runs its plan while we go on.

        Args:
            plan: what it does.
            process_id: what it is called.
            fds: the file of the plan, and what the plan names.
            labels: kept with it.
            environment: where in the file that of the program begins, which is for the child alone; -1: it
                is in the plan.
            hold: it waits before it executes.
            on_host: it lives in the mount namespace of the host.

        Raises:
            OSError: clone3 failed, or the plan names what is not there; nothing is left.
        """
        made: list[int] = []
        report = child.Report(keepable=hold)
        birth = -1
        try:
            context = Context(fds[1:], Program(plan.execute), proc=self.proc, null=-1)
            context.environment = (fds[0], environment)
            made += os.pipe2(os.O_CLOEXEC)
            made += os.pipe2(os.O_CLOEXEC)
            status_read, status_write, gate_read, gate_write = made
            context.keep = (status_write, gate_read)
            context.is_born_last = plan.may_be_born_last(can_show_others=self._can_show_others)
            if plan.is_born_midway or context.is_born_last:
                near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                near.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                birth, context.birth = near.detach(), far.detach()
                made += (birth, context.birth)
            pid, pidfd = self._clone_into(plan, context)
        except BaseException:
            channel.close_all(made)
            report.close()
            raise
        if pid == 0:
            gate = partial(_pass_gate, gate_read, status_write, hold=hold)
            if context.is_born_last:
                gate = partial(be_born, plan, context, hold=hold)
            self._in_child(plan, context, report, gate, on_host=on_host)
        os.close(status_write)
        os.close(gate_read)
        launched = Process(process_id, pid, pidfd, self._start_time(pid), labels)
        launch = Launch(launched, report, status=status_read, gate=gate_write, hold=hold)
        launch.plan, launch.birth = plan, birth
        if context.birth >= 0:
            os.close(context.birth)
        return launch

    def is_born(self, launch: Launch) -> bool:
        """Make the launch one of the process that goes on, if there is one; only once."""
        birth, first = launch.birth, launch.process
        launch.birth = -1
        with socket.socket(fileno=birth) as sock:
            said, fds = _receive_from(sock, first.pid)
        if not said:
            return False
        (pid,) = PID.unpack(said)
        os.close(first.pidfd)
        start_time = self._start_time(pid)
        launch.process = Process(first.process_id, pid, fds[0], start_time, first.labels)
        return True

    def _clone_into(self, plan: Plan, context: Context) -> tuple[int, int]:
        """Clone, into the pid namespace that the plan names: no process can move to another one."""
        flags = process.CLONE_PARENT | plan.clone_flags
        if not plan.pid_namespace or context.is_born_last:
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
        self,
        plan: Plan,
        context: Context,
        report: child.Report,
        gate: Callable[[], None],
        *,
        on_host: bool,
    ) -> NoReturn:
        """Everything here runs in the child and never returns."""
        try:
            # Nothing of the supervisor's: its clients and gates must see its end, whatever we wait for.
            host = self.host_mounts if on_host else -1
            kept = [0, 1, 2, self.proc, host, context.birth, *context.keep, *context.fds]
            file, start = context.environment
            kept += [file] if start >= 0 else []
            files.close_all_but(kept)
            # A collection would touch, and so copy, every page of ours.
            gc.disable()
            os.umask(0)
            _default_signals()
            if start >= 0:
                plan.execute.env = read_environment(file, start)
                context.program = Program(plan.execute)
                os.close(file)
            context.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            if host >= 0:
                namespace.setns(host, process.CLONE_NEWNS)
                os.close(host)
                context.root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            if context.is_born_last:
                # For our child, not for us.
                namespace.setns(context.source(plan.pid_namespace), process.CLONE_NEWPID)
            child.run(plan, context, report, gate)
        except OSError as error:
            report.fail_early(error.errno or 0, error.strerror or str(error))
        finally:
            os._exit(127)

    def _start_time(self, pid: int) -> int:
        try:
            fd = os.open(f"{pid}/stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc)
        except OSError:
            return 0
        try:
            return int(os.read(fd, 4096).rpartition(b")")[2].split()[19])
        except ProcessLookupError:
            # Gone since: one that was cloned only to clone another may be quick.
            return 0
        finally:
            os.close(fd)


def _receive_from(sock: socket.socket, pid: int) -> tuple[bytes, list[int]]:
    """Return the message of a process, and its descriptors; nothing if it ended without one.

    Who goes on has the socket, too, and somebody may have taken that one over.
    """
    while True:
        said, ancillary, _flags, _address = sock.recvmsg(PID.size, _ANCILLARY_BYTES)
        fds: list[int] = []
        sender = 0
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = list(struct.unpack(f"={len(data) // 4}i", data))
            elif level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                sender = _CREDENTIALS.unpack(data)[0]
        if not said or (sender == pid and len(fds) == 1):
            return said, fds
        channel.close_all(fds)


def _pass_gate(gate_read: int, status: int, *, hold: bool) -> None:
    """Wait for the go. If who launched us died first, do not execute: the launch was told to have failed."""
    if hold:
        os.write(status, b"r")
    if os.read(gate_read, 1) != b"g":
        os._exit(126)
    # The go may be older than that death. Nobody reads our status any more then.
    poll = select.poll()
    poll.register(status, 0)
    if poll.poll(0):
        os._exit(126)


_DEFAULTS = {
    *(signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD),
    *(each for each in signal.valid_signals() if signal.getsignal(each) == signal.SIG_IGN),
}
"""Python ignores SIGPIPE and SIGXFSZ; nohup(1) and a shell's ``&`` leave us others that are ignored."""


def _default_signals() -> None:
    """A program must not inherit what we ignore, nor our mask."""
    for number in _DEFAULTS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
