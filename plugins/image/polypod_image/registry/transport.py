"""HTTP towards one registry: the only place that knows the HTTP library.

Redirects are followed by us, not by the library: at most ten, never from https to http, never to this host's own
addresses, and without Authorization once the origin changes. A connection that brings nothing for the
progress time-out is given up; a slow one that moves goes on.

Spec:
    Reliability I5, I7, I8, I9, I12.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urljoin

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

import polypod
from polypod.plugin import override
from polypod.plugin.errors import InvalidArgument
from polypod_image.registry.failures import Kind, RequestFailed, shown_url
from polypod_image.registry.hosts import Endpoint, Tls
from polypod_image.registry.origins import Origin, is_loopback, is_own, origin_of, why_not

MAX_REDIRECTS: Final = 10
MAX_ERROR_BODY: Final = 64 << 10
_PATIENCE_S: Final = 2.0
"""For the body of a refusal, which nobody needs."""
_ERROR_CODE: Final = re.compile(rb'"code"\s*:\s*"([A-Z_]{1,40})"')
_BUFFER: Final = 256 << 10
"""Bytes that wait in a connection before the other side is slowed down (the library takes twice that)."""
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_AGENT: Final = f"polypod/{polypod.__version__}"


@dataclass(frozen=True, slots=True)
class Answer:
    """A response whose body is still to come."""

    status: int
    headers: Mapping[str, str]
    challenges: tuple[str, ...]
    """The values of WWW-Authenticate."""
    where: str
    """Fit to be shown."""
    body: aiohttp.StreamReader

    def header(self, name: str) -> str:
        """Return a header, ``""`` if absent."""
        return self.headers.get(name, "")

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes.

        Raises:
            RequestFailed: it broke off or stalled.
        """
        while True:
            with _translated(self.where):
                piece = await self.body.readany()
            if not piece:
                return
            yield piece

    async def read(self, limit: int, what: str) -> bytes:
        """Return a small body.

        Raises:
            RequestFailed: larger than ``limit`` bytes, or broken.
        """
        data = bytearray()
        async for piece in self.pieces():
            data += piece
            if len(data) > limit:
                raise RequestFailed(
                    Kind.LIES, f"{self.where}: {what} of more than the {limit} bytes it may have"
                )
        return bytes(data)

    async def error_code(self) -> str:
        """Read the body of a refusal to its end, so that the connection can be used again.

        Returns:
            The code of the specification's error document, such as ``TOOMANYREQUESTS``; ``""`` without one.
            Nothing else of it is shown: it may repeat what was sent.
        """
        try:
            async with asyncio.timeout(_PATIENCE_S):
                data = await self.read(MAX_ERROR_BODY, "error")
        except (RequestFailed, TimeoutError):
            return ""
        found = _ERROR_CODE.search(data)
        return found[1].decode() if found else ""


class Transport:
    """Connections of one pull; used as ``async with``."""

    def __init__(self, progress_timeout_s: float) -> None:
        """Prepare.

        Args:
            progress_timeout_s: how long a connection may bring nothing.
        """
        self.progress_timeout_s = progress_timeout_s
        self._sessions: dict[tuple[Tls | None, bool], aiohttp.ClientSession] = {}
        self._making = asyncio.Lock()

    async def __aenter__(self) -> Transport:
        return self

    async def __aexit__(self, *_error: object) -> None:
        for each in self._sessions.values():
            await each.close()
        self._sessions.clear()

    @asynccontextmanager
    async def ask(
        self,
        endpoint: Endpoint,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        data: Mapping[str, str] | None = None,
        what: str = "redirect",
        allowed: frozenset[str] = frozenset(),
    ) -> AsyncIterator[Answer]:
        """Send a request and follow redirects; leaving the block closes the connection or gives it back.

        Args:
            endpoint: on whose behalf: its certificates and headers, its rules for redirects.
            method: GET, HEAD or POST; a POST is not redirected.
            url: of the endpoint, or of a token server.
            headers: Authorization among them goes to the URL's origin alone.
            data: of a form.
            what: for errors, if the URL is none of the endpoint's.
            allowed: hosts that may be asked whatever their address is.

        Raises:
            RequestFailed: no answer, or a rule forbids the way.
        """
        sent = {"User-Agent": _AGENT, "Accept-Encoding": "identity", **headers}
        first = _origin(url)
        for _ in range(MAX_REDIRECTS + 1):
            here = _origin(url)
            trusted = here == endpoint.origin or here.host in allowed
            reason = "" if trusted else why_not(here, endpoint.origin, what=what)
            if reason:
                raise RequestFailed(Kind.REFUSED, f"{endpoint.origin}: {reason}")
            if here != first:
                sent.pop("Authorization", None)
            secure = "https" in (here.scheme, (proxy_for(url) or "").partition(":")[0])
            session = await self._session(endpoint, guarded=not trusted, secure=secure)
            extra = endpoint.headers if here == endpoint.origin else ()
            response: aiohttp.ClientResponse | None = None
            try:
                response = await self._send(
                    session, endpoint, method, url, _merged(extra, sent), data
                )
                answer = _answer(response, url)
                location = answer.header("Location")
                if not (answer.status in _REDIRECTS and location and method != "POST"):
                    yield answer
                    return
                await answer.error_code()
                url = urljoin(url, location)
            finally:
                if response is not None:
                    _let_go(response)
        raise RequestFailed(Kind.LIES, f"{shown_url(url)}: more than {MAX_REDIRECTS} redirects")

    async def _send(
        self,
        session: aiohttp.ClientSession,
        endpoint: Endpoint,
        method: str,
        url: str,
        headers: list[tuple[str, str]],
        data: Mapping[str, str] | None,
    ) -> aiohttp.ClientResponse:
        with _translated(shown_url(url)):
            return await session.request(
                method,
                URL(url, encoded=True),
                headers=headers,
                data=data,
                allow_redirects=False,
                proxy=proxy_for(url),
                timeout=aiohttp.ClientTimeout(
                    total=None,
                    sock_connect=endpoint.dial_timeout_s,
                    sock_read=self.progress_timeout_s,
                ),
            )

    async def _session(
        self, endpoint: Endpoint, *, guarded: bool, secure: bool
    ) -> aiohttp.ClientSession:
        # A private authority may vouch for the token server as well; who we are only the endpoint sees.
        tls = replace(endpoint.tls, client=()) if guarded else endpoint.tls
        key = tls if secure else None
        refuses = guarded and not is_loopback(endpoint.origin.host)
        async with self._making:
            session = self._sessions.get((key, refuses))
            if session is None:
                # To read the host's certificates takes 20 ms: not where nobody shows any.
                context = await asyncio.to_thread(tls_context, tls) if secure else True
                connector = aiohttp.TCPConnector(
                    ssl=context,
                    limit=0,
                    resolver=_Guard() if refuses else aiohttp.ThreadedResolver(),
                )
                session = aiohttp.ClientSession(
                    connector=connector,
                    auto_decompress=False,
                    read_bufsize=_BUFFER,
                    cookie_jar=aiohttp.DummyCookieJar(),
                )
                self._sessions[key, refuses] = session
            return session


