"""Who we are, to whom we say it, and to whom not (I7, I8); tokens kept, renewed, refused."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from urllib.parse import parse_qs

import pytest
from support.images import image_of, layer_of
from support.lying_registry import LyingRegistry, Reply
from support.registry import Registry, push
from support.token_server import TokenServer, basic, signed_token

from polypod.plugin.errors import BackendError, InvalidArgument
from polypod.plugin.requests import Auth

pytestmark = pytest.mark.needs_root

IMAGE = image_of([layer_of({str(n): b"x"}) for n in range(4)])
USER, PASSWORD = "somebody", "correct-horse"
HTPASSWD = "somebody:$2y$05$zCOhsPlUHANT7qj59OZHCOPOSpguxM6JKS7xW3XC.BDrBMWCSaONC\n"
AUTH = Auth(username=USER, password=PASSWORD)


def wants_basic(asked, honest):
    """Let through who gives user and password."""
    if asked.headers.get("authorization") == basic(USER, PASSWORD):
        return honest
    return Reply(401, (("WWW-Authenticate", 'Basic realm="somewhere"'),))


def sent(registry):
    """Return every Authorization that a registry was sent."""
    return {each.headers.get("authorization", "") for each in registry.seen}


@pytest.mark.needs_docker_registry
async def test_htpasswd_of_a_real_registry(store, tmp_path):
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    settings = {"htpasswd": {"realm": "r", "path": str(tmp_path / "htpasswd")}}
    with Registry(auth=settings) as registry:
        push(registry.address, "private/app", "1", IMAGE, authorization=basic(USER, PASSWORD))
        name = f"{registry.address}/private/app:1"
        with pytest.raises(BackendError, match=r"access denied: .*no credentials were given"):
            await store.pull(name)
        with pytest.raises(BackendError, match="with the username given"):
            await store.pull(name, auth=Auth(username=USER, password="wrong"))
        assert (await store.pull(name, auth=AUTH)).repo_tags == (name,)
        encoded = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        assert await store.pull(name, auth=Auth(auth=encoded))
        # An image that is here is not given to who may not pull it.
        with pytest.raises(BackendError, match="access denied"):
            await store.pull(name)


@pytest.mark.needs_docker_registry
async def test_tokens_of_a_real_registry(store, liar, certificate):
    name = "private/app"
    token = signed_token(*certificate, issuer="us", service="here", repository=name)
    settings = {
        "token": {
            "realm": f"http://{liar.address}/token",
            "service": "here",
            "issuer": "us",
            "rootcertbundle": str(certificate[0]),
        }
    }
    body = json.dumps({"token": token}).encode()
    liar.rule = lambda asked, honest: (
        Reply(body=body)
        if asked.headers.get("authorization") == basic(USER, PASSWORD)
        else Reply(401)
    )
    with Registry(auth=settings) as registry:
        push(registry.address, name, "1", IMAGE, authorization=f"Bearer {token}")
        with pytest.raises(BackendError, match="access denied: token server"):
            await store.pull(f"{registry.address}/{name}:1")
        assert await store.pull(f"{registry.address}/{name}:1", auth=AUTH)
    assert liar.seen[-1].query["service"] == "here"
    assert liar.seen[-1].query["scope"] == f"repository:{name}:pull"


@pytest.mark.parametrize(
    "auth",
    [
        AUTH,
        Auth(username=USER, password=PASSWORD, identity_token="t", registry_token="t"),
        Auth(auth=base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode(), registry_token="t"),
    ],
    ids=["alone", "before-tokens", "auth-before-registry-token"],
)
async def test_basic(auth, store, liar):
    liar.add("app", "1", IMAGE)
    liar.rule = wants_basic
    assert await store.pull(f"{liar.address}/app:1", auth=auth)
    assert sent(liar) == {"", basic(USER, PASSWORD)}


async def test_a_token_is_asked_for_once_and_kept(store, liar):
    liar.add("app", "1", IMAGE)
    server = liar.rule = TokenServer(f"http://{liar.address}/token", USER, PASSWORD)
    await store.pull(f"{liar.address}/app:1", auth=AUTH)
    await store.pull(f"{liar.address}/app:1", auth=AUTH)
    assert len(server.issued) == 1
    assert server.asked[0].query["account"] == USER
    assert server.asked[0].query["scope"] == "repository:x:pull"
    # Others have nothing of it.
    with pytest.raises(BackendError, match="access denied"):
        await store.pull(f"{liar.address}/app:1")
    with pytest.raises(BackendError, match="access denied"):
        await store.pull(f"{liar.address}/app:1", auth=replace(AUTH, password="other"))


async def test_a_token_that_is_refused_is_renewed_once(store, liar):
    liar.add("app", "1", IMAGE)
    server = liar.rule = TokenServer(f"http://{liar.address}/token")
    await store.pull(f"{liar.address}/app:1")
    server.revoked.update(server.issued)
    await store.pull(f"{liar.address}/app:1")
    assert len(server.issued) == 2


async def test_tokens_that_are_never_good_end_quickly(store, liar):
    liar.add("app", "1", IMAGE)
    server = TokenServer(f"http://{liar.address}/token")
    liar.rule = lambda asked, honest: (
        server(asked, Reply(401)) if asked.path == "/token" else server(asked, honest)
    )

    def never(asked, honest):
        answer = server(asked, honest)
        server.revoked.update(server.issued)
        return answer

    liar.rule = never
    with pytest.raises(BackendError, match="access denied"):
        await store.pull(f"{liar.address}/app:1")
    assert len(liar.seen) <= 6


async def test_an_anonymous_token_is_enough_for_what_is_public(store, liar):
    liar.add("app", "1", IMAGE)
    liar.rule = TokenServer(f"http://{liar.address}/token")
    assert await store.pull(f"{liar.address}/app:1")


async def test_an_identity_token_is_posted(store, liar):
    liar.add("app", "1", IMAGE)
    server = liar.rule = TokenServer(f"http://{liar.address}/token", identity="refresh-me")
    await store.pull(f"{liar.address}/app:1", auth=Auth(identity_token="refresh-me"))
    form = parse_qs(server.asked[0].body.decode())
    assert form["grant_type"] == ["refresh_token"]
    assert form["scope"] == ["repository:x:pull"]
    assert "authorization" not in server.asked[0].headers


async def test_a_server_without_the_form_is_asked_by_get(store, liar):
    liar.add("app", "1", IMAGE)
    server = liar.rule = TokenServer(
        f"http://{liar.address}/token", identity="refresh-me", posts=False
    )
    await store.pull(f"{liar.address}/app:1", auth=Auth(identity_token="refresh-me"))
    assert [each.method for each in server.asked] == ["POST", "GET"]


async def test_a_registry_token_is_sent_as_it_is(store, liar):
    liar.add("app", "1", IMAGE)
    liar.rule = lambda asked, honest: (
        honest if asked.headers.get("authorization") == "Bearer ready-made" else Reply(401)
    )
    assert await store.pull(f"{liar.address}/app:1", auth=Auth(registry_token="ready-made"))


async def test_credentials_for_another_host_are_not_used(store, liar):
    liar.add("app", "1", IMAGE)
    liar.rule = wants_basic
    with pytest.raises(BackendError, match="no credentials were given"):
        await store.pull(
            f"{liar.address}/app:1", auth=replace(AUTH, server_address="https://other.example/v1/")
        )
    assert sent(liar) == {""}
    fitting = replace(AUTH, server_address=f"https://{liar.address}/v1/")
    assert await store.pull(f"{liar.address}/app:1", auth=fitting)


@pytest.mark.parametrize("text", ["!!!", base64.b64encode(b"nocolon").decode()])
async def test_auth_that_is_no_base64_is_refused_and_not_shown(text, store, liar):
    with pytest.raises(InvalidArgument, match=r"auth\.auth") as failed:
        await store.pull(f"{liar.address}/app:1", auth=Auth(auth=text))
    assert text not in str(failed.value)


# To whom not


async def test_a_mirror_sees_no_credentials(stores, store, liar):
    liar.add("app", "1", IMAGE)
    liar.rule = wants_basic
    with LyingRegistry() as mirror:
        mirror.add("app", "1", IMAGE)
        mirror.rule = wants_basic
        stores.rule(
            "r.example",
            f'server = "http://{liar.address}"\n[host."http://{mirror.address}"]\n',
        )
        await store.pull("r.example/app:1", auth=AUTH)
        assert mirror.seen
        assert sent(mirror) == {""}
        assert basic(USER, PASSWORD) in sent(liar)
        # Unless they are the mirror's own.
        await store.pull("r.example/app:1", auth=replace(AUTH, server_address=mirror.address))
        assert basic(USER, PASSWORD) in sent(mirror)


async def test_a_redirect_to_another_origin_carries_no_authorization(store, liar):
    with LyingRegistry() as elsewhere:
        liar.add("app", "1", IMAGE)
        elsewhere.add("app", "1", IMAGE)

        def rule(asked, honest):
            answer = wants_basic(asked, honest)
            if answer.status == 200 and asked.is_blob:
                return Reply(307, (("Location", f"http://{elsewhere.address}{asked.path}?sig=x"),))
            return answer

        liar.rule = rule
        assert await store.pull(f"{liar.address}/app:1", auth=AUTH)
        assert len(elsewhere.seen) == 5
        assert sent(elsewhere) == {""}


async def test_headers_of_a_rule_stay_with_its_host(stores, store, liar):
    with LyingRegistry() as elsewhere:
        elsewhere.add("app", "1", IMAGE)
        liar.add("app", "1", IMAGE)
        liar.rule = lambda a, h: (
            Reply(307, (("Location", f"http://{elsewhere.address}{a.path}"),)) if a.is_blob else h
        )
        stores.rule("r.example", f'server = "http://{liar.address}"\n[header]\nx-key = "secret"\n')
        await store.pull("r.example/app:1")
        assert {each.headers.get("x-key") for each in liar.seen} == {"secret"}
        assert {each.headers.get("x-key") for each in elsewhere.seen} == {None}


REALMS = {
    "metadata": ("http://169.254.169.254/latest/meta-data", "leads to this host itself"),
    "mapped": ("http://[::ffff:169.254.169.254]/", "leads to this host itself"),
    "file": ("file:///etc/shadow", "no URL of http"),
    "user": ("http://user:word@t.example/", "must not hold a user name"),
    "empty": ("", "names no realm"),
}


@pytest.mark.parametrize("name", REALMS)
async def test_a_realm_that_may_not_be_asked(name, store, liar):
    realm, words = REALMS[name]
    liar.add("app", "1", IMAGE)
    liar.rule = TokenServer(realm)
    with pytest.raises(BackendError, match=words):
        await store.pull(f"{liar.address}/app:1", auth=AUTH)


async def test_a_registry_with_tls_cannot_send_us_to_plain_http(stores, store, liar, certificate):
    with LyingRegistry(certificate) as registry:
        registry.add("app", "1", IMAGE)
        registry.rule = TokenServer(f"http://{liar.address}/token", USER, PASSWORD)
        stores.rule(
            "r.example", f'server = "https://{registry.address}"\nca = "{certificate[0]}"\n'
        )
        with pytest.raises(BackendError, match="from https to http"):
            await store.pull("r.example/app:1", auth=AUTH)
        assert liar.seen == []


TOKENS = {
    "html": (Reply(body=b"<html>"), "sent no token document"),
    "endless": (Reply(body=b" " * 65536, endless=True), "more than the 1048576 bytes"),
    "empty": (Reply(body=b"{}"), "sent no token"),
    "newline": (Reply(body=b'{"token":"a\\r\\nX: y"}'), "sent no token"),
    "500": (Reply(500), "RegistryUnavailable"),
    "400": (Reply(400, (), b'{"error":"bad"}'), "access denied"),
    "hang": (Reply(hang=-1), "no data for as long"),
}


@pytest.mark.parametrize("name", TOKENS)
async def test_a_token_server_that_lies(name, store, liar):
    answer, words = TOKENS[name]
    server = TokenServer(f"http://{liar.address}/token")
    liar.add("app", "1", IMAGE)
    liar.rule = lambda a, h: answer if a.path == "/token" else server(a, h)
    with pytest.raises(BackendError, match=words):
        await store.pull(f"{liar.address}/app:1", auth=AUTH)
