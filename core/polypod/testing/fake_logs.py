"""The streams of containers, pumped inside this process: what the logger does, for tests and demos."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from polypod.plugin.errors import InvalidArgument, NotFound
from polypod.plugin.ids import ContainerId
from polypod.plugin.services import Stdio
from polypod.testing.clock import Clock, SystemClock
from polypod.testing.faults import Faults

LINE_BYTES = 16 * 1024
_READ_BYTES = 64 * 1024


class _Pump:
    """Reads one descriptor whenever something is there, and hands on what it reads."""

    def __init__(self, fd: int, take: Callable[[bytes], None]) -> None:
        """Give what is read to ``take``; ``b""`` is the end."""
        os.set_blocking(fd, False)
        self._fd = fd
        self._take = take
        self.ended = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self.pump)

    def pump(self) -> None:
        """Read everything that is there now."""
        while not self.ended:
            try:
                data = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                return
            except OSError:  # EIO: the other side of a pty is gone
                data = b""
            if data:
                self._take(data)
            else:
                self.close()

    def close(self) -> None:
        """Stop reading. Idempotent."""
        if not self.ended:
            self.ended = True
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._take(b"")


class _LogWriter:
    """Writes what one stream brings in the CRI log format."""

    def __init__(self, container: _Container, stream: str) -> None:
        self._container = container
        self._stream = stream
        self._rest = b""

    def take(self, data: bytes) -> None:
        """Write whole lines; keep an unfinished one until it grows too long or the stream ends."""
        self._container.tell(self._stream, data)
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            self._line(line)
        while len(self._rest) > LINE_BYTES:
            self._write(self._rest[:LINE_BYTES], "P")
            self._rest = self._rest[LINE_BYTES:]
        if not data and self._rest:
            self._line(self._rest)
            self._rest = b""

    def _line(self, line: bytes) -> None:
        while len(line) > LINE_BYTES:
            self._write(line[:LINE_BYTES], "P")
            line = line[LINE_BYTES:]
        self._write(line, "F")

    def _write(self, text: bytes, tag: str) -> None:
        now_ns = self._container.clock.now_ns()
        moment = datetime.fromtimestamp(now_ns // 1_000_000_000, UTC)
        stamp = f"{moment:%Y-%m-%dT%H:%M:%S}.{now_ns % 1_000_000_000:09}Z"
        with self._container.path.open("ab") as log:
            log.write(f"{stamp} {self._stream} {tag} ".encode() + text + b"\n")


@dataclass(slots=True)
class _Container:
    clock: Clock
    path: Path
    stdin: int | None = None
    console: socket.socket | None = None
    stdin_once: bool = False
    pumps: list[_Pump] = field(default_factory=list)
    clients: list[_Pump] = field(default_factory=list)
    """What attached clients write."""
    fans: dict[str, list[int]] = field(default_factory=dict)
    """What they read, by stream."""
    size: tuple[int, int] = (0, 0)
    """(width, height) of the last resize."""

    def accept_console(self) -> None:
        """Take the pty's master that the process' side has sent."""
        if self.console is None:
            return
        try:
            _, fds, _, _ = socket.recv_fds(self.console, 64, 1)
        except BlockingIOError:
            return
        self.close_console()
        for master in fds:
            self.stdin = os.dup(master)
            self.pumps.append(_Pump(master, _LogWriter(self, "stdout").take))

    def writes(self, stream: str) -> bool:
        """Tell whether a stream is there and has not ended."""
        number = ("stdout", "stderr").index(stream)
        return number < len(self.pumps) and not self.pumps[number].ended

    def add_fan(self, stream: str) -> int:
        """Return a pipe that gets what the stream brings from now on."""
        ours, theirs = os.pipe()
        os.set_blocking(theirs, False)
        self.fans.setdefault(stream, []).append(theirs)
        # A writing end is never readable: what is told of it is that its reader has left.
        asyncio.get_running_loop().add_reader(theirs, self._forget_fan, stream, theirs)
        return ours

    def _forget_fan(self, stream: str, fan: int) -> None:
        self.fans[stream].remove(fan)
        _close_watched(fan)

    def add_client(self) -> int:
        """Return a pipe that leads to stdin."""
        theirs, ours = os.pipe()
        self.clients = [client for client in self.clients if not client.ended]
        self.clients.append(_Pump(theirs, self._from_client))
        return ours

    def _from_client(self, data: bytes) -> None:
        if data and self.stdin is not None:
            with contextlib.suppress(OSError):
                os.write(self.stdin, data)
        elif self.stdin_once:
            self.close_stdin()

    def tell(self, stream: str, data: bytes) -> None:
        """Give output to attached clients; ``b""`` is its end. What does not fit is lost to them."""
        for fan in self.fans.get(stream, []):
            with contextlib.suppress(OSError):
                os.write(fan, data)
        if not data:
            for fan in self.fans.pop(stream, []):
                _close_watched(fan)

    def close_console(self) -> None:
        if self.console is not None:
            asyncio.get_running_loop().remove_reader(self.console.fileno())
            self.console.close()
            self.console = None

    def close_stdin(self) -> None:
        if self.stdin is not None:
            os.close(self.stdin)
            self.stdin = None


def _close_watched(fd: int) -> None:
    asyncio.get_running_loop().remove_reader(fd)
    os.close(fd)


@dataclass(frozen=True, slots=True)
class FakeAttached:
    """Implements `polypod.lifecycle.ports.Attached`."""

    stdin: int | None
    stdout: int | None
    stderr: int | None


class FakeLogs:
    """Implements `polypod.lifecycle.ports.Logs`. One object outlives the daemons of a test."""

    def __init__(self, *, clock: Clock | None = None, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self._clock = clock or SystemClock()
        self._containers: dict[ContainerId, _Container] = {}

    @property
    def opened(self) -> list[ContainerId]:
        """The containers whose streams are open."""
        return list(self._containers)

    async def open(
        self,
        container_id: ContainerId,
        log_path: Path,
        /,
        *,
        base: Path,
        tty: bool,
        stdin: bool,
        stdin_once: bool,
    ) -> Stdio:
        """Make pipes, or a console socket, and pump what comes."""
        await self.faults.hit("open_log")
        await self.close(container_id)
        _make_file(base, log_path)
        container = _Container(self._clock, log_path, stdin_once=stdin_once)
        self._containers[container_id] = container
        if tty:
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            container.console = ours
            asyncio.get_running_loop().add_reader(ours.fileno(), container.accept_console)
            return Stdio(console=theirs.detach())
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        container.pumps = [
            _Pump(out_read, _LogWriter(container, "stdout").take),
            _Pump(err_read, _LogWriter(container, "stderr").take),
        ]
        theirs_in = None
        if stdin:
            theirs_in, container.stdin = os.pipe()
        return Stdio(theirs_in, out_write, err_write)

    async def reopen(self, container_id: ContainerId, log_path: Path, /, *, base: Path) -> None:
        """Write to a fresh file from now on."""
        await self.faults.hit("reopen")
        container = self._container(container_id)
        self._pump(container)
        _make_file(base, log_path)
        container.path = log_path

    async def drained(self, container_id: ContainerId, /) -> None:
        """Read what stands in the pipes."""
        await self.faults.hit("drained")
        container = self._containers.get(container_id)
        if container is not None:
            container.accept_console()
            self._pump(container)

    async def close(self, container_id: ContainerId, /) -> None:
        """Forget the streams; the file stays."""
        container = self._containers.pop(container_id, None)
        if container is None:
            return
        self._pump(container)
        for pump in container.pumps:
            pump.close()
        for client in container.clients:
            client.close()
        for stream in list(container.fans):
            container.tell(stream, b"")
        container.close_console()
        container.close_stdin()

    def capture(self, *, limit_bytes: int) -> FakeCaptured:
        """Make the streams of an exec."""
        return FakeCaptured(limit_bytes)

    async def attach(
        self, container_id: ContainerId, /, *, stdin: bool, stdout: bool, stderr: bool
    ) -> FakeAttached:
        """Join a client to the streams that are open."""
        await self.faults.hit("attach")
        container = self._container(container_id)
        container.accept_console()
        return FakeAttached(
            container.add_client() if stdin and container.stdin is not None else None,
            container.add_fan("stdout") if stdout and container.writes("stdout") else None,
            container.add_fan("stderr") if stderr and container.writes("stderr") else None,
        )

    async def resize(self, container_id: ContainerId, /, *, width: int, height: int) -> None:
        """Note the size."""
        await self.faults.hit("resize")
        self._container(container_id).size = (width, height)

    # For tests

    def size(self, container_id: ContainerId) -> tuple[int, int]:
        """Return (width, height) of the last resize."""
        return self._container(container_id).size

    async def write(self, container_id: ContainerId, data: bytes) -> None:
        """Write to a container's stdin, as an attached client does."""
        container = self._container(container_id)
        if container.stdin is None:
            raise NotFound(f"container {container_id} has no stdin")
        await asyncio.to_thread(os.write, container.stdin, data)

    def end_input(self, container_id: ContainerId) -> None:
        """Close a container's stdin."""
        self._container(container_id).close_stdin()

    def _container(self, container_id: ContainerId) -> _Container:
        container = self._containers.get(container_id)
        if container is None:
            raise NotFound(f"container {container_id} has no streams")
        return container

    @staticmethod
    def _pump(container: _Container) -> None:
        for pump in container.pumps:
            pump.pump()


