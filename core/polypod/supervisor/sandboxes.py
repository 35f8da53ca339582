"""Namespaces of sandboxes: made by stepping into them and out again, pinned by descriptors.

Only this single-threaded process may do that: namespaces belong to threads. Whatever fails, we are
back in our own namespaces before anything else happens.
"""

from __future__ import annotations

import errno
import os
import signal
import socket

from polypod.supervisor import owned
from polypod.supervisor.kernel import namespace, process
from polypod.supervisor.server import note
from polypod.supervisor.steps import seclusion
from polypod.supervisor.steps.namespaces import sysctl_path, write_beneath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Message = dict[str, Any]
    Maps = dict[str, list[list[int]]]


KINDS = frozenset({"network", "ipc", "uts", "pid"})
_UNSHARED = ("network", "ipc", "uts")
_NETLINK_ROUTE = 0


class Sandbox:
    """What is pinned for one sandbox."""

    __slots__ = ("fds", "init_pid", "init_pidfd")

    def __init__(self, fds: dict[str, int], init_pid: int = 0, init_pidfd: int = -1) -> None:
        self.fds = fds
        self.init_pid = init_pid
        self.init_pidfd = init_pidfd

    def meta(self) -> Message:
        """Return the note that the keeper holds; the descriptors follow in this order."""
        return {"kinds": list(self.fds), "init_pid": self.init_pid}

    def held(self) -> list[int]:
        """Return all descriptors, in the order of `meta`."""
        return [*self.fds.values(), *([self.init_pidfd] if self.init_pidfd >= 0 else [])]

    @classmethod
    def restore(cls, meta: Message, fds: list[int]) -> Sandbox:
        """Build from what the keeper held."""
        kinds = meta["kinds"]
        names: list[str] = list(kinds)
        init_pid = int(meta.get("init_pid") or 0)
        init_pidfd = fds[len(names)] if init_pid else -1
        return cls(dict(zip(names, fds, strict=False)), init_pid, init_pidfd)


class Home:
    """Our own namespaces, to come back to."""

    def __init__(self, proc: int) -> None:
        self._proc = proc
        self._own = {kind: self._open(kind) for kind in _UNSHARED}

    def make(self, kinds: list[str], hostname: str, sysctls: dict[str, str]) -> Sandbox:
        """Make namespaces, set them up from inside, come back; nothing is left on failure."""
        stepped = [kind for kind in _UNSHARED if kind in kinds]
        fds: dict[str, int] = {}
        try:
            self._step_in(stepped, hostname, sysctls, fds)
            if "network" in stepped:
                fds["netlink"] = _netlink_socket()
            # The init is born in there: it has no more of the host than the containers have.
            return self._with_init(fds) if "pid" in kinds else Sandbox(fds)
        except BaseException:
            for fd in fds.values():
                os.close(fd)
            raise
        finally:
            self._come_back(stepped)

    def make_owned(
        self, kinds: list[str], hostname: str, sysctls: dict[str, str], maps: Maps
    ) -> Sandbox:
        """Make a user namespace and others that it owns; nothing is left on failure."""

        def inside(done: int) -> None:
            self._set_up(kinds, hostname, sysctls)
            if "pid" in kinds:
                _reap_for_ever(done)
            owned.say_ready(done)

        fds, pid, pidfd = owned.make(self._proc, maps, inside, kinds)
        try:
            if "network" in kinds:
                fds["netlink"] = self._netlink(fds["network"])
        except BaseException:
            for fd in (*fds.values(), pidfd):
                os.close(fd)
            raise
        if "pid" in kinds:
            return Sandbox(fds, pid, pidfd)
        os.close(pidfd)
        return Sandbox(fds)

    def map_ids(self, maps: Maps) -> int:
        """Return a user namespace that nobody lives in: it only says how ids are mapped."""
        fds, _pid, pidfd = owned.make(self._proc, maps, owned.say_ready)
        os.close(pidfd)
        return fds["user"]

    def _netlink(self, network: int) -> int:
        namespace.setns(network, process.CLONE_NEWNET)
        try:
            return _netlink_socket()
        finally:
            self._come_back(["network"])

    def tcp_socket(self, network: int, family: int) -> socket.socket:
        """Return a TCP socket that lives in a network namespace."""
        namespace.setns(network, process.CLONE_NEWNET)
        try:
            flags = socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            return socket.socket(family, flags)
        finally:
            self._come_back(["network"])

    def _step_in(
        self, kinds: list[str], hostname: str, sysctls: dict[str, str], fds: dict[str, int]
    ) -> None:
        flags = 0
        for kind in kinds:
            flags |= namespace.FLAGS[kind]
        if flags:
            namespace.unshare(flags)
        for kind in kinds:
            fds[kind] = self._open(kind)
        self._set_up(kinds, hostname, sysctls)

    def _set_up(self, kinds: list[str], hostname: str, sysctls: dict[str, str]) -> None:
        if hostname and "uts" in kinds:
            namespace.sethostname(hostname)
        for name, value in sysctls.items():
            try:
                write_beneath(self._proc, f"sys/{sysctl_path(name)}", value)
            except OSError as error:
                raise OSError(error.errno, f"sysctl {name}={value}: {error.strerror}") from error

    def _come_back(self, kinds: list[str]) -> None:
        try:
            for kind in kinds:
                namespace.setns(self._own[kind], namespace.FLAGS[kind])
        except OSError as error:
            # Whatever we did next would be done in a sandbox: better to be started again.
            note(f"cannot come back from a sandbox: {error}")
            os._exit(1)

    def _open(self, kind: str) -> int:
        name = f"self/ns/{namespace.FILES[kind]}"
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)

    def _with_init(self, fds: dict[str, int]) -> Sandbox:
        """Start the init of a pid namespace that several containers share; it is secluded on return."""
        ready, done = os.pipe2(os.O_CLOEXEC)
        pidfd = -1
        try:
            flags = process.CLONE_NEWPID | process.CLONE_NEWNS | process.CLONE_PARENT
            pid, pidfd = process.clone3(flags)
            if pid == 0:
                _reap_for_ever(done)
            os.close(done)
            done = -1
            if not os.read(ready, 1):
                raise OSError(errno.ECANCELED, "the init of the pod's processes could not start")
            name = f"{pid}/ns/pid"
            fds["pid"] = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
        except BaseException:
            if pidfd >= 0:
                os.close(pidfd)
            raise
        finally:
            os.close(ready)
            if done >= 0:
                os.close(done)
        return Sandbox(fds, pid, pidfd)


def _netlink_socket() -> int:
    flags = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    return socket.socket(socket.AF_NETLINK, flags, _NETLINK_ROUTE).detach()


def _reap_for_ever(done: int) -> None:
    """The init: holds nothing, does nothing but reap; only SIGKILL from outside ends it."""
    try:
        seclusion.empty_root()
        seclusion.drop_all_rights()
        process.set_name("polypod-init")
        for number in range(1, signal.NSIG):
            if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD):
                try:
                    signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError):
                    continue
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        os.setsid()
        os.write(done, b"r")
        os.closerange(0, 1 << 16)
        while True:
            signal.sigwait({signal.SIGCHLD})
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    continue
            except ChildProcessError:
                continue
    finally:
        os._exit(1)
