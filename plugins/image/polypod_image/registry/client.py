"""One registry's images over HTTP: manifests and blobs, from the endpoints of a `HostPlan` in their order.

Spec:
    distribution-spec "Pull". Reliability I5-I9, F13.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

from polypod.plugin.errors import InvalidArgument
from polypod.plugin.ids import Digest
from polypod_image import jsondoc, mediatypes
from polypod_image.digests import digest_of, hasher, parse_digest, split
from polypod_image.documents import Descriptor
from polypod_image.references import Reference
from polypod_image.registry.challenge import chosen, parse_challenges
from polypod_image.registry.credentials import NOBODY, Credential, fits
from polypod_image.registry.failures import RETRIED, Kind, RequestFailed, redacted, told
from polypod_image.registry.hosts import PULL, RESOLVE, Endpoint, HostPlan
from polypod_image.registry.tokens import Tokens, token_request
from polypod_image.registry.transport import Answer, Transport

T = TypeVar("T")

MAX_WAIT_S: Final = 30.0
"""The longest Retry-After that a pull waits for; the kubelet comes again by itself."""
_FIRST_PAUSE_S: Final = 0.2
_BUSY: Final = frozenset({408, 429, 500, 502, 503, 504})
_MEANINGS: Final = {404: Kind.MISSING, 401: Kind.DENIED, 403: Kind.DENIED}
_KNOWN: Final = mediatypes.INDEXES | mediatypes.MANIFESTS
_ACCEPT: Final = ", ".join((*sorted(_KNOWN), "*/*;q=0.1"))
_VAGUE: Final = frozenset({"", "application/json", "text/plain", "application/octet-stream"})
"""Content types of servers that do not know what they serve: the document decides."""


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or index, verified."""

    media_type: str
    digest: Digest
    data: bytes


