"""A registry on loopback that lies on demand: an honest one in memory, and a rule that may change each answer.

::

    with LyingRegistry() as registry:
        registry.add("demo/app", "1", image)
        registry.rule = lambda asked, honest: replace(honest, cut=100) if asked.is_blob else honest
        …
        registry.seen            # every request, with its headers

A rule is called in the thread of its connection; what it returns is sent to the letter.
"""

from __future__ import annotations

import re
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, urlsplit

from support.registry import Image

_PATH = re.compile(r"/v2/(?P<repository>.+)/(?P<kind>manifests|blobs)/(?P<name>[^/]+)")


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes = b""

    @property
    def is_blob(self) -> bool:
        """Whether it asks for a blob."""
        return "/blobs/" in self.path

    @property
    def is_manifest(self) -> bool:
        """Whether it asks for a manifest."""
        return "/manifests/" in self.path

    @property
    def offset(self) -> int:
        """Where the range that it asks for begins."""
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        return int(found[1]) if found else 0


@dataclass(frozen=True)
class Reply:
    """What is sent."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    length: int | None = None
    """Content-Length, if not that of the body; -1 sends none."""
    cut: int | None = None
    """Close the connection after so many bytes of the body."""
    hang: int | None = None
    """Send nothing more after so many bytes of the body, until the registry ends; -1: not even headers."""
    piece: int = 0
    """Send the body in pieces of so many bytes …"""
    pause_s: float = 0.0
    """… with a pause after each."""
    endless: bool = False
    """Repeat the body until the client goes away."""
    raw: bytes | None = None
    """Send this instead of everything."""

    def with_header(self, name: str, value: str) -> Reply:
        """Return it with a header set."""
        kept = tuple(each for each in self.headers if each[0].lower() != name.lower())
        return replace(self, headers=(*kept, (name, value)))


Rule = Callable[[Asked, Reply], Reply]
NOT_FOUND = Reply(404, (("Content-Type", "application/json"),), b'{"errors":[]}')


def honest(_asked: Asked, reply: Reply) -> Reply:
    """Change nothing."""
    return reply


@dataclass
class _Content:
    manifests: dict[tuple[str, str], Image] = field(default_factory=dict)
    blobs: dict[tuple[str, str], bytes] = field(default_factory=dict)


class LyingRegistry:
    """Serves what was added, changed by `rule`; a context manager."""

    def __init__(self, certificate: tuple[Path, Path] | None = None) -> None:
        self.rule: Rule = honest
        self.seen: list[Asked] = []
        self.ended = threading.Event()
        self._content = _Content()
        owner = self

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            block_on_close = True
            request_queue_size = 128

            def handle_error(self, request: object, client_address: object) -> None:
                """Clients of such a registry go away all the time."""

        class Handler(socketserver.StreamRequestHandler):
            timeout = 60

            def handle(self) -> None:
                owner._serve(self)

        self._server = Server(("127.0.0.1", 0), Handler)
        self.scheme = "http"
        if certificate is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self.scheme = "https"
        self.port = int(self._server.server_address[1])
        self.address = f"127.0.0.1:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, repository: str, tag: str, image: Image) -> str:
        """Serve an image; return the digest of its manifest."""
        for each in (*image.inner, image):
            self._content.manifests[repository, each.digest] = each
            for digest, data in each.blobs.items():
                self._content.blobs[repository, digest] = data
        self._content.manifests[repository, tag] = image
        return image.digest

    def count(self, method: str, part: str) -> int:
        """Return how often something was asked for."""
        return sum(each.method == method and part in each.path for each in self.seen)

    # Within

    def _serve(self, handler: socketserver.StreamRequestHandler) -> None:
        while not self.ended.is_set():
            asked = _read(handler)
            if asked is None:
                return
            self.seen.append(asked)
            reply = self.rule(asked, self._honest(asked))
            if not self._send(handler, asked, reply):
                return

    def _honest(self, asked: Asked) -> Reply:
        if asked.path == "/v2/":
            return Reply(body=b"{}")
        found = _PATH.fullmatch(asked.path)
        if found is None:
            return NOT_FOUND
        key = (found["repository"], found["name"])
        if found["kind"] == "manifests":
            image = self._content.manifests.get(key)
            if image is None:
                return NOT_FOUND
            headers = (("Content-Type", image.media_type), ("Docker-Content-Digest", image.digest))
            return Reply(headers=headers, body=image.manifest)
        data = self._content.blobs.get(key)
        if data is None:
            return NOT_FOUND
        headers = (("Content-Type", "application/octet-stream"),)
        if asked.offset:
            span = f"bytes {asked.offset}-{len(data) - 1}/{len(data)}"
            return Reply(206, (*headers, ("Content-Range", span)), data[asked.offset :])
        return Reply(headers=headers, body=data)

    def _send(self, handler: socketserver.StreamRequestHandler, asked: Asked, reply: Reply) -> bool:
        """Send; return whether the connection goes on."""
        out = handler.wfile
        if reply.raw is not None:
            out.write(reply.raw)
            return False
        if reply.hang == -1:
            self.ended.wait()
            return False
        lines = [f"HTTP/1.1 {reply.status} Answer", f"Date: {formatdate(usegmt=True)}"]
        lines += [f"{name}: {value}" for name, value in reply.headers]
        length = len(reply.body) if reply.length is None else reply.length
        if length >= 0 and not reply.endless:
            lines.append(f"Content-Length: {length}")
        goes_on = length >= 0 and not reply.endless and reply.cut is None
        lines.append(f"Connection: {'keep-alive' if goes_on else 'close'}")
        out.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        if asked.method == "HEAD":
            return goes_on
        self._send_body(handler, reply)
        return goes_on and reply.hang is None

    def _send_body(self, handler: socketserver.StreamRequestHandler, reply: Reply) -> None:
        out, body = handler.wfile, reply.body
        if reply.cut is not None:
            body = body[: reply.cut]
        if reply.hang is not None:
            body = body[: reply.hang]
        step = reply.piece or len(body) or 1
        while True:
            for at in range(0, len(body), step):
                if self.ended.is_set():
                    return
                out.write(body[at : at + step])
                out.flush()
                if reply.pause_s:
                    time.sleep(reply.pause_s)
            if not reply.endless:
                break
        if reply.hang is not None:
            self.ended.wait()


def _read(handler: socketserver.StreamRequestHandler) -> Asked | None:
    """Return the next request of a connection, None at its end."""
    line = handler.rfile.readline(65536).decode("latin-1")
    words = line.split()
    if len(words) != 3:
        return None
    headers: dict[str, str] = {}
    while text := handler.rfile.readline(65536).decode("latin-1").strip():
        name, _, value = text.partition(":")
        name = name.strip().lower()
        headers[name] = ", ".join(filter(None, (headers.get(name), value.strip())))
    body = handler.rfile.read(int(headers.get("content-length", "0")))
    parts = urlsplit(words[1])
    query = {name: " ".join(values) for name, values in parse_qs(parts.query).items()}
    return Asked(words[0], parts.path, query, headers, body)
