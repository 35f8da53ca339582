"""A server of our own: private directories, socket, cgroup and subnets; nothing of it stays."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from polypod.client import CriClient

POLYPOD = str(Path(sys.executable).with_name("polypod"))
READY_S = 90.0
"""A server that opens every handler builds a guest first, if none is there."""
LEAVE_S = 30.0
SUBNETS = ("10.233.57.0/24", "fd00:10:233:57::/64")


class OwnServer:
    """``polypod serve`` in a process of its own.

    Args:
        name: of what it serves: part of the directory's and the cgroup's names.
        simulated: only the simulator, without privilege.
        subnets: of its pods; servers side by side need different ones.
        on_start: called with the pid of each daemon, for example to put it into a cgroup.
        settings: further ``key=value`` words for ``--set``.
    """

    def __init__(
        self,
        name: str,
        *,
        simulated: bool,
        subnets: Sequence[str] = SUBNETS,
        on_start: Callable[[int], None] | None = None,
        settings: Sequence[str] = (),
    ) -> None:
        self.simulated = simulated
        self.cgroup_parent = f"/polypod-{name}-{os.getpid()}"
        self._subnets = list(subnets)
        self._on_start = on_start
        self._more_settings = list(settings)
        self.place = Path(tempfile.mkdtemp(prefix=f"polypod-{name}-"))
        self.state = _volatile_directory(self.place)
        self.endpoint = f"unix://{self.place}/cri.sock"
        self._log = self.place / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def _directories(self) -> list[str]:
        return ["--root", str(self.place / "root"), "--state", str(self.state)]

    def _settings(self) -> list[str]:
        if self.simulated:
            return ["handlers.sim.type=simulator", "server.default_handler=sim"]
        return [
            f"server.cgroup_parent={self.cgroup_parent}",
            f"server.state_files={self.state}/state-files",
            f"network.subnets={self._subnets}",
            *self._more_settings,
        ]

    def start(self) -> None:
        """Execute it; see `ready`."""
        words = [POLYPOD, "serve", "--listen", self.endpoint, *self._directories]
        for setting in self._settings():
            words += ["--set", setting]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=log)
        if self._on_start is not None:
            self._on_start(self._process.pid)

    @property
    def pid(self) -> int:
        """The daemon's."""
        if self._process is None:
            raise RuntimeError("the server was not started")
        return self._process.pid

    def stop(self) -> None:
        """SIGTERM; workloads go on."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(LEAVE_S)

    async def ready(self) -> None:
        """Return when it answers.

        Raises:
            RuntimeError: it ended instead.
        """
        async with CriClient(self.endpoint) as cri:
            waiting = asyncio.create_task(cri.wait_ready(READY_S))
            while not waiting.done():
                if self._process is not None and self._process.poll() is not None:
                    waiting.cancel()
                    raise RuntimeError(f"the server ended with {self._process.returncode}")
                await asyncio.wait({waiting}, timeout=0.1)
            await waiting

    def run(self, *words: str) -> str:
        """Run a polypod command against this server and return what it printed."""
        done = subprocess.run(
            [POLYPOD, "--endpoint", self.endpoint, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"polypod {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def log_tail(self) -> str:
        """Return the end of the server's log."""
        try:
            return "\n".join(self._log.read_text().splitlines()[-30:])
        except FileNotFoundError:
            return ""

    def take_down(self) -> bool:
        """Run ``polypod down``, which ends the server too, and remove the directory."""
        done = subprocess.run(
            [POLYPOD, "down", *self._directories], stdin=subprocess.DEVNULL, check=False
        )
        if self._process is not None:
            self._process.wait(LEAVE_S)
        if done.returncode == 0:
            shutil.rmtree(self.place)
            shutil.rmtree(self.state, ignore_errors=True)
        else:
            print(f"something is left; see {self.place}", file=sys.stderr)
        return done.returncode == 0


def _volatile_directory(place: Path) -> Path:
    """Return where the server's state goes: into memory, as /run is on a host with an init system."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _source, where, kind, *_rest = line.split()
        if where in {"/run", "/dev/shm"} and kind == "tmpfs" and os.access(where, os.W_OK):  # noqa: S108
            return Path(tempfile.mkdtemp(prefix=f"{place.name}-", dir=where))
    return place / "state"
