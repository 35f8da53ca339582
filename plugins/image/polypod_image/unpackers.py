"""Jobs for the unpacker: the daemon's side. Each method blocks; it belongs in a thread.

The unpacker (`confined.worker`) is executed when there is something to do, and ended when there was nothing for a
while. It forks one confined process for each job, as many at once as there are slots. The daemon opens what a
job may see (a blob, detached mounts of directories) and passes descriptors; it trusts nothing of what comes back.

Spec:
    Reliability I1, I2. performance.md §6 ("2 processes").
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from polypod.plugin import errors
from polypod.plugin.errors import BackendError, InvalidArgument, PolypodError, Unavailable
from polypod.plugin.ids import Digest
from polypod_image.confined import calls
from polypod_image.mediatypes import Compression
from polypod_image.options import Limits

log = logging.getLogger(__name__)

# The unpacker needs the contract's errors and ids, not the contract: its __init__ is left out.
_CODE: Final = (
    "import sys, types; sys.path += sys.argv[1:4]; import polypod;"
    " plugin = sys.modules['polypod.plugin'] = types.ModuleType('polypod.plugin');"
    " plugin.__path__ = [each + '/plugin' for each in polypod.__path__];"
    " from polypod_image.confined.worker import main; main(sys.argv[4:])"
)
_READY_S: Final = 60.0
"""Seconds in which the unpacker must have begun: it takes some 0.1."""
_IDLE_S: Final = 60.0
_LOOK_S: Final = 0.1
"""Between two looks whether anybody still wants the job."""
_MESSAGE: Final = 60_000
_QUIET: Final = calls.MOUNT_ATTR_NOSUID | calls.MOUNT_ATTR_NODEV | calls.MOUNT_ATTR_NOEXEC
_ERRORS: Final[Mapping[str, type[PolypodError]]] = {
    name: getattr(errors, name)
    for name in ("InvalidArgument", "Unsupported", "ResourceExhausted", "BackendError")
}

Ended = Callable[[], bool]
"""Whether nobody wants the job any more."""
Told = Callable[[int], None]
"""Called with the bytes of the blob that are read."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What an unpacked layer takes."""

    bytes: int
    inodes: int


@dataclass(frozen=True, slots=True)
class Findings:
    """What differs between a tree and its record."""

    count: int
    some: tuple[str, ...]


