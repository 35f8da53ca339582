"""The room of the unpacker: nothing but an empty root, and for each job what that job may see.

`enclose` is called once by the server, `confine` and `seal` by each of its children before it reads a byte of an
image.

Spec:
    Reliability I1, I2. man namespaces(7), capabilities(7), getrlimit(2), seccomp(2).
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from polypod_image.confined import calls

TARGET: Final = "/t"
"""Where a job finds the one directory that it may write into."""
MAX_LOWERS: Final = 128
_QUIET: Final = calls.MS_NOSUID | calls.MS_NODEV | calls.MS_NOEXEC
_SPACES: Final = calls.CLONE_NEWNS | calls.CLONE_NEWNET | calls.CLONE_NEWIPC | calls.CLONE_NEWUTS
_FILES: Final = 2048
"""Open at once: `directories` keeps half of it."""
_STACK: Final = 16 << 20

READER: Final = (calls.CAP_DAC_OVERRIDE,)
"""What looking at a tree takes."""
WRITER: Final = (
    *(calls.CAP_CHOWN, calls.CAP_DAC_OVERRIDE, calls.CAP_FOWNER, calls.CAP_FSETID),
    *(calls.CAP_MKNOD, calls.CAP_SETFCAP),
)
"""What owners, modes and device nodes take."""
HIDER: Final = (*WRITER, calls.CAP_SYS_ADMIN)
"""What the mark of an opaque directory (``trusted.*``) takes; only a layer above others sets it."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of one job's process."""

    memory: int
    """Bytes of address space."""
    seconds: int
    """Of processor time."""
    file_bytes: int
    """Of one file that it writes."""
    capabilities: tuple[int, ...]


def lower(number: int) -> str:
    """Return where a job finds a layer that it may look at; 0 is the topmost."""
    return f"/l/{number}"


def enclose(room: str) -> None:
    """Step into own namespaces, without a network and with an empty, read-only root.

    After this nothing can be imported any more.

    Args:
        room: any directory; the empty root is mounted there for a moment, where only we see it.

    Raises:
        OSError: the kernel refuses; its text names the step.
    """
    calls.unshare(_SPACES)
    calls.mount("none", "/", "", calls.MS_REC | calls.MS_PRIVATE)
    calls.mount("polypod", room, "tmpfs", _QUIET, "size=1m,nr_inodes=1k,mode=0700")
    calls.pivot_root(room)
    Path(TARGET).mkdir(0o700)
    Path("/l").mkdir(0o700)
    for number in range(MAX_LOWERS):
        Path(lower(number)).mkdir(0o700)
    calls.mount("none", "/", "", calls.MS_REMOUNT | calls.MS_BIND | calls.MS_RDONLY | _QUIET)


def confine(target: int, lowers: Sequence[int], bounds: Bounds, parent: int) -> None:
    """Give up everything but one job's directories; threads that begin after this have no more. `seal` comes next.

    Args:
        target: a detached mount that becomes `TARGET`; -1 for none.
        lowers: detached mounts of the layers, topmost first.
        bounds: limits.
        parent: pid of the server, with which this process ends.

    Raises:
        OSError: the kernel refuses; its text names the step.
    """
    calls.unshare(calls.CLONE_NEWNS)
    if target >= 0:
        calls.move_mount(target, TARGET)
        os.close(target)
    for number, descriptor in enumerate(lowers):
        calls.move_mount(descriptor, lower(number))
        os.close(descriptor)
    for kind, value in (
        (resource.RLIMIT_AS, bounds.memory),
        (resource.RLIMIT_CPU, bounds.seconds),
        (resource.RLIMIT_FSIZE, bounds.file_bytes),
        (resource.RLIMIT_NOFILE, _FILES),
        (resource.RLIMIT_STACK, _STACK),
        (resource.RLIMIT_CORE, 0),
    ):
        _limit(kind, value)
    os.umask(0)  # what is unpacked gets its mode when it is made; the rest is given one
    calls.no_new_privileges()
    calls.keep_capabilities(bounds.capabilities)
    calls.die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def seal(program: bytes) -> None:
    """Give up the system calls that a job does not need, for all threads: none can begin any more.

    Args:
        program: of seccomp.

    Raises:
        OSError: the kernel refuses.
    """
    calls.filter_calls(program)


def _limit(kind: int, value: int) -> None:
    """Set a limit for good; one that is lower already stays."""
    hard = resource.getrlimit(kind)[1]
    value = min(value, 1 << 62) if hard == resource.RLIM_INFINITY else min(value, hard)
    # At the hard limit of processor time the signal is SIGKILL, which does not say why.
    soft = max(1, value - 1) if kind == resource.RLIMIT_CPU else value
    resource.setrlimit(kind, (soft, value))
