"""Who may connect: no page that a browser on this host has loaded (A5).

A page cannot know a token, and this is the second lock. It can make its browser send a request here, by
DNS rebinding even under a name of its own, but a browser that asks for a WebSocket adds ``Origin`` and
lets no script add other headers. The kubelet passes a request on with the client's ``Host`` (and
``Origin``), and with ``X-Forwarded-For``: there the names were checked by whoever was asked first.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from polypod.streaming.handshake import Refused, Request


def check(request: Request, names: Sequence[str] = ()) -> None:
    """Look at ``Host`` and ``Origin`` of a request that came directly.

    Args:
        request: what was asked.
        names: further names of this server, as its URLs have them.

    Raises:
        Refused: 403, it was sent for somebody else, or by a page of somebody else's.
    """
    if request.all("x-forwarded-for"):
        return
    own = {"localhost", socket.gethostname().lower(), *(name.lower() for name in names)}
    host = _host_of(f"//{request.get('host')}")
    if not _is_address(host) and host not in own:
        raise Refused(403, f"the host {host!r} is not this one")
    origin = request.get("origin")
    if not origin:
        return
    page = _host_of(origin)
    if page not in own and not _is_loopback(page):
        raise Refused(403, f"pages of {origin!r} may not connect")


def _host_of(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return _is_address(host) and ipaddress.ip_address(host).is_loopback