class Unpackers:
    """The unpacker of one store."""

    def __init__(self, room: Path, limits: Limits, count: int, *, idle_s: float = _IDLE_S) -> None:
        """Prepare; nothing is executed before the first job.

        Args:
            room: a directory, on which the unpacker mounts its empty root for a moment (nobody else sees it).
            limits: of layers.
            count: jobs at once; 0 means one for each processor, and at least two.
            idle_s: seconds without a job after which the unpacker ends.
        """
        self._room = room
        self._limits = limits
        self._slots = threading.Semaphore(count or max(2, os.cpu_count() or 2))
        self._idle_s = idle_s
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._busy = 0
        self._timer: threading.Timer | None = None
        self._closed = False

    def warm(self) -> None:
        """Have the unpacker executed if it is not there: the next job need not wait for that.

        Raises:
            BackendError: it cannot be had.
        """
        with self._lock:
            self._begun()
            self._end_later()

    def unpack(
        self,
        blob: Path,
        how: tuple[Compression, Digest],
        below: Sequence[Path],
        target: Path,
        ended: Ended,
        told: Told | None = None,
    ) -> Usage:
        """Unpack a layer into ``target/fs``; what it replaced is in ``target/gone``, its record beside them.

        Args:
            blob: in the content store.
            how: how it is packed, and its diffID.
            below: the layers below, topmost first.
            target: an empty directory.
            ended: asked several times a second.
            told: of progress.

        Raises:
            InvalidArgument: the layer is malformed, hostile, beyond a limit, or not what diffID says.
            ResourceExhausted: no space; or less than the configured floor would be left.
            Unsupported: it has what this store does not accept.
            Unavailable: ``ended``.
            BackendError: the unpacker cannot be had, or was ended by its limits.
        """
        request = {"kind": "unpack", "compression": how[0], "diff_id": how[1]}
        with ExitStack() as stack:
            opened = os.open(blob, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            stack.callback(os.close, opened)
            result = self._job(request, stack, [opened], target, below, ended, told)
        _check_directory(target / "fs")
        if skipped := _number(result, "skipped"):
            log.warning("%s: %d device nodes were left out (images.devices)", how[1], skipped)
        return Usage(_number(result, "bytes"), _number(result, "inodes"))

    def copy(self, layers: Sequence[Path], target: Path, ended: Ended) -> None:
        """Copy what layers show together, topmost first, into ``target/fs``; raises what `unpack` does."""
        with ExitStack() as stack:
            self._job({"kind": "copy"}, stack, [], target, layers, ended, None)
        _check_directory(target / "fs")

    def check(self, layer: Path, record: Path, ended: Ended, *, deep: bool) -> Findings:
        """Compare a layer with the record of its tree.

        Raises:
            InvalidArgument: the record is damaged.
            FileNotFoundError: there is none.
        """
        request = {"kind": "check", "deep": deep}
        with ExitStack() as stack:
            opened = os.open(record, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            stack.callback(os.close, opened)
            result = self._job(request, stack, [opened], None, [layer], ended, None)
        some = result.get("findings")
        if not isinstance(some, list):
            raise BackendError("the unpacker answered without findings")
        return Findings(_number(result, "count"), tuple(str(each)[:1000] for each in some[:100]))

    def close(self) -> None:
        """End the unpacker and what it works on."""
        with self._lock:
            self._closed = True
            self._end()

    # Within

    def _job(
        self,
        request: dict[str, Any],
        stack: ExitStack,
        descriptors: list[int],
        target: Path | None,
        lowers: Sequence[Path],
        ended: Ended,
        told: Told | None,
    ) -> Mapping[str, Any]:
        """Pass directories as mounts, which lead nowhere else, and have the job done."""
        wanted = [(target, _QUIET)] if target else []
        for place, attributes in [
            *wanted,
            *((each, _QUIET | calls.MOUNT_ATTR_RDONLY) for each in lowers),
        ]:
            descriptors.append(calls.detached(str(place), attributes))
            stack.callback(os.close, descriptors[-1])
        request |= {
            "lowers": len(lowers),
            "limits": asdict(self._limits),
            "place": str(self._room),
        }
        message = json.dumps(request).encode()
        while not self._slots.acquire(timeout=_LOOK_S):
            _check_wanted(ended)
        try:
            for _attempt in range(2):
                answer = self._once(message, descriptors, ended, told)
                if answer is not None:
                    return answer
        finally:
            self._slots.release()
        raise BackendError("the unpacker ended before it began; twice")

    def _once(
        self, message: bytes, descriptors: list[int], ended: Ended, told: Told | None
    ) -> Mapping[str, Any] | None:
        """Give a job away and wait; None if it was not even begun."""
        with self._lock:
            server = self._begun()
            self._busy += 1
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                if not server.ask(message, [theirs.fileno(), *descriptors]):
                    self._lost(server)
                    return None
            answer = _answer(ours, ended, told)
            if answer is None:
                self._lost(server)
            return answer
        finally:
            ours.close()  # whatever is still at it is killed
            with self._lock:
                self._busy -= 1
                self._end_later()

    def _begun(self) -> _Server:
        if self._closed:
            raise Unavailable("the image store is closing")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._server is None:
            self._server = _Server(self._room)
        return self._server

    def _lost(self, server: _Server) -> None:
        with self._lock:
            if self._server is server:
                self._server = None
                server.end()

    def _end_later(self) -> None:
        if self._busy or self._server is None or self._closed:
            return
        self._timer = threading.Timer(self._idle_s, self._end_idle)
        self._timer.daemon = True
        self._timer.start()

    def _end_idle(self) -> None:
        with self._lock:
            if not self._busy:
                self._end()

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._server is not None:
            self._server.end()
            self._server = None


class _Server:
    """One process of `confined.worker`."""

    def __init__(self, room: Path) -> None:
        """Execute it and wait until it is ready.

        Raises:
            BackendError: it cannot be confined on this host, or does not start.
        """
        from polypod_image.confined.filter import program

        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        python = getattr(sys, "_base_executable", "") or sys.executable
        words = [python, "-I", "-S", "-E", "-c", _CODE, *_roots()]
        said = os.memfd_create("unpacker", os.MFD_CLOEXEC)
        try:
            with theirs:
                number = theirs.fileno()
                self._process = subprocess.Popen(
                    [*words, str(number), str(room), program().hex()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    pass_fds=(number,),
                    cwd="/",
                    env={"LC_ALL": "C.UTF-8"},
                )
            self._wait_ready(said)
        except BaseException:
            self.end()
            raise
        finally:
            os.close(said)

    def _wait_ready(self, said: int) -> None:
        self._control.settimeout(_READY_S)
        try:
            first = self._control.recv(_MESSAGE)
        except OSError as error:
            raise BackendError(f"the unpacker does not start: {error}") from error
        self._control.settimeout(None)
        answer = json.loads(first) if first else {}
        if "ready" not in answer:
            why = answer.get("refused") or os.pread(said, 2000, 0).decode(errors="replace")
            raise BackendError(f"the unpacker cannot be confined: {why.strip()}")

    def ask(self, message: bytes, descriptors: list[int]) -> bool:
        """Give it a job; False if it is not there any more."""
        try:
            socket.send_fds(self._control, [message], descriptors)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def end(self) -> None:
        """End it: with its socket it loses its reason to be."""
        self._control.close()
        if hasattr(self, "_process"):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
                return
            self._process.kill()
            self._process.wait()


def _answer(channel: socket.socket, ended: Ended, told: Told | None) -> Mapping[str, Any] | None:
    """Wait for a job's result; None if nobody began it.

    Raises:
        PolypodError: what it raised.
    """
    begun = False
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    while True:
        _check_wanted(ended)
        if not poll.poll(_LOOK_S * 1000):
            continue
        try:
            data = channel.recv(_MESSAGE)
        except ConnectionResetError:
            data = b""
        if not data:
            if begun:
                raise BackendError("the unpacker was killed")
            return None
        step = _message(data)
        begun = True
        if "result" in step:
            result = step["result"]
            return result if isinstance(result, dict) else {}
        if "error" in step:
            kind = _ERRORS.get(str(step["error"]), BackendError)
            raise kind(str(step.get("text"))[:2000])
        if "ended" in step:
            raise BackendError(_why(step["ended"]))
        if told is not None and "at" in step:
            told(_number(step, "at"))


def _why(code: object) -> str:
    """Return what the end of a job without a result means."""
    import signal

    if not isinstance(code, int) or code >= 0:
        return f"the unpacker ended with {code}"
    means = {
        signal.SIGXCPU: "it took more processor time than a layer may take",
        signal.SIGSYS: "it made a system call that unpacking does not need",
        signal.SIGKILL: "killed, perhaps for want of memory",
    }
    return f"the unpacker died of signal {-code}: {means.get(signal.Signals(-code), 'a fault')}"


def _check_wanted(ended: Ended) -> None:
    if ended():
        raise Unavailable("the image store is closing, or nobody waits for this any more")


def _message(data: bytes) -> Mapping[str, Any]:
    try:
        step = json.loads(data)
    except ValueError:
        step = None
    if not isinstance(step, dict):
        raise BackendError("the unpacker said something that is no message")
    return step


def _number(result: Mapping[str, Any], key: str) -> int:
    value = result.get(key)
    if isinstance(value, int) and 0 <= value < 1 << 62:
        return value
    raise BackendError(f"the unpacker answered {key} {str(value)[:100]}")


def _check_directory(path: Path) -> None:
    """Make sure that a tree is where it must be, and no link: who made it was not trusted."""
    if not stat.S_ISDIR(path.lstat().st_mode):
        raise InvalidArgument(f"{path}: no directory")


def _roots() -> list[str]:
    """Return the directories that hold what the unpacker imports."""
    return [str(_root("polypod")), str(_root("polypod_image")), str(_root("isal"))]


def _root(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise BackendError(f"package {package} is not installed")
    return Path(next(iter(spec.submodule_search_locations))).resolve().parent
