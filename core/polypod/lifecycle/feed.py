"""What happens to containers and sandboxes, told to whoever listens; a slow listener holds nobody back.

Each move is told once, in the order in which moves were committed, to every reader that was there. A reader
has a bounded buffer. One that falls behind loses its stream, with an error that says so: its client lists
everything anew, as it does after any broken stream. Nothing waits for a reader.

Spec:
    kubernetes/cri-api api.proto, GetContainerEvents; reliability A14. A kubelet that reads events needs
    those of sandboxes too, under the sandbox's id, and the pod's whole status with each event.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from polypod.lifecycle.clock import Clock
from polypod.lifecycle.objects import Container, Sandbox
from polypod.lifecycle.views import (
    ContainerState,
    ContainerView,
    EventKind,
    EventView,
    SandboxState,
)
from polypod.plugin.errors import ResourceExhausted, Unavailable

_CONTAINER_KINDS: Final = {
    ContainerState.CREATED: EventKind.CREATED,
    ContainerState.RUNNING: EventKind.STARTED,
    ContainerState.EXITED: EventKind.STOPPED,
}


class Reader:
    """One listener; made by `Feed.open`, ended by `close`."""

    def __init__(self, feed: Feed, limit: int) -> None:
        self._feed = feed
        self._limit = limit
        self._events: deque[EventView] = deque()
        self._wake = asyncio.Event()
        self._lost = 0
        self._ended = False

    def put(self, event: EventView) -> None:
        """Take an event; one too many empties the buffer for good."""
        if self._lost or len(self._events) >= self._limit:
            self._feed.lost += not self._lost
            self._lost += 1 + len(self._events)
            self._events.clear()
        else:
            self._events.append(event)
        self._wake.set()

    def end(self) -> None:
        """Let the listener find that the server leaves, after what is still in the buffer."""
        self._ended = True
        self._wake.set()

    def close(self) -> None:
        """Listen no more. Idempotent."""
        self._feed.readers.discard(self)
        self._events.clear()

    async def events(self) -> AsyncIterator[EventView]:
        """Yield events as they come.

        Raises:
            ResourceExhausted: the listener was too slow and events are lost.
            Unavailable: the server is stopping.
        """
        while True:
            if self._lost:
                raise ResourceExhausted(
                    f"this stream was read too slowly: {self._lost} events or more are lost; list pods "
                    "and containers anew, then open another stream"
                )
            if self._events:
                yield self._events.popleft()
                continue
            if self._ended:
                raise Unavailable("the server is stopping; open another stream when it is back")
            self._wake.clear()
            await self._wake.wait()


class Feed:
    """All readers, and the clock of the events."""

    def __init__(self, clock: Clock, limit: int) -> None:
        """Begin without readers.

        Args:
            clock: of the events' times.
            limit: events that one reader may be behind.
        """
        self.readers: set[Reader] = set()
        self.lost = 0
        """Readers that were too slow."""
        self._clock = clock
        self._limit = limit
        self._last_ns = 0
        self._closed = False

    def open(self) -> Reader:
        """Return a reader of all that happens from now on.

        Raises:
            Unavailable: the server is stopping.
        """
        if self._closed:
            raise Unavailable("the server is stopping; open another stream when it is back")
        reader = Reader(self, self._limit)
        self.readers.add(reader)
        return reader

    def close(self) -> None:
        """End all streams: the server leaves."""
        self._closed = True
        for reader in self.readers:
            reader.end()

    def stamp(self) -> int:
        """Return the time in nanoseconds, later than any that was given before.

        A kubelet orders what it is told by these times; a clock that is set back must not make news old.
        """
        self._last_ns = max(self._last_ns + 1, self._clock.now_ns())
        return self._last_ns

    def moved_sandbox(self, sandbox: Sandbox, before: SandboxState) -> None:
        """Tell a sandbox's move, after it was committed."""
        if not self.readers:
            return
        state = sandbox.record.state
        if state is SandboxState.READY and before is not SandboxState.READY:
            self._tell(sandbox, sandbox.record.id, EventKind.CREATED)
            self._tell(sandbox, sandbox.record.id, EventKind.STARTED)
        elif before is SandboxState.READY and state is not SandboxState.READY:
            self._tell(sandbox, sandbox.record.id, EventKind.STOPPED)

    def moved_container(self, container: Container, before: ContainerState) -> None:
        """Tell a container's move, after it was committed."""
        state = container.record.state
        kind = _CONTAINER_KINDS.get(state)
        if self.readers and kind is not None and state is not before:
            self._tell(container.sandbox, container.record.id, kind)

    def forgot_sandbox(self, sandbox: Sandbox) -> None:
        """Tell that a sandbox is gone; one that was never shown is not told of."""
        if self.readers and sandbox.record.state is not SandboxState.CREATING:
            self._tell(sandbox, sandbox.record.id, EventKind.DELETED)

    def forgot_container(self, container: Container) -> None:
        """Tell that a container is gone; one that was never shown is not told of."""
        if self.readers and container.record.state is not ContainerState.CREATING:
            self._tell(container.sandbox, container.record.id, EventKind.DELETED)

    def _tell(self, sandbox: Sandbox, object_id: str, kind: EventKind) -> None:
        event = EventView(object_id, kind, self.stamp(), sandbox.view, shown_containers(sandbox))
        for reader in self.readers:
            reader.put(event)


def shown_containers(sandbox: Sandbox) -> tuple[ContainerView, ...]:
    """Return the views of a sandbox's containers, without half-made ones."""
    return tuple(
        each.view
        for each in sandbox.containers.values()
        if each.record.state is not ContainerState.CREATING
    )
