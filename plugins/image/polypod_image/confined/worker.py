"""The unpacker: a small server that forks one confined child for each job. Executed, never imported by the daemon.

The daemon's end of one socket is its life: when that closes, it ends and its children with it. Each job
comes with a socket of its own; closing that ends the job. One thread, no state between two jobs: a
child that was taken over by a hostile layer ends with its job.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import select
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from polypod.plugin.errors import BackendError, PolypodError, ResourceExhausted
from polypod.plugin.ids import Digest
from polypod_image import digests, streams
from polypod_image.confined import calls, cell, jobs
from polypod_image.mediatypes import Compression

MESSAGE: Final = 60_000
"""Bytes of one message at most."""
MAX_DESCRIPTORS: Final = cell.MAX_LOWERS + 3
_TEXT: Final = 2000
_CLOSED: Final = select.POLLHUP | select.POLLERR


def main(arguments: Sequence[str]) -> None:
    """Serve.

    Args:
        arguments: descriptor of the socket to the daemon; a directory for `cell.enclose`; the program of
            seccomp, in hexadecimal digits.
    """
    descriptor, room, program = arguments
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's; the daemon decides
    control = socket.socket(fileno=int(descriptor))
    calls.keep_memory()
    _warm()
    try:
        cell.enclose(room)
    except OSError as error:
        _send(control, {"refused": str(error)})
        return
    gc.collect()
    gc.freeze()
    _send(control, {"ready": os.getpid()})
    _Server(control, bytes.fromhex(program)).serve()


class _Server:
    """Who works on what."""

    def __init__(self, control: socket.socket, program: bytes) -> None:
        self._control = control
        self._program = program
        self._children: dict[int, socket.socket] = {}
        self._pid = os.getpid()
        self._wake = _on_child_end()

    def serve(self) -> None:
        """Fork for each request until the daemon is gone."""
        while True:
            poll = select.poll()
            poll.register(self._control, select.POLLIN)
            poll.register(self._wake, select.POLLIN)
            owners = {channel.fileno(): pid for pid, channel in self._children.items()}
            for descriptor in owners:
                poll.register(descriptor, 0)  # its hang-up alone
            for descriptor, events in poll.poll():
                if descriptor in owners and events & _CLOSED:
                    with suppress(ProcessLookupError):
                        os.kill(owners[descriptor], signal.SIGKILL)
                    self._children[owners[descriptor]].close()
                    del self._children[owners[descriptor]]
                elif descriptor == self._wake:
                    self._reap()
                elif descriptor == self._control.fileno() and not self._take():
                    return

    def _take(self) -> bool:
        """Begin one job; False when the daemon is gone. Children end with us."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, MESSAGE, MAX_DESCRIPTORS)
        except OSError:
            return False
        if not data:
            return False
        channel = socket.socket(fileno=descriptors.pop(0))
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                self._control.close()
                for other in self._children.values():
                    other.close()
                os.close(self._wake)
                _work(json.loads(data), channel, descriptors, self._program, self._pid)
                status = 0
            finally:
                os._exit(status)
        for each in descriptors:
            os.close(each)
        self._children[pid] = channel
        return True

    def _reap(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._wake, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            channel = self._children.pop(pid, None)
            if channel is not None:
                _send(channel, {"ended": os.waitstatus_to_exitcode(status)})
                channel.close()


def _work(
    request: Mapping[str, Any],
    channel: socket.socket,
    descriptors: list[int],
    program: bytes,
    parent: int,
) -> None:
    """Do one job, in its child, and send what came of it."""
    gc.disable()  # short-lived, and what it keeps it needs
    kind = request["kind"]
    given = descriptors.pop(0) if kind in jobs.READS else -1
    target = descriptors.pop(0) if kind in jobs.WRITES else -1
    try:
        _send(channel, {"begun": True})
        cell.confine(target, descriptors, jobs.bounds_of(request), parent)
        work = jobs.KINDS[kind]()
        cell.seal(program)
        result = work(request, given, lambda step: _send(channel, step))
        _send(channel, {"result": result})
    except PolypodError as error:
        _send(channel, _failure(error))
    except MemoryError:
        _send(channel, _failure(ResourceExhausted("it takes more memory than a layer may take")))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        meaning = ResourceExhausted if full else BackendError
        _send(channel, _failure(meaning(f"{error.strerror} ({error.filename})")))
    except Exception as error:  # noqa: BLE001 - the daemon is told, whatever it was
        _send(channel, _failure(BackendError(f"{type(error).__name__}: {error}")))


def _failure(error: PolypodError) -> dict[str, str]:
    return {"error": type(error).__name__, "text": str(error)[:_TEXT]}


def _send(channel: socket.socket, message: Mapping[str, Any]) -> None:
    try:
        channel.send(json.dumps(message).encode())
    except (BrokenPipeError, ConnectionResetError):
        return  # nobody waits for it any more


def _warm() -> None:
    """Have everything loaded that loads itself at its first use: later there is nothing to load from."""
    for algorithm, digits in digests.HEX_DIGITS.items():
        digests.hasher(Digest(f"{algorithm}:{'0' * digits}")).update(b"")
    for compression in Compression:
        streams.decompress(lambda: b"", compression)()
    with suppress(OSError):
        calls.mount("none", "/nowhere/at/all", "", calls.MS_BIND)
    "x".encode("ascii", "backslashreplace").decode("utf-8", "backslashreplace")
    json.loads(json.dumps({"x": [1, "y"]}))


def _on_child_end() -> int:
    """Return a descriptor that becomes readable when a child ends."""
    ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
    signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    return ours
