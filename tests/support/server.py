"""A server of a test's own: ``polypod serve`` on private directories, socket, subnets and cgroup parent.

`Server.take_down` runs ``polypod down`` and then looks for itself: a mount, a link, a cgroup, a
process or a file left behind is an error.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Network
from pathlib import Path

from polypod.client import CriClient

POLYPOD = str(Path(sys.executable).with_name("polypod"))
LIMIT_S = 60.0
"""For a server that starts, leaves or is taken down: generous, hosts are shared."""
_POLL_S = 0.02
_ID = re.compile("[0-9a-f]{64}")
_DIGESTS = {"sha256", "sha512"}
_CGROUPS = Path("/sys/fs/cgroup")


class Server:
    """One server; see `start`.

    Args:
        settings: ``key=value`` words for ``--set``.
        config: a configuration file, below the settings.
        environment: variables added to ours, for example failpoints.
    """

    def __init__(
        self,
        settings: Sequence[str] = (),
        *,
        config: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        token = secrets.token_hex(3)
        self.place = Path(tempfile.mkdtemp(prefix="polypod-test-"))
        self.endpoint = f"unix://{self.place}/cri.sock"
        self.cgroup_parent = f"/polypod-cri-{token}"
        self.environment = dict(environment or {})
        self._settings = [
            f"server.cgroup_parent={self.cgroup_parent}",
            f"server.state_files={self.place}/state-files",
            f"network.subnets={_subnets(token)}",
            *settings,
        ]
        self._config = config
        self._subnet = IPv4Network(_subnets(token)[0])
        self._links: set[str] = set()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def root(self) -> Path:
        """``server.root``."""
        return self.place / "root"

    @property
    def state(self) -> Path:
        """``server.state``."""
        return self.place / "state"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The daemon that runs, or ran last."""
        assert self._process is not None, "the server was never started"
        return self._process

    # From start to end

    def launch(self) -> None:
        """Execute the daemon; it does not answer yet."""
        words = [POLYPOD, "serve", "--listen", self.endpoint, *self._directories()]
        if self._config is not None:
            words += ["--config", str(self._config)]
        for setting in self._settings:
            words += ["--set", setting]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
            )

    async def ready(self) -> None:
        """Return when it has recovered and answers.

        Raises:
            RuntimeError: it ended instead.
        """
        async with CriClient(self.endpoint) as cri:
            waiting = asyncio.create_task(cri.wait_ready(LIMIT_S))
            while not waiting.done():
                if self.process.poll() is not None:
                    waiting.cancel()
                    raise RuntimeError(
                        f"the server ended with {self.process.returncode}:\n{self.log_tail()}"
                    )
                await asyncio.wait({waiting}, timeout=_POLL_S)
            await waiting

    def start(self) -> None:
        """Start it and wait until it is ready; not for use inside a loop."""
        self.launch()
        asyncio.run(self.ready())

    def kill(self) -> None:
        """SIGKILL to the daemon alone: what it made goes on."""
        self.process.kill()
        self.process.wait(LIMIT_S)

    def stop(self) -> int:
        """SIGTERM to the daemon; return its exit code. Workloads go on."""
        self.process.terminate()
        return self.process.wait(LIMIT_S)

    @property
    def alive(self) -> bool:
        """Whether the daemon runs."""
        return self._process is not None and self._process.poll() is None

    def take_down(self) -> None:
        """Run ``polypod down``, which ends the server too, and look for what is left.

        Raises:
            AssertionError: something is; the text has it, and the end of the server's log.
        """
        self._links |= _links_of(self._subnet)
        done = subprocess.run(
            [POLYPOD, "down", *self._directories()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if self._process is not None:
            self._end_process()
        left = self._left_at_the_end()
        if done.returncode or left:
            raise AssertionError(
                f"polypod down: exit code {done.returncode}, left {left}\n{done.stdout}\n"
                f"{self.log_tail()}"
            )
        shutil.rmtree(self.place)

    def _end_process(self) -> None:
        try:
            self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(LIMIT_S)

    # What it holds

    def residue(self) -> dict[str, frozenset[str]]:
        """Return what exists on the host because of this server; equal before and after = nothing left.

        Kinds: mounts below its directory, links on its bridge, cgroups below its parent, namespaces that
        its processes hold, processes, and files that bear the id of a sandbox or container.
        """
        pids = self.pids()
        self._links |= _links_of(self._subnet)
        return {
            "mounts": frozenset(each for each in _mounts() if str(self.place) in each),
            "links": frozenset(_links_of(self._subnet)),
            "cgroups": frozenset(self._cgroups()),
            "namespaces": frozenset(_held_namespaces(pids)),
            "processes": frozenset(map(str, pids)),
            "files": frozenset(self._files()),
        }

    def settled(
        self, before: Mapping[str, frozenset[str]], *, ignore: str = ""
    ) -> dict[str, frozenset[str]]:
        """Return what is there beyond ``before``; waits a while for what goes behind an answer.

        Args:
            before: an earlier `residue`.
            ignore: a kind that may change, such as ``processes`` where daemons were started anew.
        """
        deadline = time.monotonic() + LIMIT_S / 4
        while True:
            now = self.residue()
            left = {kind: now[kind] - before[kind] for kind in now if kind != ignore}
            left = {kind: more for kind, more in left.items() if more}
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(_POLL_S)

    def pids(self) -> list[int]:
        """Return the processes of this server: those that name its directory or live in its cgroups."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                words = _text(entry / "cmdline")
                ours = str(self.place) in words or f"{self.cgroup_parent}/" in _text(
                    entry / "cgroup"
                )
                if ours:
                    found.append(int(entry.name))
        return sorted(found)

    def log_tail(self, lines: int = 40) -> str:
        """Return the end of the server's log."""
        return "\n".join(_text(self._log).splitlines()[-lines:])

    @property
    def _log(self) -> Path:
        return self.place / "server.log"

    def _directories(self) -> list[str]:
        return ["--root", str(self.root), "--state", str(self.state)]

    def _cgroups(self) -> list[str]:
        parents = [each / self.cgroup_parent[1:] for each in (_CGROUPS, *_hierarchies())]
        return [directory for each in parents for directory, _below, _files in os.walk(each)]

    def _files(self) -> list[str]:
        places = (self.root, self.state, self.place / "state-files")
        return [
            str(path)
            for place in places
            for path in _below(place)
            if any(map(_ID.fullmatch, path.parts)) and not _DIGESTS.intersection(path.parts)
        ]

    def _left_at_the_end(self) -> dict[str, list[str]]:
        deadline = time.monotonic() + LIMIT_S / 4
        while True:
            found = {
                "mounts": [each for each in _mounts() if str(self.place) in each],
                "links": sorted(self._links.intersection(os.listdir("/sys/class/net"))),
                "cgroups": self._cgroups(),
                "processes": [
                    f"{pid} {_text(Path(f'/proc/{pid}/cmdline'))}" for pid in self.pids()
                ],
                "state": sorted(map(str, self.state.glob("*.sock"))),
            }
            left = {kind: items for kind, items in found.items() if items}
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(_POLL_S)


def end_process(pid: int) -> None:
    """SIGKILL a process of a test's own; one that is gone already is fine."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _subnets(token: str) -> list[str]:
    """Return ranges that two servers of one host hardly share."""
    second, third = 64 + int(token[:2], 16) % 64, int(token[2:4], 16)
    return [f"10.{second}.{third}.0/24", f"fd00:7e57:{token[:4]}:{token[4:]}::/64"]


def _below(place: Path) -> Iterator[Path]:
    """Yield every path below a directory; what goes while we look is not there."""
    for directory, directories, files in os.walk(place):
        for name in (*directories, *files):
            yield Path(directory, name)


def _mounts() -> set[str]:
    return {line.split()[4] for line in _text(Path("/proc/self/mountinfo")).splitlines()}


def _links_of(subnet: IPv4Network) -> set[str]:
    """Return the bridge that leads to a subnet, and the links on it."""
    wanted = f"{int.from_bytes(subnet.network_address.packed, 'little'):08X}"
    rows = [line.split() for line in _text(Path("/proc/self/net/route")).splitlines()]
    found = {row[0] for row in rows if row[1] == wanted}
    for name in os.listdir("/sys/class/net"):
        master = Path("/sys/class/net", name, "master")
        if master.is_symlink() and master.resolve().name in found:
            found.add(name)
    return found


def _hierarchies() -> list[Path]:
    return [each for each in _CGROUPS.iterdir() if each.is_dir()]


def _held_namespaces(pids: Sequence[int]) -> set[str]:
    """Return the namespaces that descriptors of processes keep alive."""
    found = set()
    for pid in pids:
        try:
            for name in os.listdir(f"/proc/{pid}/fd"):
                target = os.readlink(f"/proc/{pid}/fd/{name}")
                if target.partition(":")[0] in {
                    "net",
                    "ipc",
                    "uts",
                    "pid",
                    "mnt",
                    "user",
                    "cgroup",
                }:
                    found.add(target)
        except OSError:
            continue  # it, or the descriptor, has just gone
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
