"""What a client of exec or attach talks to once it has come: descriptors, an end, a size."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

from polypod.lifecycle.heart import Heart
from polypod.lifecycle.objects import Container
from polypod.lifecycle.views import StreamChoice
from polypod.plugin.errors import BackendError
from polypod.plugin.services import Session, Stdio


class Pipes:
    """The streams of an exec: ours, and the process' until it has started."""

    def __init__(self, choice: StreamChoice) -> None:
        self.ours: dict[str, int] = {}
        self._theirs: dict[str, int] = {}
        self._console: socket.socket | None = None
        try:
            self._make(choice)
        except BaseException:
            self.close()
            raise
        self.stdio = Stdio(**self._theirs)

    def _make(self, choice: StreamChoice) -> None:
        if choice.tty:
            self._console, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            self._console.setblocking(False)
            self._theirs["console"] = theirs.detach()
            return
        if choice.stdin:
            self._theirs["stdin"], self.ours["stdin"] = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self.ours["stdin"], False)
        for name, is_wanted in (("stdout", choice.stdout), ("stderr", choice.stderr)):
            if is_wanted:
                self.ours[name], self._theirs[name] = os.pipe2(os.O_CLOEXEC)

    def started(self) -> None:
        """Close our copies of the process' ends."""
        for fd in self._theirs.values():
            os.close(fd)
        self._theirs.clear()

    async def receive_terminal(self) -> None:
        """Take the terminal that the process' side sends."""
        if self._console is None:
            return
        loop = asyncio.get_running_loop()
        while True:
            try:
                _data, fds, _flags, _address = socket.recv_fds(self._console, 64, 1)
            except BlockingIOError:
                came = asyncio.Event()
                loop.add_reader(self._console, came.set)
                try:
                    await came.wait()
                finally:
                    loop.remove_reader(self._console)
                continue
            if not fds:
                raise BackendError("the exec's terminal did not come: its process is gone")
            os.set_blocking(fds[0], False)
            self.ours["stdin"] = self.ours["stdout"] = fds[0]
            return

    def close(self) -> None:
        """Close everything. Idempotent."""
        self.started()
        for fd in set(self.ours.values()):
            os.close(fd)
        self.ours.clear()
        if self._console is not None:
            self._console.close()


class ExecConversation:
    """A running exec; implements `Conversation`."""

    ends_with_streams = False

    def __init__(self, session: Session, pipes: Pipes) -> None:
        self.ends = pipes.ours
        self._session = session
        self._pipes = pipes
        self._has_terminal = pipes.ours.get("stdin", -1) == pipes.ours.get("stdout")

    async def ended(self) -> int | None:
        """See `Conversation.ended`."""
        return (await self._session.wait()).code

    async def resize(self, *, width: int, height: int) -> None:
        """See `Conversation.resize`."""
        await self._session.resize(width=width, height=height)

    def close_stdin(self) -> None:
        """See `Conversation.close_stdin`."""
        if not self._has_terminal and "stdin" in self._pipes.ours:
            os.close(self._pipes.ours.pop("stdin"))

    async def abandon(self) -> None:
        """See `Conversation.abandon`."""
        await self._session.kill(signal.SIGKILL)

    def close(self) -> None:
        """See `Conversation.close`."""
        self._pipes.close()


class AttachConversation:
    """A client's part in a container's streams; implements `Conversation`."""

    ends_with_streams = True

    def __init__(self, heart: Heart, container: Container, ends: dict[str, int]) -> None:
        self.ends = ends
        self._heart = heart
        self._container = container

    @classmethod
    async def open(
        cls, heart: Heart, container: Container, choice: StreamChoice
    ) -> AttachConversation:
        """Join."""
        attached = await heart.parts.logs.attach(
            container.record.id, stdin=choice.stdin, stdout=choice.stdout, stderr=choice.stderr
        )
        named = {"stdin": attached.stdin, "stdout": attached.stdout, "stderr": attached.stderr}
        ends = {name: fd for name, fd in named.items() if fd is not None}
        if "stdin" in ends:
            os.set_blocking(ends["stdin"], False)
        return cls(heart, container, ends)

    async def ended(self) -> int | None:
        """See `Conversation.ended`; an attach has no exit code of its own: 0."""
        await self._container.exited.wait()
        return 0

    async def resize(self, *, width: int, height: int) -> None:
        """See `Conversation.resize`."""
        await self._heart.parts.logs.resize(self._container.record.id, width=width, height=height)

    def close_stdin(self) -> None:
        """See `Conversation.close_stdin`; the logger knows of ``stdin_once``."""
        if "stdin" in self.ends:
            os.close(self.ends.pop("stdin"))

    async def abandon(self) -> None:
        """See `Conversation.abandon`."""

    def close(self) -> None:
        """See `Conversation.close`."""
        for fd in self.ends.values():
            os.close(fd)
        self.ends.clear()
