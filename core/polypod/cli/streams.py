"""Streams between a terminal (or pipes) of ours and a container: what exec and attach do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import termios
import threading
import tty
from collections.abc import Awaitable, Callable, Iterator

from polypod.cli.command import Usage
from polypod.client import CriClient
from polypod.lifecycle.views import StreamChoice
from polypod.plugin.errors import Unavailable
from polypod.streaming import dialing
from polypod.streaming.commands import RESIZE, STDERR, STDOUT
from polypod.streaming.errors import Gone

_READ_BYTES = 32 * 1024
_LEAVE_KEYS = b"\x10\x11"
"""ctrl-p ctrl-q, as docker has it."""


async def talk(
    cri: CriClient,
    url: Callable[[CriClient], Awaitable[str]],
    choice: StreamChoice,
    *,
    may_leave: bool = False,
) -> int:
    """Talk until the other side has ended; return its exit code.

    Args:
        cri: the server.
        url: asks it for the URL.
        choice: the streams.
        may_leave: ctrl-p ctrl-q on a terminal leaves, and the container goes on.
    """
    if choice.tty and choice.stdin and not sys.stdin.isatty():
        raise Usage("stdin is no terminal: leave out --tty, or use one")
    with _raw_terminal() if choice.tty and choice.stdin else contextlib.nullcontext():
        try:
            async with dialing.command(await url(cri), choice) as remote:
                return await _Talk(remote, choice, may_leave=may_leave).run()
        except (dialing.Refusal, Gone) as error:
            raise Unavailable(f"the stream: {error}") from error


class _Talk:
    def __init__(
        self, remote: dialing.RemoteCommandClient, choice: StreamChoice, *, may_leave: bool
    ) -> None:
        self._remote = remote
        self._choice = choice
        self._may_leave = may_leave and choice.tty
        self._loop = asyncio.get_running_loop()
        self._left = asyncio.Event()

    async def run(self) -> int:
        if RESIZE in self._remote.channels:
            self._loop.add_signal_handler(signal.SIGWINCH, self._resized)
            self._resized()
        if self._choice.stdin:
            # A thread: stdin may be a file, and making it non-blocking would change our parent's, too.
            threading.Thread(target=self._read_stdin, daemon=True).start()
        leaving = asyncio.ensure_future(self._left.wait())
        ending = asyncio.ensure_future(self._end())
        await asyncio.wait({leaving, ending}, return_when=asyncio.FIRST_COMPLETED)
        if ending.done():
            leaving.cancel()
            return ending.result()
        ending.cancel()
        return 0

    async def _end(self) -> int:
        copies = [
            asyncio.ensure_future(self._copy(name, number))
            for name, number in ((STDOUT, 1), (STDERR, 2))
            if name in self._remote.channels
        ]
        code, message = await self._remote.result()
        await asyncio.gather(*copies)
        if message and "exit code" not in message:
            sys.stderr.write(f"polypod: {message}\n")
        return code

    async def _copy(self, name: str, number: int) -> None:
        inbox = self._remote.channels[name].inbox
        while data := await inbox.get():
            await asyncio.to_thread(_write_all, number, data)

    def _read_stdin(self) -> None:
        with contextlib.suppress(OSError, RuntimeError, Gone):
            while data := os.read(0, _READ_BYTES):
                if self._may_leave and _LEAVE_KEYS in data:
                    self._loop.call_soon_threadsafe(self._left.set)
                    return
                asyncio.run_coroutine_threadsafe(self._remote.write(data), self._loop).result()
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._remote.end_stdin)

    def _resized(self) -> None:
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(0)
            text = json.dumps({"Width": size.columns, "Height": size.lines})
            work = self._remote.channels[RESIZE].write(text.encode())
            self._sending = asyncio.ensure_future(_quietly(work))


async def _quietly(work: Awaitable[None]) -> None:
    with contextlib.suppress(Gone):
        await work


def _write_all(number: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(number, view) :]


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    before = termios.tcgetattr(0)
    # What was typed ahead is for the program, and must not be flushed.
    tty.setraw(0, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
