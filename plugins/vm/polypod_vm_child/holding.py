"""Descriptors of a relay that the keeper holds as well, so that the next relay goes on with them."""

from __future__ import annotations

import os
import time

from polypod.plan.channel import ChannelError, close_all
from polypod.supervisor.server import note
from polypod.supervisor.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from polypod.supervisor.server import Loop

    Message = dict[str, Any]

_AGAIN_S = 0.05


class Holder:
    """Our part of the keeper's store. A keeper that was replaced gets everything once more."""

    def __init__(self, loop: Loop, place: str, name: str) -> None:
        """Connect.

        Args:
            loop: calls us.
            place: directory of the keeper's socket; ``""``: nobody holds anything.
            name: whose descriptors they are.

        Raises:
            OSError, ChannelError: there is no keeper.
        """
        self._loop = loop
        self._prefix = f"relay/{name}/"
        self._held: dict[int, tuple[Message, list[int]]] = {}
        self._store: Store | None = None
        self._again_at = 0.0
        self._place = ""
        if place:
            # By a descriptor: paths of sockets are short, those of directories need not be.
            fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self._place = f"/proc/self/fd/{fd}"
            self._connect()

    def restore(self) -> list[tuple[int, Message, list[int]]]:
        """Return what a predecessor left: (stream, note, descriptors); they are the caller's."""
        if self._store is None:
            return []
        found = []
        for key, meta, fds in self._store.fetch(self._prefix):
            stream = int(key[len(self._prefix) :])
            self._held[stream] = (meta, [os.dup(fd) for fd in fds])
            found.append((stream, meta, fds))
        return found

    def hold(self, stream: int, meta: Message, fds: list[int]) -> None:
        """Let the keeper hold duplicates; what was held for the stream before is let go."""
        if not self._place:
            return
        self._forget(stream)
        self._held[stream] = (meta, [os.dup(fd) for fd in fds])
        self._put(stream)

    def drop(self, stream: int) -> None:
        """Let go; unknown ones are fine."""
        if stream not in self._held:
            return
        self._forget(stream)
        if self._store is not None:
            try:
                self._store.drop(f"{self._prefix}{stream}")
            except OSError as error:
                note(f"keeper: {error}")

    def look(self) -> float:
        """Look for a keeper that was lost; return the seconds until the next look, -1 for none."""
        if self._store is not None or not self._place:
            return -1.0
        now = time.monotonic()
        if now >= self._again_at:
            self._again_at = now + _AGAIN_S
            try:
                self._connect()
                for stream in self._held:
                    self._put(stream)
            except (OSError, ChannelError):
                return _AGAIN_S
            return -1.0
        return self._again_at - now

    def _connect(self) -> None:
        self._store = Store(self._place)
        self._loop.add(self._store.sock.fileno(), lambda _events: self._heard())

    def _heard(self) -> None:
        if self._store is not None and not self._store.listen():
            note("the keeper is gone: what it held for us the next one gets")
            self._loop.drop(self._store.sock.fileno())
            self._store.sock.close()
            self._store = None

    def _put(self, stream: int) -> None:
        if self._store is None:
            return
        meta, fds = self._held[stream]
        try:
            self._store.put(f"{self._prefix}{stream}", meta, fds)
        except OSError as error:
            note(f"keeper: {error}")

    def _forget(self, stream: int) -> None:
        _meta, fds = self._held.pop(stream, ({}, []))
        close_all(fds)
