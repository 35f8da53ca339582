"""What a relay has left with the keeper, given back when its machine is gone."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any

from polypod.plan import channel

_log = logging.getLogger(__name__)


def release(keeper: Path, name: str) -> None:
    """Let the keeper drop all descriptors of a relay; blocks for a moment.

    Args:
        keeper: directory of its socket.
        name: as the relay was told.
    """
    place = os.open(keeper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with channel.connect(f"/proc/self/fd/{place}/keeper.sock") as sock:
            _release(sock, f"relay/{name}/")
    except (OSError, channel.ChannelError) as error:
        # One that is gone holds nothing.
        _log.debug("keeper: %s", error)
    finally:
        os.close(place)


def _release(sock: socket.socket, prefix: str) -> None:
    while True:
        answer = _ask(sock, {"id": 1, "op": "get", "prefix": prefix})
        for row in answer["entries"]:
            _ask(sock, {"id": 2, "op": "drop", "key": row["key"]})
        if not answer["entries"]:
            return


def _ask(sock: socket.socket, request: dict[str, object]) -> Any:  # noqa: ANN401 - a message
    channel.send(sock, request)
    received = channel.receive(sock)
    if received is None:
        text = "the keeper left"
        raise channel.ChannelError(text)
    message, fds = received
    channel.close_all(fds)
    return message["ok"]