class _Guard(AbstractResolver):
    """Hides addresses of this host itself: a name of a stranger's choice must not lead there."""

    def __init__(self) -> None:
        self._inner = aiohttp.ThreadedResolver()

    @override
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        kept = [each for each in found if not is_own(each["host"])]
        if not kept:
            raise OSError(None, f"{host} leads to this host itself")
        return kept

    @override
    async def close(self) -> None:
        await self._inner.close()


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Return the settings of TLS. Blocks.

    Raises:
        RequestFailed: a file is missing or no certificate.
    """
    context = ssl.create_default_context()
    try:
        for each in tls.ca:
            context.load_verify_locations(each)
        for certificate, key in tls.client:
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(map(str, (*tls.ca, *(pair[0] for pair in tls.client))))
        raise RequestFailed(Kind.REFUSED, f"certificates {files}: {error}") from None
    if tls.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class _translated:  # noqa: N801 - used as a statement
    """Turns the library's errors into ours; their own texts may hold whole URLs and headers."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        return

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            raise RequestFailed(Kind.UNREACHABLE, f"{self._where}: no connection in time") from None
        if isinstance(error, asyncio.TimeoutError):
            raise RequestFailed(
                Kind.STALLED, f"{self._where}: no data for as long as a pull waits"
            ) from None
        if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLError):
            raise RequestFailed(Kind.UNREACHABLE, f"{self._where}: TLS: {_reason(error)}") from None
        if isinstance(error, aiohttp.ClientConnectorError):
            raise RequestFailed(Kind.UNREACHABLE, f"{self._where}: {_reason(error)}") from None
        if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError):
            raise RequestFailed(
                Kind.UNREACHABLE, f"{self._where}: the connection broke off"
            ) from None
        if isinstance(error, aiohttp.ClientResponseError | aiohttp.http.HttpProcessingError):
            raise RequestFailed(Kind.LIES, f"{self._where}: no HTTP that can be read") from None
        if isinstance(error, aiohttp.ClientError | OSError | ValueError):
            raise RequestFailed(Kind.UNREACHABLE, f"{self._where}: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    inner = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
    return getattr(inner, "strerror", None) or str(inner) or type(inner).__name__


def _origin(url: str) -> Origin:
    try:
        return origin_of(url)
    except InvalidArgument as error:
        raise RequestFailed(Kind.REFUSED, str(error)) from None


def _merged(extra: Sequence[tuple[str, str]], sent: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return all headers; what we send ourselves stands before what a rule adds."""
    ours = {name.lower() for name in sent}
    return [*sent.items(), *(each for each in extra if each[0].lower() not in ours)]


def proxy_for(url: str) -> str | None:
    """Return the proxy that the environment names for a URL; this host itself is never behind one."""
    origin = origin_of(url)
    if is_own(origin.host) or urllib.request.proxy_bypass_environment(origin.authority):  # type: ignore[attr-defined]
        return None
    found: str | None = urllib.request.getproxies_environment().get(origin.scheme)
    return found


def _answer(response: aiohttp.ClientResponse, url: str) -> Answer:
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity") and response.status < 300:
        raise RequestFailed(
            Kind.LIES, f"{shown_url(url)}: content encoding {encoding!r}, which nobody asked for"
        )
    return Answer(
        response.status,
        response.headers,
        tuple(response.headers.getall("WWW-Authenticate", [])),
        shown_url(url),
        response.content,
    )


def _let_go(response: aiohttp.ClientResponse) -> None:
    """Give the connection back if its body was read to the end, else close it."""
    if response.content.at_eof():
        response.release()
    else:
        response.close()
