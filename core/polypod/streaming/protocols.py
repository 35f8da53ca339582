"""Which protocols Kubernetes speaks over an upgraded connection, and what each of them can do.

Names and order of preference are those of k8s.io/apimachinery (``remotecommand``, ``wsstream``,
``portforward``); the client's order decides, as Kubernetes' servers do it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

SPDY: Final = "SPDY/3.1"
STREAM_PROTOCOL_HEADER: Final = "X-Stream-Protocol-Version"
ACCEPTED_PROTOCOLS_HEADER: Final = "X-Accepted-Stream-Protocol-Versions"
PORT_FORWARD: Final = "portforward.k8s.io"
TUNNEL_PREFIX: Final = "SPDY/3.1+"


class Kind(Enum):
    """What a URL leads to; the value is the first part of its path."""

    EXEC = "exec"
    ATTACH = "attach"
    PORT_FORWARD = "portforward"


@dataclass(frozen=True, slots=True)
class Dialect:
    """How streams are spoken: what differs between the versions."""

    name: str
    """As negotiated; ``""`` = the client named none, which is version 1."""
    json_status: bool = False
    """The end of a command is told as a metav1.Status in JSON; else in words, and only a failure."""
    resizes: bool = False
    """There is a stream for sizes of the terminal."""
    base64: bool = False
    """WebSocket: text messages, their bytes in base64."""
    closes: bool = False
    """WebSocket: the client may end one channel (version 5). Servers do not, clients would complain."""
    tunnel: bool = False
    """WebSocket: the messages carry a SPDY connection."""


SPDY_COMMAND: Final = (
    Dialect("v4.channel.k8s.io", json_status=True, resizes=True),
    Dialect("v3.channel.k8s.io", resizes=True),
    Dialect("v2.channel.k8s.io"),
    Dialect("channel.k8s.io"),
    Dialect(""),
)
SPDY_PORT_FORWARD: Final = (Dialect(PORT_FORWARD), Dialect(""))
WEBSOCKET_COMMAND: Final = (
    Dialect("v5.channel.k8s.io", json_status=True, resizes=True, closes=True),
    Dialect("v4.channel.k8s.io", json_status=True, resizes=True),
    Dialect("v4.base64.channel.k8s.io", json_status=True, resizes=True, base64=True),
    Dialect("channel.k8s.io", resizes=True),
    Dialect("base64.channel.k8s.io", resizes=True, base64=True),
    Dialect("", resizes=True),
)
WEBSOCKET_PORT_FORWARD: Final = (
    Dialect(TUNNEL_PREFIX + PORT_FORWARD, tunnel=True),
    Dialect("v4.channel.k8s.io"),
    Dialect("v4.base64.channel.k8s.io", base64=True),
    Dialect(""),
)


def choose(offered: Iterable[str], known: Iterable[Dialect]) -> Dialect | None:
    """Return the first protocol of the client's that we know; one that names none gets version 1."""
    by_name = {dialect.name: dialect for dialect in known}
    names = list(offered)
    if not names:
        return by_name.get("")
    return next((by_name[name] for name in names if name and name in by_name), None)
