"""The guest's first process: mounts, kernel modules, then it is the keeper; the others are its forks.

It executes nothing: one Python image is loaded, which costs a second in an emulated guest, and keeper,
supervisor and bridge are forks of it. The keeper is process 1 and so the parent of every container.
"""

from __future__ import annotations

import ctypes
import os
import sys

from polypod.supervisor import keeper
from polypod.supervisor.kernel import mounts, process
from polypod.supervisor.kernel.call import INT, LONG, TEXT, checked, function
from polypod.supervisor.presence import Presence
from polypod.supervisor.server import note
from polypod.supervisor.supervisor import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from polypod.supervisor.server import Loop

STATE = "/run/polypod"
MODULES = "/lib/modules/list"
"""Paths of kernel modules, one a line, in the order in which they are loaded."""
_SYS_FINIT_MODULE = {"x86_64": 313, "aarch64": 273}[os.uname().machine]
_finit_module = function("syscall", LONG, INT, TEXT, INT)
_reboot = function("reboot", INT)
_POWER_OFF = 0x4321FEDC  # linux/reboot.h
_NOSUID, _NODEV, _NOEXEC = 2, 4, 8
_PATH_MAX_NAME = 15


def main() -> None:
    """Become process 1 of a guest."""
    try:
        _leave_first_root()
        _mount_file_systems()
        load_modules()
        os.makedirs(STATE, mode=0o700)
        presence = Presence.open(STATE)
        presence.take("keeper", wait=False)
        process.set_name("polypod-keeper")
        guardian = keeper.Keeper(STATE, presence)
        guardian.roles = _Forks(guardian.loop)  # type: ignore[assignment]
        guardian.run()
    except BaseException as error:
        _tell(f"the guest cannot go on: {type(error).__name__}: {error}")
    power_off()


def power_off() -> None:
    """End the machine."""
    checked(_reboot(ctypes.c_int(_POWER_OFF).value), "reboot")


def _tell(line: str) -> None:
    sys.stderr.write(f"polypod: {line}\n")
    sys.stderr.flush()


def _leave_first_root() -> None:
    """Put the root on a mount of its own: from the kernel's first one nobody can pivot away."""
    mounts.mount("/", "/newroot", "", mounts.MS_BIND)
    os.chdir("/newroot")
    mounts.mount(".", "/", "", _MS_MOVE)
    os.chroot(".")
    os.chdir("/")


_MS_MOVE = 8192


def _mount_file_systems() -> None:
    strict = _NOSUID | _NODEV | _NOEXEC
    mounts.mount("proc", "/proc", "proc", strict)
    mounts.mount("sysfs", "/sys", "sysfs", strict)
    mounts.mount("devtmpfs", "/dev", "devtmpfs", _NOSUID)
    mounts.mount("cgroup2", "/sys/fs/cgroup", "cgroup2", strict)
    mounts.mount("tmpfs", "/run", "tmpfs", _NOSUID | _NODEV, "mode=755")


def load_modules(listed: str = MODULES) -> None:
    """Load the kernel modules of a list; one that is there already is fine."""
    with open(listed) as file:
        paths = file.read().split()
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            checked(_finit_module(_SYS_FINIT_MODULE, fd, b"", 0), f"load {path}")
        except FileExistsError:
            continue
        finally:
            os.close(fd)


class _Forks:
    """Supervisor and bridge as forks of the keeper: what `polypod.supervisor.roles.Roles` is on a host."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._children: dict[int, str] = {}
        self._due = ["supervisor", "bridge"]

    def begin(self) -> None:
        """They are due from the beginning."""

    def awaits(self) -> bool:
        """Nobody is left from an earlier keeper: the machine ends with this one."""
        return False

    def ended(self, pid: int, how: str) -> bool:
        """A child of ours is gone; False if it was neither of the two."""
        role = self._children.pop(pid, None)
        if role is None:
            return False
        note(f"{role} ended by {how}")
        if role == "bridge":
            # What it held of streams and channel is lost: the pod cannot be reached any more.
            power_off()
        self._due.append(role)
        return True

    def start_due(self) -> float:
        """Start who is due; there is never one that waits."""
        while self._due:
            role = self._due.pop(0)
            pid = os.fork()
            if pid == 0:
                _fork_main(role)
            self._children[pid] = role
        return -1.0

    def pids(self) -> dict[str, int]:
        """Return role → pid."""
        return {role: pid for pid, role in self._children.items()}

    def end(self) -> None:
        """The machine ends as a whole."""
        power_off()


def _fork_main(role: str) -> None:
    """Run a role in a fork; never returns. The keeper's objects stay untouched, only closed below us."""
    try:
        import signal

        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.closerange(3, 1 << 10)
        _ROLES[role]()
    except BaseException as error:
        _tell(f"{role}: {type(error).__name__}: {error}")
    os._exit(1)


def _supervise() -> None:
    import socket

    from polypod.plan import channel

    process.set_name("polypod-superv")
    presence = Presence.open(STATE)
    presence.take("supervisor", wait=True)
    listener: socket.socket = channel.listen(f"{STATE}/supervisor.sock")
    state = os.open(STATE, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    process.set_not_dumpable()
    Supervisor(STATE, state, -1, presence).run(listener)


def _bridge() -> None:
    process.set_name("polypod-bridge")
    process.set_not_dumpable()
    from polypod_vm_child import guest_bridge

    guest_bridge.main(STATE)


_ROLES: dict[str, Callable[[], None]] = {"supervisor": _supervise, "bridge": _bridge}
