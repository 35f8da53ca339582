"""Tokens: one request at a time for one scope, their life on the monotonic clock, few are kept."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from polypod_image.registry.challenge import Challenge
from polypod_image.registry.credentials import NOBODY, Credential
from polypod_image.registry.failures import Kind, RequestFailed
from polypod_image.registry.hosts import Endpoint
from polypod_image.registry.origins import origin_of
from polypod_image.registry.tokens import TokenRequest, Tokens, check_realm, token_request

REGISTRY = Endpoint(
    "https://r.example/v2", origin_of("https://r.example"), "r.example", mirror=False
)
WANTED = TokenRequest("https://t.example/token", "s", "repository:a:pull", NOBODY)


class FakeAnswer:
    status = 200
    where = "t"

    def __init__(self, document):
        self.document = document

    async def read(self, _limit, _what):
        return json.dumps(self.document).encode()


class FakeTransport:
    """Gives token-1, token-2 … and notes what was asked for."""

    def __init__(self, life_s=100):
        self.life_s = life_s
        self.urls = []

    @asynccontextmanager
    async def ask(self, _endpoint, method, url, headers, **_more):
        self.urls.append(url)
        await asyncio.sleep(0)
        yield FakeAnswer({"token": f"token-{len(self.urls)}", "expires_in": self.life_s})


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


async def test_equal_requests_at_once_are_one():
    tokens, transport = Tokens(frozenset()), FakeTransport()
    found = await asyncio.gather(*(tokens.get(transport, REGISTRY, WANTED) for _ in range(5)))
    assert set(found) == {"token-1"}
    assert transport.urls == ["https://t.example/token?service=s&scope=repository%3Aa%3Apull"]


async def test_a_token_lives_a_little_less_than_it_says():
    clock = Clock()
    tokens, transport = Tokens(frozenset(), clock), FakeTransport(100)
    assert await tokens.get(transport, REGISTRY, WANTED) == "token-1"
    clock.now = 89
    assert await tokens.get(transport, REGISTRY, WANTED) == "token-1"
    clock.now = 91
    assert await tokens.get(transport, REGISTRY, WANTED) == "token-2"


async def test_a_life_is_never_longer_than_an_hour():
    clock = Clock()
    tokens, transport = Tokens(frozenset(), clock), FakeTransport(10**9)
    await tokens.get(transport, REGISTRY, WANTED)
    clock.now = 3601
    assert await tokens.get(transport, REGISTRY, WANTED) == "token-2"


async def test_a_refused_token_is_not_given_again():
    tokens, transport = Tokens(frozenset()), FakeTransport()
    first = await tokens.get(transport, REGISTRY, WANTED)
    assert await tokens.get(transport, REGISTRY, WANTED, stale=first) == "token-2"
    # Another request that still holds the first one gets the second, too.
    assert await tokens.get(transport, REGISTRY, WANTED, stale=first) == "token-2"


async def test_scopes_and_people_have_tokens_of_their_own():
    tokens, transport = Tokens(frozenset()), FakeTransport()
    mine = Credential("username", "r.example", "u", "p")
    others = [
        WANTED,
        TokenRequest(WANTED.realm, "s", "repository:b:pull", NOBODY),
        TokenRequest(WANTED.realm, "s", WANTED.scope, mine),
    ]
    found = [await tokens.get(transport, REGISTRY, each) for each in others]
    assert len(set(found)) == 3


async def test_only_some_tokens_are_kept():
    tokens, transport = Tokens(frozenset()), FakeTransport()
    for n in range(300):
        await tokens.get(transport, REGISTRY, TokenRequest(WANTED.realm, "s", str(n), NOBODY))
    await tokens.get(transport, REGISTRY, TokenRequest(WANTED.realm, "s", "299", NOBODY))
    assert len(transport.urls) == 300
    await tokens.get(transport, REGISTRY, TokenRequest(WANTED.realm, "s", "0", NOBODY))
    assert len(transport.urls) == 301


async def test_a_token_that_is_over_is_forgotten_with_its_credential():
    clock = Clock()
    tokens, transport = Tokens(frozenset(), clock), FakeTransport(100)
    await tokens.get(transport, REGISTRY, WANTED)
    clock.now = 200
    other = TokenRequest(WANTED.realm, "s", "repository:b:pull", NOBODY)
    await tokens.get(transport, REGISTRY, other)
    assert list(tokens._kept) == [other]


def test_a_challenge_without_scope_is_for_the_repository():
    challenge = Challenge("bearer", {"realm": "https://t.example", "service": "s"})
    found = token_request(challenge, NOBODY, REGISTRY, "repository:x:pull")
    assert found.scope == "repository:x:pull"


@pytest.mark.parametrize(
    ("realm", "allowed"),
    [
        ("https://t.example/token", True),
        ("http://t.example/token", False),
        ("https://127.0.0.1/token", False),
        ("https://localhost/token", False),
        ("https://[fe80::1]/token", False),
        ("http://127.0.0.9/token", True),
        ("not a url", False),
    ],
)
def test_realms(realm, allowed):
    """I8: https, never this host itself, unless the configuration allows the host."""
    if allowed:
        check_realm(realm, REGISTRY, frozenset({"127.0.0.9"}))
        return
    with pytest.raises(RequestFailed) as failed:
        check_realm(realm, REGISTRY, frozenset({"127.0.0.9"}))
    assert failed.value.kind is Kind.REFUSED
