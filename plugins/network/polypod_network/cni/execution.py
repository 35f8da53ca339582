"""One execution of one program: bounded in time and in output, killed with all its children.

The exit is awaited through a pidfd, not through the end of the output: a plugin may leave a daemon
behind that keeps the pipes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

OUTPUT_LIMIT = 4 << 20
"""Bytes of stdout and of stderr that are kept."""
_DRAIN_S = 0.5
"""After the exit, for what is still in the pipes of a program that left a child with them."""

_REAP_S = 5.0
"""From SIGKILL until a process is gone, unless the kernel holds it."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How it ended."""

    code: int
    """Exit code; negative: the signal."""
    stdout: bytes
    stderr: bytes


async def execute(
    program: Path, *, stdin: bytes, environment: Mapping[str, str], timeout_s: float
) -> Finished:
    """Execute a program and wait for its end.

    Raises:
        TimeoutError: it did not end in time; it and its process group were killed.
        OSError: it cannot be executed.
    """
    out, err = _Output(), _Output()
    try:
        process = _start(program, stdin, environment, out, err)
        try:
            async with asyncio.timeout(timeout_s):
                await _exited(process.pid)
        except BaseException:
            _kill_group(process.pid)
            await _reap(process)
            raise
        code = process.wait()
        await asyncio.gather(out.rest(), err.rest())
        return Finished(code, bytes(out.data), bytes(err.data))
    finally:
        out.close()
        err.close()


def _start(
    program: Path, stdin: bytes, environment: Mapping[str, str], out: _Output, err: _Output
) -> subprocess.Popen[bytes]:
    # A file, not a pipe: a program that never reads cannot make us wait.
    source = os.memfd_create("cni-stdin", os.MFD_CLOEXEC)
    try:
        os.write(source, stdin)
        os.lseek(source, 0, os.SEEK_SET)
        return subprocess.Popen(
            [program],
            stdin=source,
            stdout=out.writer,
            stderr=err.writer,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    finally:
        os.close(source)
        out.close_writer()
        err.close_writer()


async def _exited(pid: int) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    pidfd = os.pidfd_open(pid)
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def _kill_group(pid: int) -> None:
    # Not reaped yet, so the id is still its own.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


async def _reap(process: subprocess.Popen[bytes]) -> None:
    """Reap what was killed; one that hangs in the kernel is left to whoever executes the next program."""
    ended = asyncio.ensure_future(_exited(process.pid))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(ended), _REAP_S)
        process.wait()
    ended.cancel()


class _Output:
    """A pipe that is emptied as the program writes; what is over the limit is dropped."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reader, False)
        self._loop.add_reader(self._reader, self._read)

    def close_writer(self) -> None:
        """Let go of our copy of the program's end."""
        writer, self.writer = self.writer, -1
        if writer >= 0:
            os.close(writer)

    async def rest(self) -> None:
        """Wait for the end of the stream, as long as that can be expected to come."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), _DRAIN_S)

    def close(self) -> None:
        """Close both ends."""
        self.close_writer()
        self._loop.remove_reader(self._reader)
        os.close(self._reader)

    def _read(self) -> None:
        try:
            chunk = os.read(self._reader, 1 << 16)
        except BlockingIOError:
            return
        if not chunk:
            self._loop.remove_reader(self._reader)
            self._ended.set()
        self.data += chunk[: OUTPUT_LIMIT - len(self.data)]
