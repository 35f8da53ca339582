"""Exec and attach: copies between a client's channels and a conversation until either is over."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from asyncio import Future
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polypod.lifecycle.clock import settle
from polypod.lifecycle.ports import Conversation, RemoteCommand
from polypod.plugin.errors import PolypodError
from polypod.streaming import status
from polypod.streaming.channels import Channel
from polypod.streaming.descriptors import Source, write_all
from polypod.streaming.errors import Gone, ProtocolError
from polypod.streaming.inbox import Inbox
from polypod.streaming.sizes import Sizes

log = logging.getLogger("polypod.streaming")

ERROR, STDIN, STDOUT, STDERR, RESIZE = "error", "stdin", "stdout", "stderr", "resize"
_FIRST_SIZE_S = 0.1
"""A program that asks for the size of its terminal at once shall find it."""
_TERMINAL_SETTLES_S = 0.02
"""A pty hands on what was written behind the writer's back; pipes do not."""


@dataclass(frozen=True, slots=True)
class CommandRun:
    """One client of exec or attach, its streams complete."""

    command: RemoteCommand
    channels: Mapping[str, Channel]
    json_status: bool

    async def run(self) -> None:
        """Run to the end and tell it. Cancel it when the client has gone: the exec is killed then."""
        for name, channel in self.channels.items():
            if name not in (STDIN, RESIZE):
                channel.inbox.discard()
        report = await self._report()
        with contextlib.suppress(Gone):
            if report and ERROR in self.channels:
                await self.channels[ERROR].write(report)

    async def _report(self) -> bytes:
        sizes = _SizeQueue(self.channels[RESIZE].inbox) if RESIZE in self.channels else None
        try:
            size = await sizes.first() if sizes else None
            conversation = await self.command.open(size)
        except (PolypodError, OSError) as error:
            return status.failed(str(error), as_json=self.json_status)
        try:
            code = await _Talk(conversation, self.channels, sizes).run()
        except BaseException as error:
            with contextlib.suppress(PolypodError, OSError):
                await asyncio.shield(asyncio.ensure_future(conversation.abandon()))
            if isinstance(error, (PolypodError, OSError)):
                return status.failed(str(error), as_json=self.json_status)
            raise
        finally:
            conversation.close()
        return status.exited(code, as_json=self.json_status)


class _Talk:
    """The copying tasks of one conversation."""

    def __init__(
        self,
        conversation: Conversation,
        channels: Mapping[str, Channel],
        sizes: _SizeQueue | None,
    ) -> None:
        self._conversation = conversation
        self._channels = channels
        self._sizes = sizes
        ends = conversation.ends
        self._has_terminal = STDIN in ends and ends[STDIN] == ends.get(STDOUT)
        self._sources = {name: Source(fd) for name, fd in ends.items() if name != STDIN}

    async def run(self) -> int | None:
        """Return the exit code once all output is sent."""
        spawn = asyncio.ensure_future
        ended = spawn(self._conversation.ended())
        inputs = [spawn(work) for work in self._inputs()]
        outputs = [spawn(self._copy_out(name, source)) for name, source in self._sources.items()]
        try:
            await self._over(ended, inputs, outputs)
            if self._has_terminal:
                await asyncio.sleep(_TERMINAL_SETTLES_S)
            for source in self._sources.values():
                source.finish()
            await asyncio.gather(*outputs)
            return ended.result() if ended.done() else 0
        finally:
            await settle(ended, *inputs, *outputs)

    def _inputs(self) -> list[Coroutine[None, None, None]]:
        found = []
        if STDIN in self._channels:
            found.append(self._copy_in(self._channels[STDIN].inbox))
        if self._sizes is not None:
            found.append(self._resize(self._sizes))
        return found

    async def _over(
        self,
        ended: Future[int | None],
        inputs: Sequence[Future[None]],
        outputs: Sequence[Future[None]],
    ) -> None:
        """Return when the program is gone; an attach is over as well when all its streams are."""
        if not self._conversation.ends_with_streams:
            await ended
            return
        streams = outputs or inputs[:1]
        if not streams:
            await ended
            return
        waiting: set[Future[Any]] = set(streams)
        while waiting and not ended.done():
            done, _rest = await asyncio.wait(waiting | {ended}, return_when=asyncio.FIRST_COMPLETED)
            waiting -= done

    async def _copy_out(self, name: str, source: Source) -> None:
        channel = self._channels.get(name)
        with contextlib.suppress(Gone):
            while channel is not None and (data := await source.read()):
                await channel.write(data)
        if channel is not None:
            channel.end()
        # The client wants no more of it, but the program must not block on it.
        while await source.read():
            pass

    async def _copy_in(self, inbox: Inbox) -> None:
        while data := await inbox.get():
            try:
                await write_all(self._conversation.ends[STDIN], data)
            except (OSError, KeyError):
                # The program reads no more, or never had a stdin.
                break
        self._conversation.close_stdin()
        inbox.discard()

    async def _resize(self, sizes: _SizeQueue) -> None:
        while (size := await sizes.get()) is not None:
            width, height = size
            try:
                await self._conversation.resize(width=width, height=height)
            except (PolypodError, OSError) as error:
                log.info("stream: resize to %dx%d: %s", width, height, error)


class _SizeQueue:
    """The sizes that a client sends on a channel."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._sizes = Sizes()
        self._ready: deque[tuple[int, int]] = deque()

    async def get(self) -> tuple[int, int] | None:
        """Return the next size; None if there will be none."""
        while not self._ready:
            data = await self._inbox.get()
            if not data:
                return None
            try:
                self._ready.extend(self._sizes.feed(data))
            except ProtocolError as error:
                log.info("stream: %s", error)
                self._inbox.discard()
                return None
        return self._ready.popleft()

    async def first(self) -> tuple[int, int] | None:
        """Return the size to begin with, if the client tells one at once, as terminals do."""
        try:
            async with asyncio.timeout(_FIRST_SIZE_S):
                return await self.get()
        except TimeoutError:
            return None
