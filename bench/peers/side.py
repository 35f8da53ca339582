"""What a server must offer to be measured beside another one."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.pods import PodMaker
from bench.processes import ServerCgroup, pss_kib
from polypod.client import CriClient, CriError

READY_S = 60.0
PAUSE = "localhost/bench-pause:latest"
BUSYBOX = "localhost/bench-busybox:latest"


@dataclass(frozen=True, slots=True)
class Archives:
    """The same images for both sides, as OCI archives."""

    pause: Path
    """The sandbox image; only a peer needs one."""
    busybox: Path
    """What pods run."""


class Side(Protocol):
    """A private server: its own directories, socket, network and cgroups."""

    name: str
    cgroup: ServerCgroup
    """Where all of its own processes are, helpers too; pods leave it."""
    place: Path
    """A directory for whatever belongs to it."""

    @property
    def pods(self) -> PodMaker:
        """What makes pods; another one after each start of the daemon."""
        ...

    async def start(self, archives: Archives | None) -> None:
        """Start it, and give it the images; None gives it none."""
        ...

    async def start_daemon(self) -> None:
        """Start the daemon alone and wait until its lists answer; also after `stop_daemon`."""
        ...

    def stop_daemon(self) -> None:
        """End the daemon; pods go on."""
        ...

    async def take_down(self) -> bool:
        """Remove everything that it made; tell whether that worked."""
        ...

    def log_tail(self) -> str:
        """Return the end of the daemon's log."""
        ...


def cpu_s(side: Side) -> float:
    """Return the processor time of all processes of a side so far, those that have ended too."""
    return side.cgroup.cpu_s([])


def memory_mib(side: Side) -> float:
    """Return the PSS of all processes of a side; containers and sandbox processes are none of them."""
    total = 0
    for pid in side.cgroup.pids():
        try:
            total += pss_kib(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended in between
    return total / 1024


async def wait_ready(cri: CriClient, limit_s: float = READY_S) -> None:
    """Wait until the lists answer, whatever a server says until then.

    Raises:
        CriError: they did not in that time; the last refusal.
    """
    deadline = time.monotonic() + limit_s
    while True:
        try:
            await cri.list_sandboxes()
            await cri.list_containers()
        except CriError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.02)
        else:
            return