class _Collected:
    def __init__(self, limit: int) -> None:
        self.kept = bytearray()
        self._limit = limit

    def take(self, data: bytes) -> None:
        """Keep as much as is wanted."""
        self.kept += data[: max(0, self._limit - len(self.kept))]


class FakeCaptured:
    """Implements `polypod.lifecycle.ports.Captured`."""

    def __init__(self, limit_bytes: int) -> None:
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        self.stdio = Stdio(stdout=out_write, stderr=err_write)
        self._theirs = [out_write, err_write]
        self._texts = (_Collected(limit_bytes), _Collected(limit_bytes))
        self._pumps = (_Pump(out_read, self._texts[0].take), _Pump(err_read, self._texts[1].take))

    @property
    def ended(self) -> bool:
        """Whether both streams have reached their end: no process holds them any more."""
        return all(pump.ended for pump in self._pumps)

    def started(self) -> None:
        """Close our copies of the process' ends."""
        while self._theirs:
            os.close(self._theirs.pop())

    async def collect(self) -> tuple[bytes, bytes]:
        """Return what was written until now."""
        for pump in self._pumps:
            pump.pump()
        return bytes(self._texts[0].kept), bytes(self._texts[1].kept)

    def close(self) -> None:
        """Close everything. Idempotent."""
        self.started()
        for pump in self._pumps:
            pump.close()


def _make_file(base: Path, log_path: Path) -> None:
    """Make a log file below ``base``, following no link."""
    if not log_path.is_relative_to(base) or ".." in log_path.parts:
        raise InvalidArgument(f"log path {log_path} leads out of {base}")
    base.mkdir(mode=0o755, parents=True, exist_ok=True)
    place = base
    for part in log_path.relative_to(base).parts[:-1]:
        place = place / part
        if place.is_symlink():
            raise InvalidArgument(f"log path {log_path}: {place} is a link")
        place.mkdir(mode=0o755, exist_ok=True)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        os.close(os.open(log_path, flags, 0o640))
    except OSError as error:
        raise InvalidArgument(f"log path {log_path}: {error.strerror}") from error