class RegistryClient:
    """Asks the endpoints of one registry for one repository's content."""

    def __init__(
        self,
        plan: HostPlan,
        reference: Reference,
        credential: Credential,
        transport: Transport,
        tokens: Tokens,
        attempts: int,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            plan: the endpoints.
            reference: what is pulled.
            credential: of the request.
            transport: connections of this pull.
            tokens: of all pulls.
            attempts: rounds over all endpoints before a request is given up.
        """
        self._plan = plan
        self._reference = reference
        self._credential = credential
        self._transport = transport
        self._tokens = tokens
        self._attempts = attempts
        self._known: dict[Endpoint, str] = {}
        """Endpoint → the Authorization that it took last."""

    # Manifests

    async def head(self, name: str) -> tuple[Digest, str] | None:
        """Return digest and media type that a tag or digest has now, None if no endpoint can tell.

        Raises:
            PolypodError: `failures.told`.
        """

        async def ask(endpoint: Endpoint) -> tuple[Digest, str] | None:
            url = self._url(endpoint, "manifests", name)
            async with self._authorized(endpoint, "HEAD", url, {"Accept": _ACCEPT}) as answer:
                if answer.status in (400, 404, 405, 501):
                    return None  # GET tells what it means
                await _check(answer, 200, "manifest")
                try:
                    digest = parse_digest(answer.header("Docker-Content-Digest"))
                except InvalidArgument:
                    return None
                return digest, _content_type(answer)

        return await self._round(ask, frozenset({PULL} if _is_digest(name) else {PULL, RESOLVE}))

    async def manifest(self, name: str, expected: Descriptor | None = None) -> Document:
        """Return a manifest or index.

        Args:
            name: a tag or a digest.
            expected: the descriptor that led here, which it must fit.

        Raises:
            PolypodError: `failures.told`.
        """
        limit = jsondoc.MAX_BYTES if expected is None else min(jsondoc.MAX_BYTES, expected.size)

        async def ask(endpoint: Endpoint) -> Document:
            url = self._url(endpoint, "manifests", name)
            async with self._authorized(endpoint, "GET", url, {"Accept": _ACCEPT}) as answer:
                await _check(answer, 200, "manifest")
                media_type = _content_type(answer)
                if media_type not in _VAGUE and "html" in media_type:
                    raise RequestFailed(
                        Kind.LIES, f"{answer.where}: sent {media_type}, no manifest"
                    )
                data = await self._soon(answer.read(limit, "manifest"), answer.where)
                document = _document(answer, media_type, data, name)
            if expected is not None:
                _check_fits(answer.where, document, expected)
            return document

        return await self._round(ask, frozenset({PULL} if _is_digest(name) else {PULL, RESOLVE}))

    async def small_blob(self, descriptor: Descriptor, what: str) -> bytes:
        """Return a blob that fits into memory, verified.

        Raises:
            PolypodError: `failures.told`.
        """
        if descriptor.size > jsondoc.MAX_BYTES:
            raise InvalidArgument(
                f"{self._reference}: {what}: {descriptor.size} bytes, at most "
                f"{jsondoc.MAX_BYTES} are read"
            )

        async def ask(endpoint: Endpoint) -> bytes:
            url = self._url(endpoint, "blobs", descriptor.digest)
            async with self._authorized(endpoint, "GET", url, {}) as answer:
                await _check(answer, 200, what)
                data = await self._soon(answer.read(descriptor.size, what), answer.where)
            if len(data) != descriptor.size:
                raise RequestFailed(
                    Kind.LIES,
                    f"{answer.where}: {what}: {len(data)} bytes, its descriptor says "
                    f"{descriptor.size}",
                )
            check_digest(answer.where, data, descriptor.digest, what)
            return data

        return await self._round(ask)

    # Blobs

    def endpoints(self, wanted: frozenset[str] = frozenset({PULL})) -> tuple[Endpoint, ...]:
        """Return the endpoints that can do something, in their order."""
        return tuple(each for each in self._plan.endpoints if wanted <= each.capabilities)

    @asynccontextmanager
    async def blob(
        self, endpoint: Endpoint, descriptor: Descriptor, offset: int
    ) -> AsyncIterator[tuple[Answer, int]]:
        """Begin to read a blob; give the answer and the offset at which it really begins.

        Raises:
            RequestFailed: this endpoint does not give it.
        """
        url = self._url(endpoint, "blobs", descriptor.digest)
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        async with self._authorized(endpoint, "GET", url, headers) as answer:
            if answer.status == 416 and offset:
                raise RequestFailed(
                    Kind.LIES, f"{answer.where}: the blob ends before byte {offset}"
                )
            begins = offset if answer.status == 206 and offset else 0
            await _check(answer, 206 if begins else 200, "blob")
            if begins:
                _check_range(answer, begins, descriptor.size)
            length = answer.header("Content-Length")
            if length.isdigit() and int(length) != descriptor.size - begins:
                raise RequestFailed(
                    Kind.LIES,
                    f"{answer.where}: blob of {int(length) + begins} bytes, its descriptor says "
                    f"{descriptor.size}",
                )
            yield answer, begins

    async def pause(self, failures: list[RequestFailed], round_: int) -> None:
        """Wait before the next round: as long as the registry asks, else a little longer each time.

        Raises:
            PolypodError: it asks for more than we wait.
        """
        asked = max((each.wait_s or 0.0 for each in failures), default=0.0)
        if asked > MAX_WAIT_S:
            raise told(str(self._reference), failures)
        usual = _FIRST_PAUSE_S * 2**round_ * random.uniform(0.75, 1.25)  # noqa: S311 - no secret
        await asyncio.sleep(max(asked, usual))

    # Within

    async def _round(
        self,
        ask: Callable[[Endpoint], Awaitable[T]],
        wanted: frozenset[str] = frozenset({PULL}),
    ) -> T:
        """Ask one endpoint after the other, in rounds, until one answers.

        Raises:
            PolypodError: none did.
        """
        endpoints = self.endpoints(wanted)
        failures: list[RequestFailed] = []
        for round_ in range(self._attempts):
            if round_:
                await self.pause(failures, round_ - 1)
            failures = []
            for endpoint in endpoints:
                try:
                    return await ask(endpoint)
                except RequestFailed as error:
                    failures.append(error)
            # Who was silent for a whole time-out will not do better at once.
            if not {each.kind for each in failures} & (RETRIED - {Kind.STALLED}):
                break
        raise told(str(self._reference), failures)

    async def _soon(self, reading: Awaitable[bytes], where: str) -> bytes:
        """Read a small document: one that drips for ever is given up, too."""
        try:
            async with asyncio.timeout(self._transport.progress_timeout_s * 3):
                return await reading
        except TimeoutError:
            raise RequestFailed(Kind.STALLED, f"{where}: a small document takes too long") from None

    def _url(self, endpoint: Endpoint, kind: str, name: str) -> str:
        return endpoint.url(f"{self._reference.path}/{kind}/{name}")

    @asynccontextmanager
    async def _authorized(
        self, endpoint: Endpoint, method: str, url: str, headers: Mapping[str, str]
    ) -> AsyncIterator[Answer]:
        """Send a request; answer a challenge, and a second one if what we had was stale."""
        mine = self._credential if fits(self._credential, endpoint) else NOBODY
        given = self._known.get(endpoint, f"Bearer {mine.bearer}" if mine.bearer else "")
        where, code = str(endpoint.origin), ""
        for _ in range(3):
            sent = {**headers, **({"Authorization": given} if given else {})}
            async with self._transport.ask(endpoint, method, url, sent) as answer:
                if answer.status != 401:
                    if given:
                        self._known[endpoint] = given
                    yield answer
                    return
                challenges, where = answer.challenges, answer.where
                code = await answer.error_code()
            fresh = await self._answer(endpoint, mine, challenges, given)
            if not fresh or fresh == given:
                break
            given = fresh
        self._known.pop(endpoint, None)
        as_whom = "no credentials were given" if mine == NOBODY else f"with the {mine.source} given"
        raise RequestFailed(Kind.DENIED, f"{where}: status 401 {code}".rstrip() + f" ({as_whom})")

    async def _answer(
        self, endpoint: Endpoint, mine: Credential, challenges: tuple[str, ...], given: str
    ) -> str:
        """Return the Authorization that a challenge asks for; ``""`` if we have none."""
        challenge = chosen(parse_challenges(challenges))
        if challenge is None:
            return ""
        if challenge.scheme == "basic":
            return mine.basic() if mine.secret or mine.username else ""
        scope = f"repository:{self._reference.path}:pull"
        wanted = token_request(challenge, mine, endpoint, scope)
        stale = given.removeprefix("Bearer ") if given.startswith("Bearer ") else ""
        return "Bearer " + await self._tokens.get(self._transport, endpoint, wanted, stale)


async def _check(answer: Answer, wanted: int, what: str) -> None:
    """Turn a status that is none of success into its meaning."""
    status = answer.status
    if status == wanted:
        return
    code = await answer.error_code() if status >= 400 else ""
    text = f"{answer.where}: {what}: status {status} {code}".rstrip()
    if status in _BUSY:
        wait_s = retry_after(answer.header("Retry-After"))
        raise RequestFailed(Kind.BUSY, text, wait_s=wait_s)
    otherwise = Kind.LIES if status < 400 else Kind.REFUSED
    raise RequestFailed(_MEANINGS.get(status, otherwise), text)


def check_digest(where: str, data: bytes, digest: Digest, what: str) -> None:
    """Make sure that some bytes have a digest.

    Raises:
        RequestFailed: they have not.
    """
    found = hasher(digest)
    found.update(data)
    if found.hexdigest() != split(digest)[1]:
        raise RequestFailed(
            Kind.LIES, f"{where}: {what}: the content has another digest than {digest}"
        )


def _document(answer: Answer, media_type: str, data: bytes, name: str) -> Document:
    if _is_digest(name):
        digest = Digest(name)
    else:
        digest = digest_of(data)
        promised = answer.header("Docker-Content-Digest")
        if promised:
            try:
                digest = parse_digest(promised)
            except InvalidArgument:
                promised = redacted(promised[:100])
                raise RequestFailed(
                    Kind.LIES, f"{answer.where}: Docker-Content-Digest {promised!r} is none"
                ) from None
    check_digest(answer.where, data, digest, "manifest")
    return Document(_own_type(answer, data) if media_type in _VAGUE else media_type, digest, data)


def _own_type(answer: Answer, data: bytes) -> str:
    """Return what a document says of itself; OCI's may say nothing."""
    try:
        document = jsondoc.decode(data, f"{answer.where}: manifest")
        found = document.text("mediaType")
    except InvalidArgument as error:
        raise RequestFailed(Kind.LIES, str(error)) from None
    if found:
        return found
    return mediatypes.OCI_INDEX if document.has("manifests") else mediatypes.OCI_MANIFEST


def _check_fits(where: str, document: Document, expected: Descriptor) -> None:
    if document.media_type != expected.media_type:
        raise RequestFailed(
            Kind.LIES,
            f"{where}: media type {document.media_type!r}, its descriptor says "
            f"{expected.media_type!r}",
        )
    if len(document.data) != expected.size:
        raise RequestFailed(
            Kind.LIES,
            f"{where}: manifest of {len(document.data)} bytes, its descriptor says {expected.size}",
        )


def _check_range(answer: Answer, offset: int, size: int) -> None:
    found = answer.header("Content-Range")
    if found not in (f"bytes {offset}-{size - 1}/{size}", f"bytes {offset}-{size - 1}/*"):
        raise RequestFailed(
            Kind.LIES,
            f"{answer.where}: range {redacted(found[:60])!r}, asked for was {offset}- of {size}",
        )


def _content_type(answer: Answer) -> str:
    return answer.header("Content-Type").partition(";")[0].strip().lower()


def _is_digest(name: str) -> bool:
    return ":" in name


def retry_after(text: str) -> float | None:
    """Return the seconds that a Retry-After names, as a number or as a date."""
    if text.isdigit():
        return float(text[:9])
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    if when.tzinfo is None:
        return None
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
