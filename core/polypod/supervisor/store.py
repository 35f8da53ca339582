"""The keeper's descriptor store as supervisor and logger use it.

Each of the two also guards duplicates of what the *other* has put there (`Store.spares`): so any two
of the three can die at once and the third one brings everything back.
"""

from __future__ import annotations

import os
import select

from polypod.plan import channel
from polypod.supervisor.server import note

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

    Message = dict[str, Any]
    Held = tuple[Message, list[int]]


_NOTHING = "-"
"""No key begins like this."""


class Store:
    """One connection. Puts are not waited for: once sent they are safe, the queue outlives us."""

    def __init__(self, state: str, *, follow: tuple[str, ...] = ()) -> None:
        """Connect.

        Args:
            state: the state directory.
            follow: guard duplicates of the entries below these prefixes.

        Raises:
            OSError: there is no keeper.
            ChannelError: it is somebody else's.
        """
        self.sock: socket.socket = channel.connect(os.path.join(state, "keeper.sock"))
        self.spares: dict[str, Held] = {}
        self._number = 0
        try:
            for prefix in follow:
                self.tell({"op": "follow", "prefix": prefix})
            self.confirm()
        except BaseException:
            self.sock.close()
            raise

    def put(self, key: str, meta: Message, fds: list[int], *, spare: bool = False) -> None:
        """Hand descriptors over; a spare one only counts where the keeper has nothing better."""
        message: Message = {"op": "put", "key": key, "meta": meta}
        if spare:
            message["spare"] = True
        channel.send(self.sock, message, fds)

    def adopt(self, process_id: str, pid: int, labels: Message) -> Held | None:
        """Let the keeper name a process that another program left to it; waits. None: there is none.

        Raises:
            ChannelError: the keeper left, or refused.
        """
        self._number += 1
        request: Message = {"id": self._number, "op": "adopt", "process": process_id, "pid": pid}
        channel.send(self.sock, {**request, "labels": labels})
        answer, fds = self._wait()
        return None if answer["meta"] is None else (answer["meta"], fds)

    def drop(self, key: str) -> None:
        """Give up a key."""
        self.tell({"op": "drop", "key": key})

    def tell(self, message: Message) -> None:
        """Send a request whose answer does not matter."""
        channel.send(self.sock, message)

    def fetch(self, prefix: str) -> list[tuple[str, Message, list[int]]]:
        """Return everything held below a prefix; waits.

        Raises:
            ChannelError: the keeper left, or refused.
        """
        found: list[tuple[str, Message, list[int]]] = []
        after, more = "", True
        while more:
            self._number += 1
            request = {"id": self._number, "op": "get", "prefix": prefix, "after": after}
            channel.send(self.sock, request)
            answer, fds = self._wait()
            more = bool(answer["more"])
            for row in answer["entries"]:
                count = row["fds"]
                found.append((row["key"], row["meta"], fds[:count]))
                fds = fds[count:]
                after = row["key"]
        return found

    def confirm(self) -> None:
        """Return when the keeper has taken everything that was put; waits.

        A keeper that was just killed still takes connections and messages, until the kernel has closed
        its last socket: what is in there is lost.

        Raises:
            OSError, ChannelError: it is gone.
        """
        self.fetch(_NOTHING)

    def listen(self) -> bool:
        """Take one message of the keeper if one is there. False: the keeper has left.

        What made the loop call us may have been taken meanwhile, by a request that waited.
        """
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0) or self._receive() is not None

    def hand_over_spares(self, other: Store) -> None:
        """Give what we guard to another keeper; it stays with us, too, until we have left."""
        for key, (meta, fds) in self.spares.items():
            other.put(key, meta, fds, spare=True)

    def _wait(self) -> Held:
        while True:
            received = self._receive()
            if received is None:
                text = "the keeper left"
                raise channel.ChannelError(text)
            message, fds = received
            if "event" in message:
                continue
            ok = message.get("ok")
            if not isinstance(ok, dict):
                text = f"the keeper refused: {message.get('error')}"
                raise channel.ChannelError(text)
            return ok, fds

    def _receive(self) -> Held | None:
        try:
            received = channel.receive(self.sock)
        except (OSError, channel.ChannelError) as error:
            note(f"keeper: {error}")
            return None
        if received is not None and "event" in received[0]:
            self._guard(*received)
        return received

    def _guard(self, message: Message, fds: list[int]) -> None:
        key = str(message.get("key"))
        _meta, old = self.spares.pop(key, ({}, []))
        channel.close_all(old)
        if message["event"] == "held":
            self.spares[key] = (message["meta"], fds)
