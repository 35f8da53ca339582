"""Tokens of token servers, one per scope, kept as long as they are good.

Spec:
    distribution's token specification (GET with ``service`` and ``scope``) and its oauth2 form (POST with a
    refresh token, which CRI calls identity token). Reliability I5, I8, F12 (life counts on the monotonic clock).
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlencode, urlsplit

from polypod.plugin.errors import InvalidArgument
from polypod_image import jsondoc
from polypod_image.registry.challenge import Challenge
from polypod_image.registry.credentials import NOBODY, Credential
from polypod_image.registry.failures import Kind, RequestFailed
from polypod_image.registry.hosts import Endpoint
from polypod_image.registry.origins import origin_of, why_not
from polypod_image.registry.transport import Answer, Transport

MAX_TOKEN_BODY: Final = 1 << 20
_CLIENT: Final = "polypod"
_USUAL_LIFE_S: Final = 60
"""What an absent ``expires_in`` means."""
_MAX_LIFE_S: Final = 3600.0
_MARGIN: Final = 0.9
_KEPT: Final = 256


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """What a token is good for."""

    realm: str
    service: str
    scope: str
    credential: Credential = field(repr=False)


class Tokens:
    """The tokens of all pulls; equal requests at one time are one request."""

    def __init__(
        self, realms: frozenset[str], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin without any.

        Args:
            realms: hosts that may be asked whatever their address is.
            monotonic: the clock.
        """
        self._realms = realms
        self._now = monotonic
        self._kept: OrderedDict[TokenRequest, tuple[str, float]] = OrderedDict()
        self._locks: dict[TokenRequest, asyncio.Lock] = {}

    async def get(
        self, transport: Transport, endpoint: Endpoint, wanted: TokenRequest, stale: str = ""
    ) -> str:
        """Return a token.

        Args:
            transport: of the pull.
            endpoint: which asked for it.
            wanted: what it shall be good for.
            stale: a token that was refused: it is not given again.

        Raises:
            RequestFailed: the realm is not one that may be asked, or gives none.
        """
        lock = self._locks.setdefault(wanted, asyncio.Lock())
        try:
            async with lock:
                known, until = self._kept.get(wanted, ("", 0.0))
                if known and known != stale and self._now() < until:
                    return known
                self._kept.pop(wanted, None)
                token, life_s = await self._fetch(transport, endpoint, wanted)
                self._keep(wanted, token, life_s * _MARGIN)
                return token
        finally:
            if not lock.locked():
                self._locks.pop(wanted, None)

    def _keep(self, wanted: TokenRequest, token: str, life_s: float) -> None:
        """Keep a token; old ones go, and with them the credentials that they were asked with."""
        now = self._now()
        for each in [each for each, (_, until) in self._kept.items() if until <= now]:
            del self._kept[each]
        self._kept[wanted] = token, now + life_s
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    async def _fetch(
        self, transport: Transport, endpoint: Endpoint, wanted: TokenRequest
    ) -> tuple[str, float]:
        check_realm(wanted.realm, endpoint, self._realms)
        if wanted.credential.is_identity:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": wanted.credential.secret,
                "service": wanted.service,
                "scope": wanted.scope,
                "client_id": _CLIENT,
            }
            async with transport.ask(
                endpoint,
                "POST",
                wanted.realm,
                {},
                data=form,
                what="token realm",
                allowed=self._realms,
            ) as answer:
                if answer.status not in (404, 405):
                    return await _token(answer)
        headers = {}
        if wanted.credential != NOBODY:
            headers["Authorization"] = wanted.credential.basic()
        url = _with_query(wanted)
        async with transport.ask(
            endpoint, "GET", url, headers, what="token realm", allowed=self._realms
        ) as answer:
            return await _token(answer)


def token_request(
    challenge: Challenge, credential: Credential, endpoint: Endpoint, scope: str
) -> TokenRequest:
    """Return what a challenge asks for.

    Raises:
        RequestFailed: it names no realm.
    """
    parameters = challenge.parameters
    realm = parameters.get("realm", "")
    if not realm:
        raise RequestFailed(Kind.LIES, f"{endpoint.origin}: asks for a token and names no realm")
    return TokenRequest(
        realm, parameters.get("service", ""), parameters.get("scope", "") or scope, credential
    )


def check_realm(realm: str, endpoint: Endpoint, realms: frozenset[str]) -> None:
    """Make sure that a token server may be asked.

    Raises:
        RequestFailed: it is no URL, or plain http for a registry with TLS, or an address of this host itself.
    """
    try:
        origin = origin_of(realm)
    except InvalidArgument as error:
        raise RequestFailed(Kind.REFUSED, f"{endpoint.origin}: token realm: {error}") from None
    if origin.host in realms:
        return
    reason = why_not(origin, endpoint.origin, what="token realm")
    if reason:
        raise RequestFailed(
            Kind.REFUSED,
            f"{endpoint.origin}: {reason}; images.token_realms can allow the host {origin.host}",
        )


def _with_query(wanted: TokenRequest) -> str:
    pairs = [("service", wanted.service)] if wanted.service else []
    pairs += [("scope", each) for each in wanted.scope.split()]
    if wanted.credential.username:
        pairs.append(("account", wanted.credential.username))
    return wanted.realm + ("&" if urlsplit(wanted.realm).query else "?") + urlencode(pairs)


async def _token(answer: Answer) -> tuple[str, float]:
    """Read a token and its life in seconds."""
    where = f"token server {answer.where}"
    if answer.status in (429, 500, 502, 503, 504):
        raise RequestFailed(Kind.BUSY, f"{where}: status {answer.status}")
    if answer.status != 200:
        # 400 and 401 alike: the credential is not accepted. The body may repeat it: it is not shown.
        raise RequestFailed(Kind.DENIED, f"{where}: status {answer.status}")
    data = await answer.read(MAX_TOKEN_BODY, "token")
    try:
        document = jsondoc.decode(data, where)
        token = document.text("token") or document.text("access_token")
        life = document.number("expires_in") if document.has("expires_in") else _USUAL_LIFE_S
    except InvalidArgument:
        raise RequestFailed(Kind.LIES, f"{where}: sent no token document") from None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise RequestFailed(Kind.LIES, f"{where}: sent no token")
    return token, min(float(life or _USUAL_LIFE_S), _MAX_LIFE_S)
